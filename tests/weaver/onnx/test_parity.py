"""The parity check accepts equal models, and refuses each way in which a file can compute something
else than the network.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.published import settle
from common.errors import GateError
from tests.exporting.small import INFO, LENGTH, jets, network
from tests.networks.jets import config
from tests.networks.jets import jets as network_jets
from weaver.network.network_file import load_network
from weaver.onnx.layer_differences import layer_differences
from weaver.onnx.onnx_export import export_onnx
from weaver.onnx.parity import check_parity, golden_jets, num_answers
from weaver.onnx.triton_config import GRAPH_LEVELS

ROOT = Path(__file__).parents[3]
NAMES = INFO["input_names"]
ODD = 13  # a multiplicity that no real jet has here: exactly one golden jet has it


@pytest.fixture(scope="module")
def exported_model(tmp_path_factory):
    return export_onnx(network(), INFO, None, tmp_path_factory.mktemp("parity") / "model.onnx")


@pytest.fixture(scope="module")
def golden():
    inputs, multiplicity = jets(1500)
    keep = multiplicity != ODD
    return golden_jets({name: values[keep] for name, values in inputs.items()}, multiplicity[keep])


class Shifted(torch.nn.Module):
    """The network, but off by `shift` for jets of some multiplicities."""

    def __init__(self, shift: float, multiplicities: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.shift, self.multiplicities = (
            network(),
            shift,
            torch.tensor(multiplicities),
        )

    def forward(self, features, mask, jet):
        shifted = torch.isin(mask.sum((1, 2)).round().long(), self.multiplicities)
        return self.network(features, mask, jet) + self.shift * shifted[:, None]


def test_equal_models_pass_at_every_level_and_batch_size(exported_model, golden):
    counts = []
    parity = check_parity(
        network(), exported_model, golden, NAMES, advance=lambda count, note: counts.append(count)
    )
    assert parity.num_jets == 1000
    assert parity.share_close == 1.0
    assert parity.max_difference < 1e-6
    assert parity.levels == tuple(GRAPH_LEVELS) == (0, 1, -1, 2)
    assert parity.batch_sizes == (1, 2, 17, 1000)
    assert sum(counts) == parity.num_answers == num_answers(golden) == 4 * (21 + 22 + 34 + 1000)


def test_one_jet_of_a_thousand_may_differ_slightly(exported_model, golden):
    parity = check_parity(Shifted(1e-4, (ODD,)), exported_model, golden, NAMES)
    assert parity.share_close == 0.999
    assert parity.max_difference == pytest.approx(1e-4, rel=0.01)


def test_two_jets_of_a_thousand_that_differ_slightly_are_refused(exported_model, golden):
    inputs, multiplicity = (
        {name: values.copy() for name, values in golden.inputs.items()},
        golden.multiplicity.copy(),
    )
    odd, other = int(np.flatnonzero(multiplicity == ODD)[0]), 500
    for values in inputs.values():
        values[other] = values[odd]
    multiplicity[other] = ODD
    with pytest.raises(GateError, match=r"99\.80% of 1,000 golden jets within 1e-05"):
        check_parity(
            Shifted(1e-4, (ODD,)),
            exported_model,
            dataclasses.replace(golden, inputs=inputs, multiplicity=multiplicity),
            NAMES,
        )


def test_one_jet_with_a_large_difference_is_refused_by_number(exported_model, golden):
    with pytest.raises(
        GateError,
        match=(
            rf"off by 0\.002 .*golden jet \d+ \({ODD} particles\) at batch size \d+ and graph level"
            r" -?\d"
        ),
    ):
        check_parity(Shifted(2e-3, (ODD,)), exported_model, golden, NAMES)


@pytest.mark.parametrize("multiplicity", [0, LENGTH], ids=["no particle", "all places taken"])
def test_golden_jets_include_the_lowest_and_highest_multiplicity(
    exported_model, golden, multiplicity
):
    with pytest.raises(GateError, match=rf"\({multiplicity} particles\)"):
        check_parity(Shifted(2e-3, (multiplicity,)), exported_model, golden, NAMES)


def test_other_weights_are_refused_with_the_first_layer_that_differs(exported_model, golden):
    with pytest.raises(
        GateError,
        match=r"does not answer as PyTorch.*the first layer that differs is 'particles.0', off by",
    ):
        check_parity(network(seed=1), exported_model, golden, NAMES)


def test_a_layer_that_differs_when_traced_is_named(tmp_path, golden):
    class TracedElse(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + (0.1 if torch.jit.is_tracing() else 0.0)

    model = network()
    model.head[0] = TracedElse(19, 16)
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    with pytest.raises(
        GateError, match=r"golden jet \d+ .*the first layer that differs is 'head.0', off by 0\.1"
    ):
        check_parity(model, path, golden, NAMES)


@pytest.mark.parametrize("name", ["pfn", "particle_net"])
def test_the_layers_of_our_networks_are_identified_in_their_files(tmp_path, name):
    groups = ("pf_points",) * (name == "particle_net") + ("pf_features", "pf_mask", "jet_features")
    data_config = config(*groups)
    options = {"num_edge_conv_blocks": 2, "k": 4} if name == "particle_net" else {}
    model, info = load_network(f"{ROOT}/networks/{name}_regressor_open.py").build(
        data_config, {"conv_dim": 8, "fc_dim": 8, **options}
    )
    path = export_onnx(settle(model), info, data_config, tmp_path / "model.onnx")
    inputs = {key: values.numpy() for key, values in network_jets([3, 20]).items() if key in groups}
    result = layer_differences(model, path, info["input_names"], inputs, level=0)
    leaves = {
        layer
        for layer, module in model.named_modules()
        if layer and isinstance(module, torch.nn.Linear) and "first" not in layer
    }
    assert {layer.removesuffix(".linear") for layer in leaves} <= set(result)
    assert np.max(list(result.values())) < 1e-5


def test_an_output_that_is_nan_is_refused(exported_model, golden):
    class NoCare(torch.nn.Module):
        def forward(self, features, mask, jet):
            return (features * mask).sum((1, 2))[:, None] / mask.sum((1, 2))[:, None]

    with pytest.raises(
        GateError, match=r"golden jet \d+ \(0 particles\) is nan, not a finite number"
    ):
        check_parity(NoCare(), exported_model, golden, NAMES)


class TracedBatch(torch.nn.Module):
    """A network whose traced graph holds the number of jets it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, features, mask, jet):
        answer = self.network(features, mask, jet)
        return (
            answer.reshape(int(answer.shape[0]), 1)
            if not torch.jit.is_tracing()
            else answer.reshape(int(answer.shape[0]) * 1, 1)[:3]
        )


