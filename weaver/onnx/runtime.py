"""Run models in ONNX Runtime on the CPU, at Triton's graph optimisation levels."""

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
    """Open a session on the CPU for an ONNX file, or for the bytes of one.

    level: one of weaver.onnx.triton_config.GRAPH_LEVELS. threads: for one execution; by default one
    for each core.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(
        onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[level]
    )
    # By default onnxruntime starts a thread for each core of the machine and pins it, also if the
    # process may use fewer cores.
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3  # errors only; warnings are about unused initializers
    return onnxruntime.InferenceSession(
        os.fspath(model), options, providers=["CPUExecutionProvider"]
    )


def feed_of(
    runtime: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Select the inputs that the graph has; it lacks inputs that the network ignores.

    Args:
        runtime: session of the graph.
        inputs: name -> array in the input's shape, (N, ...).
    """
    return {entry.name: inputs[entry.name] for entry in runtime.get_inputs()}
