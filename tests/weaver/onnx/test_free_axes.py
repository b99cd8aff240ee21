"""Exported networks with a free number of particles: equal to PyTorch at every length, or
refused.
"""

from __future__ import annotations

import types

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks.published import settle
from common.errors import GateError
from weaver.nn.model.ParticleNet import ParticleNet
from weaver.onnx.free_axes import check_lengths, lengths, random_jets
from weaver.onnx.onnx_export import export_onnx, free_axes, input_shapes, without_trimming
from weaver.onnx.parity import torch_answers

LENGTH, K = 24, 8
GROUPS = {"pf_points": 2, "pf_features": 3, "pf_mask": 1}


def data_config(length: int = LENGTH, **pads: float) -> types.SimpleNamespace:
    """The part of a data config that describes the inputs of GROUPS."""
    names = {group: [f"{group}_{i}" for i in range(size)] for group, size in GROUPS.items()}
    names["pf_mask"] = ["pf_mask"]
    params = {name: {"pad_value": 0.0} for group in names.values() for name in group}
    return types.SimpleNamespace(
        input_dicts=names,
        input_shapes={group: (-1, size, length) for group, size in GROUPS.items()},
        preprocess_params=params,
    )


def info(free=None) -> dict:
    """As published network files describe themselves."""
    return {
        "input_names": list(GROUPS),
        "input_shapes": {group: (1, size, LENGTH) for group, size in GROUPS.items()},
        "output_names": ["softmax"],
        "dynamic_axes": free
        or {**{group: {0: "N", 2: "n_pf"} for group in GROUPS}, "softmax": {0: "N"}},
    }


class OfParticles(torch.nn.Module):
    """A mean over particles; subclasses fix its graph in one way or another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = torch.nn.Conv1d(3, 4, 1)
        self.last = torch.nn.Linear(4, 1)

    def forward(self, points, features, mask):
        x = self.conv(features) * mask
        return self.last(x.sum(2) / mask.sum(2).clamp(min=1))


class FixedNumber(OfParticles):
    """The number of places becomes a constant."""

    def forward(self, points, features, mask):
        places = int(features.shape[2])
        return self.last((self.conv(features) * mask).sum(2) / places)


class FixedBranch(OfParticles):
    """What is done above a length is decided while the network is traced."""

    def forward(self, points, features, mask):
        x = self.conv(features) * mask
        if features.shape[2] > LENGTH:
            x = 2 * x
        return self.last(x.sum(2))


class Nearest(OfParticles):
    """Takes K particles, and so at least K places."""

    def forward(self, points, features, mask):
        return self.last(self.conv(features).topk(K, dim=2)[0].sum(2))


class Asserts(OfParticles):
    """Refuses short jets in Python, which a graph knows nothing of."""

    def forward(self, points, features, mask):
        if features.shape[2] < K:
            raise ValueError(f"fewer than {K} places")
        return super().forward(points, features, mask)


class Embedded(OfParticles):
    """Adds an embedding of the place, for no more places than it was built with."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.rand(1, 4, LENGTH))

    def forward(self, points, features, mask):
        x = self.conv(features) + self.embedding[:, :, : features.shape[2]]
        return self.last((x * mask).sum(2))


def particle_net(**options) -> torch.nn.Module:
    torch.manual_seed(2)
    layers = {"conv_params": [(K, (8, 8)), (K, (8,))], "fc_params": [(8, 0.0)], **options}
    return settle(ParticleNet(input_dims=3, num_classes=2, **layers))


@pytest.mark.parametrize(
    "options",
    [{"trim": False}, {"trim": True}, {"use_counts": False}, {"use_fusion": False}],
    ids=str,
)
@pytest.mark.parametrize("length", [LENGTH, 5], ids=["longer than k", "shorter than k"])
def test_particle_net_gives_the_same_output_at_every_length(tmp_path, options, length):
    model, config = particle_net(**options), data_config(length)
    path = export_onnx(model, info(), config, tmp_path / "model.onnx")
    assert check_lengths(model, info(), config, path) < 1e-4

    runtime = onnxruntime.InferenceSession(path)
    for places in (1, K - 1, K, K + 1, K + 2, length, length + 1, 40):
        shapes = {name: (size, places) for name, size in GROUPS.items()}
        jets = random_jets(config, shapes, own=True)
        expected = torch_answers(without_trimming(model), list(jets), jets)
        np.testing.assert_allclose(runtime.run(None, jets)[0], expected, atol=1e-4)


def test_the_graph_is_traced_at_the_length_of_the_data_config():
    assert input_shapes(info(), data_config(50)) == {
        "pf_points": (2, 50),
        "pf_features": (3, 50),
        "pf_mask": (1, 50),
    }


def test_all_multiplicities_near_k_are_compared():
    shapes = {name: (size, 40) for name, size in GROUPS.items()}
    mask = random_jets(data_config(40), shapes, own=True)["pf_mask"]
    assert {1, 15, 16, 17, 40} <= set(mask.sum((1, 2)).astype(int).tolist())
    assert {1, 15, 16, 17, 18, 64, 65, 84} <= set(lengths(64))


