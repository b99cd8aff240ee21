"""The exported preprocessing, run in ONNX Runtime, equals what prepare computes for the same jets,
and the graph has no operation that the data config does not need.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import awkward as ak
import numpy as np
import onnx
import pytest
import torch

from common.project import ROOT
from weaver.config.data_config import DataConfig
from weaver.onnx import raw_program as raw
from weaver.onnx.onnx_export import export_onnx, without_trimming
from weaver.onnx.raw_jets import pad_columns, reference_inputs
from weaver.onnx.raw_model import Preprocessing, raw_inputs, raw_model
from weaver.onnx.runtime import feed_of, session
from weaver.onnx.valid_range import ValidRange

LENGTH = 6
COLUMNS = {
    "jetPt": raw.Column(dtype=np.dtype("f4"), particles=False),
    "own": raw.Column(dtype=np.dtype("i4"), particles=True, counter="nPF"),
    "pt": raw.Column(dtype=np.dtype("f4"), particles=True, counter="nPF"),
    "number": raw.Column(dtype=np.dtype("i4"), particles=True, counter="nPF"),
}
TINY = np.float32(1e-45)  # the smallest that float32 holds
# Neighbours in float32, at several sizes, and what is special about floats.
SPECIAL = [np.float32(0), TINY, -TINY, np.float32(1e-30), np.float32(-3), np.float32("inf")]
for size in (1e-6, 0.3, 7.0, 9e3, 3e38):
    SPECIAL += [np.float32(size), np.nextafter(np.float32(size), np.float32(0))]
SPECIAL += [np.float32("-inf"), np.float32("nan")]


def config(order: str, *, variables: str = "number", mode: str = "constant") -> DataConfig:
    """A data config whose input is the particles in an order."""
    group = {
        "length": LENGTH,
        "pad_mode": mode,
        "vars": variables.split(),
        **({"order_by": order.split(";")} if order else {}),
    }
    options = {
        "inputs": {"group": group},
        "labels": {"type": "custom", "value": {"t": "np.log(genPt / jetPt)"}},
    }
    return DataConfig.from_options(options, "jec.yaml")


def jets(counts: list[int], seed: int) -> dict[str, ak.Array]:
    """Jets of special numbers, numbered particles, with whole numbers up to 2**18 in `own`."""
    rng = np.random.default_rng(seed)
    total = sum(counts)
    flat = {
        "own": rng.choice([0, 1, -1, 3, 2**18, -(2**18)], total).astype(np.int32),
        "pt": rng.choice(np.array(SPECIAL, np.float32), total),
        "number": np.arange(total, dtype=np.int32),
    }
    columns = {name: ak.unflatten(values, counts) for name, values in flat.items()}
    return columns | {"jetPt": ak.Array(np.full(len(counts), 50, np.float32))}


def export_model(data_config: DataConfig, folder: Path) -> tuple[Path, raw.RawProgram]:
    """The preprocessing alone as an ONNX file, traced with 7 places."""
    program = raw.raw_program(data_config, COLUMNS)
    names = raw_inputs(program)
    types, shapes, axes = {}, {}, {}
    for name in names:
        column = program.inputs.get(name)
        types[name] = column.dtype if column else np.dtype(np.int32)
        is_list = column is not None and column.particles
        shapes[name] = (-1, -1) if is_list else (-1, 1)
        axes[name] = {0: "batch", 1: "places"} if is_list else {0: "batch"}
    info = {
        "input_names": names,
        "input_types": types,
        "input_shapes": shapes,
        "dynamic_axes": axes,
        "output_names": ["group", "reference"],
    }
    preprocessing = Preprocessing(program, data_config, ["group"]).eval()
    return export_onnx(preprocessing, info, None, folder / "raw.onnx"), program


@pytest.mark.parametrize(
    "order", ["-own; -pt", "own; pt", "-own; pt", "own; -pt", "-pt", "number; -own; -pt", "-own"]
)
@pytest.mark.parametrize("mode", ["constant", "wrap"])
@pytest.mark.parametrize("places", [40, 2], ids=["more than the length", "fewer"])
def test_the_graph_sorts_like_the_preparation(order, mode, places, tmp_path):
    counts = [places, 0, places - 1, 1, *range(1, min(places, 25))]
    data_config = config(order, mode=mode)
    path, program = export_model(data_config, tmp_path)
    columns = jets(counts, seed=places)
    arrays = pad_columns({branch: columns[branch] for branch in program.inputs}, program)
    runtime = session(path)
    actual = runtime.run(["group"], feed_of(runtime, arrays))[0]
    expected = reference_inputs(arrays, data_config, program)["group"]
    np.testing.assert_array_equal(actual, expected)


def test_values_in_padded_places_do_not_change_the_order(tmp_path):
    data_config = config("-own; -pt")
    path, program = export_model(data_config, tmp_path)
    columns = jets([9, 3, 0, 12], seed=1)
    arrays = pad_columns({branch: columns[branch] for branch in program.inputs}, program)
    arrays_with_padding = dict(arrays)
    behind = np.arange(12) >= arrays["nPF"]
    arrays_with_padding["pt"] = np.where(behind, np.float32("inf"), arrays["pt"])
    arrays_with_padding["own"] = np.where(behind, np.int32(2**30), arrays["own"])
    runtime = session(path)
    without_padding, with_padding = (
        runtime.run(["group"], feed_of(runtime, feed))[0] for feed in (arrays, arrays_with_padding)
    )
    np.testing.assert_array_equal(without_padding, with_padding)


def operations(data_config: DataConfig, columns: dict[str, raw.Column], folder: Path) -> Counter:
    """How often ONNX Runtime runs each operation of a data config's preprocessing."""
    import onnxruntime

    program = raw.raw_program(data_config, columns)
    names = raw_inputs(program)
    particles = [name for name in names if name in columns and columns[name].particles]
    types = {name: columns[name].dtype if name in columns else np.int32 for name in names}
    info = {
        "input_names": names,
        "input_types": types,
        "input_shapes": {name: (-1, -1 if name in particles else 1) for name in names},
        "dynamic_axes": {name: {1: "places"} for name in particles},
        "output_names": [*data_config.input_names, "reference"],
    }
    preprocessing = Preprocessing(program, data_config, data_config.input_names).eval()
    path = export_onnx(preprocessing, info, None, folder / "raw.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimised.onnx").graph
    return Counter(node.op_type for node in graph.node)


