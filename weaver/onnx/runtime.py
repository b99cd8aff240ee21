"""ONNX Runtime on the CPU, at the optimisation levels that Triton may ask for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from weaver.onnx.triton_config import GRAPH_LEVELS

if TYPE_CHECKING:
    import onnxruntime


def session(model: str | os.PathLike | bytes, level: int = 0) -> onnxruntime.InferenceSession:
    """A session on the CPU for an ONNX file, or the bytes of one.

    level: one of Triton's graph optimisation levels (weaver.onnx.triton_config.GRAPH_LEVELS).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level]
    )
    # As many threads as this process may use: left alone, onnxruntime counts the machine's cores
    # and pins threads to them.
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3  # errors; warnings are about initializers that nothing uses
    return onnxruntime.InferenceSession(
        os.fspath(model), options, providers=["CPUExecutionProvider"]
    )
