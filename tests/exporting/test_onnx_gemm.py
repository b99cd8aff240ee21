"""Chains of layers over particles become matrix products, with the same answers to the last bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from weaver.onnx_export import export_onnx
from weaver.parity import session

INFO = {"input_names": ["x"], "input_shapes": {"x": (1, 5, 4)}, "output_names": ["y"]}


class Layers(torch.nn.Module):
    """(N, 5, 4) -> (N, 5, 3); the first layer's output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = torch.nn.Linear(4, 6), torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(x + torch.relu(self.second(x)))


@pytest.mark.parametrize("jets", [1, 7])
def test_layers_over_particles_are_matrix_products_with_the_same_answer(tmp_path, jets):
    torch.manual_seed(0)
    model = Layers().eval()
    path = export_onnx(model, INFO, None, tmp_path / "model.onnx")
    operations = [node.op_type for node in onnx.load(path).graph.node]
    assert operations.count("Gemm") == 3
    assert "MatMul" not in operations
    x = np.random.default_rng(1).normal(size=(jets, 5, 4)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session(path).run(None, {"x": x})[0], expected, atol=1e-6)