def shipped_config(name: str) -> tuple[DataConfig, dict[str, raw.Column]]:
    """A data config of the repository and the columns of JetNtuple files that it reads."""
    data_config = DataConfig.load(str(ROOT / "data" / name))
    whole = {"PF_id", "PF_fromPV", "PF_fromAK4Jet", "QG_mult", "PV_npvsGood"}
    columns = {}
    for branch in raw.raw_branches(data_config).values():
        columns[branch] = raw.Column(
            dtype=np.dtype("i4" if branch in whole else "f4"),
            particles=branch.startswith("PF_"),
            counter="nPF" if branch.startswith("PF_") else "",
        )
    return data_config, columns


def test_the_graph_sorts_only_where_the_data_config_has_order_by(tmp_path):
    assert operations(*shipped_config("jec_pfn_open.yaml"), tmp_path)["TopK"] == 0
    # two keys, and two groups of the same order
    assert operations(*shipped_config("jec_pfn_full.yaml"), tmp_path)["TopK"] == 1


@pytest.mark.parametrize("name", ["jec_pfn_open.yaml", "jec_pfn_full.yaml"])
def test_the_graph_has_few_operations(name, tmp_path):
    """For one jet each operation takes a microsecond, whatever it computes; there were 350."""
    operation_counts = operations(*shipped_config(name), tmp_path)
    assert sum(operation_counts.values()) <= 83
    assert operation_counts["Gather"] == 1, (
        "of a shape: of particles GatherElements takes a tenth of its time"
    )
    assert operation_counts["Where"] <= 6
    assert operation_counts["ConstantOfShape"] == 0


def test_choices_between_small_integers_are_float32():
    program = raw.raw_program(config("", variables="pt"), COLUMNS)
    assert program.groups["group"][0].dtype == np.float32
    options = {
        "new_variables": {
            "charge": "np.where(np.abs(number) == 211, np.sign(number), 0)",
            "either": "np.where(own > 0, number, 0)",
        },
        "inputs": {"group": {"length": LENGTH, "vars": ["charge", "either"]}},
        "labels": {"type": "custom", "value": {"t": "np.log(genPt / jetPt)"}},
    }
    from weaver.onnx.raw_model import graph_type_of

    charge, either = raw.raw_program(DataConfig.from_options(options, "jec.yaml"), COLUMNS).groups[
        "group"
    ]
    assert graph_type_of(charge) == torch.float32
    assert graph_type_of(either) == torch.int64, "a number of any size may not fit into float32"


