"""ONNX Runtime on the CPU, at the optimisation levels that Triton may ask for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from common.machine import cores
from weaver.onnx.triton_config import GRAPH_LEVELS

if TYPE_CHECKING:
    import onnxruntime


def session(
    model: str | os.PathLike | bytes, level: int = 0, *, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU for an ONNX file, or the bytes of one.

    level: one of Triton's graph optimisation levels (weaver.onnx.triton_config.GRAPH_LEVELS).
    threads: of one execution; by default one a core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level]
    )
    # As many threads as this process may use: left alone, onnxruntime counts the machine's cores
    # and pins threads to them.
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3  # errors; warnings are about initializers that nothing uses
    return onnxruntime.InferenceSession(
        os.fspath(model), options, providers=["CPUExecutionProvider"]
    )


def feed_of(
    runtime: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Those of a network's inputs that its graph has: one that the network ignores is not in it."""
    return {entry.name: inputs[entry.name] for entry in runtime.get_inputs()}