def test_a_batch_size_that_became_a_constant_is_refused(tmp_path, golden):
    model = TracedBatch()
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    with pytest.raises(GateError, match="ONNX Runtime"):
        check_parity(model, path, golden, NAMES)


def test_a_network_that_mixes_jets_of_a_batch_is_refused(tmp_path, golden):
    class Mixing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, features, mask, jet):
            return self.network(features, mask, jet - jet.mean(0, keepdim=True))

    path = export_onnx(Mixing(), INFO, None, tmp_path / "model.onnx")
    with pytest.raises(GateError):
        check_parity(Mixing(), path, golden, NAMES)


# ------------------------------------------------------------------------------------ golden jets


def test_golden_jets_begin_with_each_multiplicity(golden):
    assert sorted(golden.multiplicity[: LENGTH + 1]) == list(range(LENGTH + 1))
    assert len(golden) == 1000
    np.testing.assert_array_equal(golden.inputs["pf_mask"].sum((1, 2)), golden.multiplicity)


def test_a_jet_with_added_particles_has_no_particle_twice(golden):
    jet = int(np.flatnonzero(golden.multiplicity == LENGTH)[0])
    particles = golden.inputs["pf_features"][jet].T  # (P, 4)
    assert len(np.unique(particles, axis=0)) == LENGTH


def test_places_without_a_particle_have_the_padding_values():
    inputs, multiplicity = jets(50)
    padding = {"pf_features": np.array([-1.0, 0.0, 2.0, 3.0])}
    result = golden_jets(inputs, multiplicity, count=30, padding=padding)
    jet = int(np.flatnonzero(result.multiplicity[:21] == 4)[0])
    np.testing.assert_array_equal(
        result.inputs["pf_features"][jet][:, 4:], np.tile(padding["pf_features"][:, None], (1, 16))
    )
    np.testing.assert_array_equal(result.inputs["pf_mask"][jet][0], [1.0] * 4 + [0.0] * 16)


def test_few_real_jets_give_a_thousand_reproducible_golden_jets():
    inputs, multiplicity = jets(5)
    first, again = (golden_jets(copy.deepcopy(inputs), multiplicity) for _ in range(2))
    assert len(first) == 1000
    for name in NAMES:
        np.testing.assert_array_equal(first.inputs[name], again.inputs[name])
        assert first.inputs[name].dtype == np.float32