class AnyOrder(torch.nn.Module):
    """Returns the particles in their order, with their mask; `any_order` as a network declares
    it.
    """

    def __init__(self, any_order: bool) -> None:
        super().__init__()
        self.any_order = any_order
        self.masks = True

    def forward(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.cat((features[:, 0] + int(self.masks) * 1000, mask[:, 0]), dim=1)


@pytest.mark.parametrize("any_order", [True, False])
@pytest.mark.parametrize("places", [12, 3], ids=["more than the length", "fewer"])
def test_a_network_that_ignores_order_gets_the_same_particles_unsorted(any_order, places, tmp_path):
    order = ["-own", "-pt"]
    options = {
        "new_variables": {"is_real": "ak.ones_like(pt)"},
        "inputs": {
            "features": {"length": LENGTH, "vars": ["number"], "order_by": order},
            "pf_mask": {"length": LENGTH, "vars": ["is_real"], "order_by": order},
        },
        "labels": {"type": "custom", "value": {"t": "np.log(genPt / jetPt)"}},
    }
    data_config = DataConfig.from_options(options, "jec.yaml")
    program = raw.raw_program(data_config, COLUMNS)
    info = {"input_names": ["features", "pf_mask"], "output_columns": ["c"] * (2 * LENGTH)}
    limits = ValidRange(min_pt=0, max_pt=1e9, max_abs_eta=None, jets="training")
    model, _ = raw_model(program, AnyOrder(any_order), info, data_config, limits)
    preprocessing = model.preprocessing
    assert model.network.masks is not any_order
    groups = list(preprocessing.groups.values())
    assert [group.is_sorted for group in groups] == [not any_order] * 2

    names = raw_inputs(program)
    of_jet = {"jetPt", "nPF"}
    info = {
        "input_names": names,
        "input_types": {n: COLUMNS[n].dtype if n in COLUMNS else np.int32 for n in names},
        "input_shapes": {n: (-1, 1) if n in of_jet else (-1, -1) for n in names},
        "dynamic_axes": {n: {1: "places"} for n in names if n not in of_jet},
        "output_names": ["features", "pf_mask", "reference"],
    }
    path = export_onnx(preprocessing.eval(), info, None, tmp_path / "raw.onnx")
    columns = jets([places, 0, 1, 2, places - 1], seed=3)
    # The raw model does not order the particles of jets with NaN: they are not valid.
    columns["pt"] = ak.nan_to_num(columns["pt"], nan=1, posinf=np.inf, neginf=-np.inf)
    arrays = pad_columns({branch: columns[branch] for branch in program.inputs}, program)
    runtime = session(path)
    features, mask = runtime.run(["features", "pf_mask"], feed_of(runtime, arrays))
    expected = reference_inputs(arrays, data_config, program)
    if not any_order:
        np.testing.assert_array_equal(features, expected["features"])
        np.testing.assert_array_equal(mask, expected["pf_mask"])
    for jet in range(len(features)):
        real = mask[jet, 0] == 1
        of_jet_expected = expected["features"][jet, 0][expected["pf_mask"][jet, 0] == 1]
        assert sorted(features[jet, 0][real]) == sorted(of_jet_expected)
        assert (features[jet, 0][~real] == 0).all()


STEPS = {
    "is_muon": "np.abs(own) == 13",
    "is_large": "own > 200.5",
    "charge": "np.where(np.abs(own) == 211, np.sign(own), np.where(own == 13, -np.sign(own), 0))",
    "either": "(own == -1) | (own >= 2)",
}


def test_functions_of_the_same_integers_become_a_lookup_table(tmp_path):
    options = {
        "new_variables": STEPS,
        "inputs": {"group": {"length": LENGTH, "vars": [*STEPS, "pt"], "order_by": ["-number"]}},
        "labels": {"type": "custom", "value": {"t": "np.log(genPt / jetPt)"}},
    }
    data_config = DataConfig.from_options(options, "jec.yaml")
    path, program = export_model(data_config, tmp_path)
    operation_counts = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert operation_counts["Sign"] == operation_counts["Or"] == 0
    assert operation_counts["Abs"] == 1, "is_muon is a comparison of the absolute value"
    columns = jets([30, 0, 3, 12], seed=4)
    numbers = [0, 1, -1, 2, 13, -13, 14, 200, 201, 202, 211, -211, 212]
    numbers += [2**31 - 1, -(2**31) + 1, -(2**31)]
    total = len(ak.flatten(columns["own"]))
    own = np.random.default_rng(4).choice(np.array(numbers, np.int32), total)
    columns["own"] = ak.unflatten(own, ak.num(columns["own"]))
    arrays = pad_columns({branch: columns[branch] for branch in program.inputs}, program)
    runtime = session(path)
    actual = runtime.run(["group"], feed_of(runtime, arrays))[0]
    expected = reference_inputs(arrays, data_config, program)["group"]
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("network", "norm"),
    [
        ("pfn_regressor_open.py", "none"),
        ("pfn_regressor_open.py", "layer"),
        ("particle_net_regressor_open.py", "batch"),
    ],
)
def test_padding_and_invalid_jets_do_not_change_the_answers_of_valid_jets(network, norm, tmp_path):
    """Junk behind the counter, and jets that are not valid beside it, change no answer."""
    from networks.options import ModelInfo
    from weaver.network.network_file import load_network
    from weaver.onnx.parity import torch_answers
    from weaver.onnx.raw_jets import reference_answers
    from weaver.onnx.valid_range import valid_jets

    name = "jec_pfn_full.yaml" if "pfn" in network else "jec_particle_net_full.yaml"
    data_config, columns = shipped_config(name)
    program = raw.raw_program(data_config, columns)
    torch.manual_seed(0)
    small = {"conv_dim": 8, "fc_dim": 8, "norm": norm}
    if "pfn" not in network:
        small |= {"num_edge_conv_blocks": 1, "k": 4}
    info: ModelInfo
    trained, info = load_network(str(ROOT / "networks" / network)).build(data_config, small)
    trained = without_trimming(trained)
    limits = ValidRange(min_pt=20, max_pt=1000, max_abs_eta=2.5, jets="training")
    model, raw_info = raw_model(program, trained, info, data_config, limits)
    path = export_onnx(model, raw_info, None, tmp_path / "raw.onnx")
    if norm == "none":
        # The mask of the particles is the one that multiplies the bias.
        operation_counts = Counter(node.op_type for node in onnx.load(path).graph.node)
        assert operation_counts["ConstantOfShape"] == 0

    rng = np.random.default_rng(5)
    counts = np.array([1, 2, 63, 64, 65, 90, 90, 40, 0, 91, -1, 30, 30, 30, 30, 30], np.int32)
    count, places = len(counts), 90
    arrays = {"nPF": counts[:, None]}
    for branch, column in program.inputs.items():
        shape = (count, places) if column.particles else (count, 1)
        if branch == "PF_id":
            x = rng.choice([211, -211, 130, 22, 11, -11, 13, -13, 1, 0], shape)
        elif column.dtype.kind == "i":
            x = rng.integers(0, 2, shape)
        else:
            x = rng.uniform(0.1, 2, shape)
        arrays[branch] = x.astype(column.dtype)
    arrays["jetPt"] = rng.uniform(25, 900, (count, 1)).astype("f4")
    arrays["PF_pT"][3, :2] = [-1, 0]  # finite, but not their logarithms
    arrays["PF_pT"][11, 3] = np.nan
    arrays["PF_dEta"][12, 3] = np.inf
    arrays["jetMass"][13] = np.nan
    arrays["jetPt"][14] = 5
    reference = reference_inputs(
        {**arrays, "nPF": np.clip(arrays["nPF"], 0, places)}, data_config, program
    )
    valid = valid_jets(arrays, program, reference[""], reference["residual_features"][:, 1], limits)
    assert valid.tolist() == [True] * 8 + [False] * 7 + [True]
    output = torch_answers(trained, info["input_names"], reference)
    expected = reference_answers(output, reference[""], valid)

    runtime = session(path)
    junk = np.arange(places) >= arrays["nPF"]
    for value in (0, np.nan, np.inf):
        feed = dict(arrays)
        for branch, column in program.inputs.items():
            if column.particles:
                filling = value if column.dtype.kind == "f" else 2**30
                feed[branch] = np.where(junk, column.dtype.type(filling), arrays[branch])
        actual = np.concatenate(runtime.run(None, feed_of(runtime, feed)), axis=1)
        np.testing.assert_allclose(actual[:, 1:], expected[:, 1:], rtol=1e-5)
        np.testing.assert_allclose(actual[valid, 0], expected[valid, 0], rtol=1e-5)
