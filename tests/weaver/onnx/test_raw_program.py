"""Each expression gives the same in the graph as in awkward and numpy, or is refused by name before
anything is trained.
"""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import torch

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.config.expressions import Expression
from weaver.onnx import raw_program as raw
from weaver.onnx.raw_jets import pad_columns, reference_inputs
from weaver.onnx.raw_model import OPERATIONS, Preprocessing, raw_inputs

COUNTS = [3, 0, 5, 1]
COLUMNS = {
    "jetPt": raw.Column(dtype=np.dtype("f4"), particles=False),
    "mult": raw.Column(dtype=np.dtype("i4"), particles=False),
    "pt": raw.Column(dtype=np.dtype("f4"), particles=True, counter="nPF"),
    "id": raw.Column(dtype=np.dtype("i4"), particles=True, counter="nPF"),
    "genPt": raw.Column(dtype=np.dtype("f4"), particles=False),
}
JETS = {
    "jetPt": ak.Array(np.array([50, 80, 120, 30], np.float32)),
    "mult": ak.Array(np.array([7, 0, 3, 12], np.int32)),
    # 4.0 twice: ties keep the order of the file.
    "pt": ak.unflatten(np.array([4.0, 9.0, 4.0, 1.5, 0.5, 8.0, 2.0, 0.5, 3.0], np.float32), COUNTS),
    "id": ak.unflatten(np.array([211, 22, -211, 130, -11, 13, 22, 211, -211], np.int32), COUNTS),
}


def config(
    variable: str, *, length: int | None = 4, more: str = "", label: str = "np.log(genPt / jetPt)"
) -> DataConfig:
    """A data config with one input `x` made by an expression."""
    group = {
        "length": length,
        "vars": ["x"] if length else ["x", "jetPt"],
        **({"order_by": more.split(";")} if more else {}),
    }
    options = {
        "new_variables": {"x": variable},
        "inputs": {"group": group},
        "labels": {"type": "custom", "value": {"t": label}},
    }
    return DataConfig.from_options(options, "jec.yaml")


def both(data_config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """The network's input as the graph makes it and as weaver's own preparation does."""
    program = raw.raw_program(data_config, COLUMNS)
    jets = pad_columns({branch: JETS[branch] for branch in program.inputs}, program)
    preprocessing = Preprocessing(program, data_config, ["group"])
    with torch.no_grad():
        actual, _ = preprocessing(*(torch.from_numpy(jets[name]) for name in raw_inputs(program)))
    return actual.numpy(), reference_inputs(jets, data_config, program)["group"]


PARTICLES = [
    "np.log(pt / jetPt)",
    "np.abs(id) == 211",
    "np.where(np.abs(id) == 211, np.sign(id), 0)",
    "(pt > 1) & ~(id < 0)",
    "id // 10 + id % 7",
    "pt ** 2 - 1 / (1 + mult)",
    "np.maximum(pt, 2) * np.float64(2)",
    "_clip(pt, 1, 5)",
    "np.hypot(pt, id)",
    "np.arctan2(pt, id)",
    "np.rint(pt / 3)",
    "np.isfinite(np.log(pt - 0.5))",
    "ak.ones_like(pt)",
    "ak.values_astype(pt, np.int32)",
    "pt / ak.sum(pt, axis=1)",
    "_batch_gather(pt, _batch_argsort(-(1000.0 * (id > 0) + pt)))",
    "pt[ak.argsort(pt, ascending=False)]",
    "ak.sort(pt)",
    "pt[id > 0]",
    "pt[:, :2]",
    "ak.local_index(pt)",
    "np.log1p(pt) + np.expm1(pt / 10)",
    "np.tanh(pt) + np.arcsinh(pt)",
    "ak.full_like(pt, 3)",
]
SINGLE = [
    "ak.num(pt)",
    "ak.sum(pt, axis=1)",
    "ak.sum(id == 211, axis=1)",
    "ak.any(pt > 3, axis=1)",
    "ak.all(pt > 1, axis=-1)",
    "ak.fill_none(ak.max(pt, axis=1), 0)",
    "ak.fill_none(ak.firsts(pt) / jetPt, -1)",
    "ak.max(pt, axis=1, mask_identity=False)",
    "mult / 3",
    "np.log(mult)",
    "np.prod(pt, axis=1)",
    "ak.count_nonzero(id > 0, axis=1)",
    "ak.min(pt[pt > 1], axis=1, mask_identity=False)",
]


@pytest.mark.parametrize("text", PARTICLES)
def test_expressions_of_particles_equal_awkward_s(text):
    actual, expected = both(config(text))
    assert actual.shape == expected.shape == (4, 1, 4)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("text", SINGLE)
def test_expressions_with_one_value_a_jet_equal_awkward_s(text):
    actual, expected = both(config(text, length=None))
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("order", ["pt", "-pt", "np.abs(id); -pt", "-(id > 0); pt"])
def test_order_by_equals_the_order_of_the_preparation(order):
    actual, expected = both(config("id + 0", length=3, more=order))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("parameters", [[5, 0.5, -1, 1, -9], [None, 1, -5, 5, -9], ["1", 2]])
@pytest.mark.parametrize("mode", ["constant", "wrap"])
def test_standardising_clipping_and_padding_equal_the_preparation_s(parameters, mode):
    group = {"length": 4, "pad_mode": mode, "vars": [["pt", *parameters]]}
    options = {
        "inputs": {"group": group},
        "labels": {"type": "custom", "value": {"t": "np.log(genPt / jetPt)"}},
    }
    actual, expected = both(DataConfig.from_options(options, "jec.yaml"))
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("np.unwrap(pt)", "unknown function in a graph 'unwrap'"),
        ("np.left_shift(id, 2)", "unknown function in a graph 'left_shift'"),
        ("pt - ak.max(pt)", "write axis=1, for the particles of each jet"),
        ("id & 4", "bits of whole numbers have no form in a graph"),
        ("id << 2", "shifting bits"),
        ("pt[:, 1:3]", r"only x\[:, :k\] has a form"),
        ("1.5", "it is the same for all jets"),
    ],
    ids=["function", "bits by name", "axis", "bits", "shift", "slice", "constant"],
)
def test_expressions_without_a_form_in_a_graph_are_refused_by_name(text, words):
    with pytest.raises(InputError, match=rf"jec\.yaml:.*{words}"):
        raw.check_raw(config(text), COLUMNS)


