"""Chains of layers over particles are convolutions in the file, without transpositions between them, and answer the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from networks.fast import sum_of_particles
from networks.layers import LinearNorm
from tests.networks.jets import settle
from weaver.onnx_export import export_onnx
from weaver.parity import session

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


@pytest.mark.parametrize(("norm", "transpositions"), [("none", 0), ("batch", 0), ("layer", 6)])
@pytest.mark.parametrize("jets", [1, 7])
def test_a_chain_of_layers_is_a_chain_of_convolutions_with_the_same_answer(tmp_path, norm, transpositions, jets):
    torch.manual_seed(0)
    model = settle(Chain(norm))
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert operations.count("Conv") == 3
    assert operations.count("Transpose") == transpositions
    assert (operations.count("Gemm"), operations.count("MatMul")) == (1, 0)  # the head
    rng = np.random.default_rng(1)
    feed = {"x": rng.normal(size=(jets, 4, 5)).astype(np.float32), "mask": rng.integers(0, 2, (jets, 1, 5)).astype(np.float32)}
    with torch.no_grad():
        expected = model(*map(torch.from_numpy, feed.values())).numpy()
    np.testing.assert_allclose(session(path).run(None, feed)[0], expected, atol=1e-6)
