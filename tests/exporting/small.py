"""A small network over particles, random jets for it, and a repository made of both, for the tests
of export and serving.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from serving import golden
from weaver.onnx.onnx_export import export_onnx
from weaver.onnx.parity import torch_answers
from weaver.onnx.triton_config import triton_config

LENGTH = 20
INFO = {
    "input_names": ["pf_features", "pf_mask", "jet_features"],
    "input_shapes": {
        "pf_features": (1, 4, LENGTH),
        "pf_mask": (1, 1, LENGTH),
        "jet_features": (1, 3),
    },
    "output_names": ["output"],
}


class Network(torch.nn.Module):
    """A mean over real particles, joined with the jet's features.

    (N, 4, P), (N, 1, P), (N, 3) -> (N, 1).
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.particles = torch.nn.Sequential(
            torch.nn.Conv1d(4, 16, 1), torch.nn.ReLU(), torch.nn.Conv1d(16, 16, 1), torch.nn.ReLU()
        )
        self.head = torch.nn.Sequential(
            torch.nn.Linear(19, 16), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(16, 1)
        )

    def forward(self, features, mask, jet):
        mean = (self.particles(features) * mask).sum(2) / mask.sum(2).clamp(min=1)
        return self.head(torch.cat([mean, jet], 1))


def network(seed: int = 0) -> Network:
    return Network(seed).eval()


def jets(count: int = 300, seed: int = 1) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of random jets with 1 to LENGTH - 1 particles, and how many each has."""
    rng = np.random.default_rng(seed)
    multiplicity = rng.integers(1, LENGTH, count)
    mask = (np.arange(LENGTH) < multiplicity[:, None]).astype(np.float32)[:, None]
    inputs = {
        "pf_features": rng.normal(size=(count, 4, LENGTH)).astype(np.float32) * mask,
        "pf_mask": mask,
        "jet_features": rng.normal(size=(count, 3)).astype(np.float32),
    }
    return inputs, multiplicity


def write_repository(folder: Path, name: str) -> tuple[Path, Path]:
    """A Triton repository with the model `name`, and its golden files; returns the
    folders of both.
    """
    onnx_path = folder / "model" / name / "1" / "model.onnx"
    onnx_path.parent.mkdir(parents=True)
    model = network()
    export_onnx(model, INFO, None, onnx_path)
    (onnx_path.parents[1] / "config.pbtxt").write_text(triton_config(onnx_path, name))
    inputs, _ = jets()
    for size in golden.SIZES:
        some = {key: values[:size] for key, values in inputs.items()}
        answers = {"output": torch_answers(model, INFO["input_names"], some)}
        golden.write(folder / "golden", some, name, answers)
    return folder / "model", folder / "golden"