@pytest.mark.parametrize("label", ["genPt / jetPt", "np.log(genPt)", "np.log2(genPt / jetPt)"])
def test_a_label_that_is_not_the_logarithm_of_a_pt_ratio_is_refused(label):
    with pytest.raises(
        InputError, match=r"the label must be one np.log\(<true pT> / <reconstructed pT>\)"
    ):
        raw.check_raw(config("pt", label=label), COLUMNS)


def test_values_in_padded_places_change_no_input():
    data_config = config("pt / ak.sum(pt, axis=1)", more="-pt")
    program = raw.raw_program(data_config, COLUMNS)
    jets = pad_columns({branch: JETS[branch] for branch in program.inputs}, program)
    jets_with_padding = {
        **jets,
        "pt": np.where(np.arange(5) < jets["nPF"], jets["pt"], np.float32("nan")),
    }
    preprocessing = Preprocessing(program, data_config, ["group"])
    without_padding, with_padding = (
        preprocessing(*(torch.from_numpy(arrays[name]) for name in raw_inputs(program)))[0].numpy()
        for arrays in (jets, jets_with_padding)
    )
    np.testing.assert_array_equal(without_padding, with_padding)


def test_the_inputs_include_the_counter_and_the_reference_of_the_label():
    program = raw.raw_program(config("pt / jetPt"), COLUMNS)
    assert raw_inputs(program) == ["pt", "jetPt", "nPF"]
    assert program.reference_text == "jetPt"
    assert "genPt" not in program.inputs, (
        "what only the label needs is not known when a model is served"
    )


def test_each_operation_exists_in_the_graph_and_in_numpy_or_awkward():
    """Every name that is accepted leads to an operation of the graph, and numpy, awkward or a
    helper has it.
    """
    assert set(raw.ELEMENTWISE.values()) - {
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "invert",
    } <= set(OPERATIONS)
    for name in raw.ELEMENTWISE:
        assert (
            name.startswith("_")
            or hasattr(np, name)
            or hasattr(ak, name)
            or Expression(f"math.{name}(x)")
        )
