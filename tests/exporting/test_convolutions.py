"""Chains of layers over particles are convolutions in the file, without transpositions between them, and answer the same."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks.published import settle
from networks.fast import sum_of_particles
from networks.layers import LinearNorm
from networks.pfn_regressor_open import get_model
from tests.networks.jets import config, jets
from weaver.onnx_export import export_onnx
from weaver.parity import session

PFN = ("pf_features", "pf_mask", "jet_features")
INFO = {"input_names": ["x", "mask"], "input_shapes": {"x": (1, 4, 5), "mask": (1, 1, 5)}, "output_names": ["y"]}


class Chain(torch.nn.Module):
    """x (N, 4, 5), mask (N, 1, 5) -> (N, 2)."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(LinearNorm(a, b, norm) for a, b in ((4, 6), (6, 6), (6, 3)))
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x, mask):
        x = x.transpose(1, 2)
        for layer in self.layers:
            x = layer(x, relu=True, chained=True)
        return self.head(sum_of_particles(x, mask))


@pytest.mark.parametrize(("norm", "left"), [("none", 0), ("batch", 0), ("layer", 5)])
@pytest.mark.parametrize("count", [1, 7])
def test_a_chain_of_layers_is_a_chain_of_convolutions_with_the_same_answer(tmp_path, norm, left, count):
    torch.manual_seed(0)
    model = settle(Chain(norm))
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert operations.count("Conv") == 3
    assert (operations.count("Gemm"), operations.count("MatMul")) == (1, 1)  # the head, the sum over particles
    assert optimised(path, tmp_path).count("Transpose") == left  # layer normalisation needs the features last
    rng = np.random.default_rng(1)
    feed = {"x": rng.normal(size=(count, 4, 5)).astype(np.float32), "mask": rng.integers(0, 2, (count, 1, 5)).astype(np.float32)}
    with torch.no_grad():
        expected = model(*map(torch.from_numpy, feed.values())).numpy()
    np.testing.assert_allclose(session(path).run(None, feed)[0], expected, atol=1e-6)


def optimised(path, folder) -> list[str]:
    """The operations that ONNX Runtime makes of the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("level", [0, 2], ids=["optimised", "as exported"])
def test_what_lies_in_padding_reaches_no_answer_of_the_exported_particle_flow_network(particle_flow_network, junk, level):
    batch = {name: x.numpy() for name, x in jets([30, 4, 1, 0]).items() if name in PFN}
    dirty = {**batch, "pf_features": np.where(batch["pf_mask"] == 0, np.float32(junk), batch["pf_features"])}
    runtime = session(particle_flow_network, level)
    np.testing.assert_array_equal(runtime.run(None, dirty)[0], runtime.run(None, batch)[0])


@pytest.fixture(scope="module")
def particle_flow_network(tmp_path_factory):
    made = config(*PFN)
    model, info = get_model(made, conv_dim=12, fc_dim=16)
    return export_onnx(settle(model), info, made, tmp_path_factory.mktemp("pfn") / "model.onnx")