@pytest.mark.parametrize("network", [Nearest, Embedded, OfParticles])
def test_a_graph_may_fail_at_lengths_where_the_network_fails(tmp_path, network):
    model = network().eval()
    path = export_onnx(model, info(), data_config(), tmp_path / "model.onnx")
    assert check_lengths(model, info(), data_config(), path) < 1e-5


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (FixedNumber, "places = int(features.shape[2])"),
        (FixedBranch, "if features.shape[2] > LENGTH:"),
        (Asserts, "if features.shape[2] < K:"),
    ],
)
def test_a_graph_that_differs_is_refused_with_the_line_that_fixes_it(tmp_path, network, line):
    model = network().eval()
    path = export_onnx(model, info(), data_config(), tmp_path / "model.onnx")
    with pytest.raises(GateError) as error:
        check_lengths(model, info(), data_config(), path)
    assert line in str(error.value)
    assert __file__ in str(error.value)


def test_a_free_axis_of_variables_keeps_its_size(tmp_path):
    """Published JEC networks free the axis of the jet's variables, which a linear layer fixes."""

    class WithJet(OfParticles):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.nn.Linear(4 + 5, 1)

        def forward(self, points, features, mask, jet):
            x = (self.conv(features) * mask).sum(2)
            return self.last(torch.cat((x, jet), dim=1))

    model_info = info()
    model_info["input_names"] = [*GROUPS, "jet_features"]
    model_info["input_shapes"]["jet_features"] = (1, 5)
    model_info["dynamic_axes"]["jet_features"] = {0: "N", 1: "n_jet"}
    model = WithJet().eval()
    path = export_onnx(model, model_info, data_config(), tmp_path / "model.onnx")
    assert input_shapes(model_info, data_config())["jet_features"] == (5,)
    assert check_lengths(model, model_info, data_config(), path) < 1e-5


def test_free_axes_may_be_a_list(tmp_path):
    model_info = info({**{group: [0, 2] for group in GROUPS}, "softmax": [0]})
    assert free_axes(model_info)["pf_mask"].keys() == {2}
    model = OfParticles().eval()
    path = export_onnx(model, model_info, data_config(), tmp_path / "model.onnx")
    assert check_lengths(model, model_info, data_config(), path) < 1e-5
    runtime = onnxruntime.InferenceSession(path)
    assert all(isinstance(entry.shape[2], str) for entry in runtime.get_inputs())


def test_a_network_may_change_its_inputs_in_place(tmp_path):
    class InPlace(OfParticles):
        def forward(self, points, features, mask):
            features += mask
            return super().forward(points, features, mask)

    model = InPlace().eval()
    path = export_onnx(model, info(), data_config(), tmp_path / "model.onnx")
    assert check_lengths(model, info(), data_config(), path) < 1e-5


def test_a_network_may_take_the_logarithm_of_a_variable(tmp_path):
    class Logarithm(OfParticles):
        def forward(self, points, features, mask):
            logs = torch.log(features.masked_fill(mask == 0, 1))
            return self.last((self.conv(logs) * mask).sum(2))

    model = Logarithm().eval()
    path = export_onnx(model, info(), data_config(), tmp_path / "model.onnx")
    assert check_lengths(model, info(), data_config(), path) < 1e-5


def test_a_network_without_finite_outputs_is_refused(tmp_path):
    class Divides(OfParticles):
        def forward(self, points, features, mask):
            return super().forward(points, features, mask) / (mask - mask).sum(2)

    model = Divides().eval()
    path = export_onnx(model, info(), data_config(), tmp_path / "model.onnx")
    with pytest.raises(GateError, match=r"own answers at .* are not finite"):
        check_lengths(model, info(), data_config(), path)


def test_trimming_of_a_copied_class_is_off_in_the_graph(tmp_path):
    class SequenceTrimmer(torch.nn.Module):  # as in weaver-core 0.5.3, after its first batches
        enabled = True

        def forward(self, x, mask):
            if not self.enabled:
                return x, mask
            length = int(mask.sum(-1).max())
            return x[..., :length], mask[..., :length]

    class Trims(OfParticles):
        def __init__(self) -> None:
            super().__init__()
            self.trimmer = SequenceTrimmer()

        def forward(self, points, features, mask):
            features, mask = self.trimmer(features, mask)
            return self.last((self.conv(features) * mask).mean(2))

    model = Trims().eval()
    path = export_onnx(model, info(), data_config(), tmp_path / "model.onnx")
    assert check_lengths(model, info(), data_config(), path) < 1e-5
    assert model.trimmer.enabled


def test_arctan2_at_the_origin_is_zero_as_in_pytorch(tmp_path):
    """torch's exporter divides, which gives NaN at the origin, and -pi for pi."""

    class Angle(torch.nn.Module):
        def forward(self, x):
            return torch.atan2(x[:, 0], x[:, 1])

    values = torch.tensor([-2.0, 0.0, 3.0])
    points = torch.cartesian_prod(values, values).T[None].repeat(3, 1, 1)  # (3, 2, 9)
    model_info = {
        "input_names": ["x"],
        "input_shapes": {"x": (1, 2, 9)},
        "output_names": ["angle"],
    }
    path = export_onnx(Angle(), model_info, None, tmp_path / "model.onnx")
    answers = onnxruntime.InferenceSession(path).run(None, {"x": points.numpy()})[0]
    np.testing.assert_allclose(answers, Angle()(points), atol=1e-6)
