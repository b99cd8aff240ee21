"""A network as one ONNX file: dynamic in the batch axis only, with its provenance inside.

    export_onnx(model, model_info, data_config, "model.onnx", metadata={"run_id": "pfn-1a2b3c4d"})

Opset 17 in IR version 8 is what ONNX Runtime 1.15, the one inside Triton 23.05, reads; torch's
newer exporter (dynamo=True) writes IR version 10, which that runtime refuses. `weaver.onnx.parity`
proves that the file computes what the network does.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import GateError, InputError

OPSET = 17
IR_VERSION = 8  # the newest that ONNX Runtime 1.15 is asked to read here
# not 1: the exporter would take a first axis of one for a constant and the file would work for one
# jet only
TRACE_BATCH = 3
TRACE_PLACES = 7  # of an axis whose size is free, for the same reason


def export_onnx(
    model,
    model_info: Mapping[str, Any],
    data_config,
    path: str | os.PathLike,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` as ONNX to `path` (one file, no sidecar) and return the path.

    `model_info` is that of the network's get_model: input_names, input_shapes (first axis the
    batch) and output_names. The shape of an input comes from `data_config.input_shapes` where it is
    given there. Inputs are float32 unless `input_types` {name: numpy type} says otherwise; axes
    beside the batch are fixed unless `dynamic_axes` {name: {axis: what it counts}} names them (then
    the shape may say -1). `metadata` becomes text in the file's metadata_props. A copy of the model
    is traced, on the CPU and in evaluation mode.

    Raises InputError for an input without a fixed shape and GateError if the file written is not
    what Triton is to load.
    """
    import torch

    free = {
        name: {axis: label for axis, label in axes.items() if axis}
        for name, axes in model_info.get("dynamic_axes", {}).items()
    }
    shapes = input_shapes(model_info, data_config)
    outputs = list(model_info["output_names"])
    example = _example(shapes, model_info.get("input_types", {}))
    network = copy.deepcopy(model).cpu().eval()
    with warnings.catch_warnings(), torch.no_grad():
        # Deprecation: see the module's text. Tracer: it warns at each Python number made of a
        # shape; whether one of them made the graph wrong is measured afterwards, at other batch
        # sizes.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # says what it leaves as it is
        warnings.filterwarnings("ignore", message="Constant folding")
        torch.onnx.export(
            network,
            example,
            os.fspath(path),
            input_names=list(shapes),
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} | free.get(name, {}) for name in [*shapes, *outputs]},
            opset_version=opset,
            dynamo=False,
        )
    _finish(path, opset, metadata or {})
    return Path(path)


def input_shapes(model_info: Mapping[str, Any], data_config=None) -> dict[str, tuple[int, ...]]:
    """Shape of each input without the batch axis, in the order in which the network takes them:
    {name: (C, P) or (C,)}.

    An axis that is free gets the size with which it is traced. Raises InputError where another size
    is not fixed, since the multiplicity of the exported graph is that of the data config.
    """
    known = dict(getattr(data_config, "input_shapes", None) or {})
    free = model_info.get("dynamic_axes", {})
    shapes = {}
    for name in model_info["input_names"]:
        shape = tuple(int(size) for size in known.get(name, model_info["input_shapes"][name])[1:])
        shape = tuple(
            TRACE_PLACES if axis in free.get(name, {}) else size
            for axis, size in enumerate(shape, start=1)
        )
        if not shape or any(size < 1 for size in shape):
            raise InputError(
                f"input '{name}' cannot be exported with shape {('N', *shape)}: beside the jets it"
                " needs at least one axis of fixed size; give its group a 'length' in the data"
                " config, or, if it is one value a jet, a second variable"
            )
        shapes[name] = shape
    return shapes


def _example(shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, Any]) -> tuple:
    """Random numbers of each input's type and shape."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(1, 3, (TRACE_BATCH, *shape)) for name, shape in shapes.items()}
    return tuple(
        torch.from_numpy(array.astype(types.get(name, np.float32)))
        for name, array in arrays.items()
    )


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata_props of an ONNX file."""
    import onnx

    return {
        entry.key: entry.value
        for entry in onnx.load(os.fspath(path), load_external_data=False).metadata_props
    }


def _finish(path: str | os.PathLike, opset: int, metadata: Mapping[str, Any]) -> None:
    """Check the file as the ONNX standard does, put the metadata into it, and make sure that it is
    self-contained.
    """
    import onnx

    graph = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in metadata.items()})
    if opset <= OPSET and graph.ir_version > IR_VERSION:
        raise GateError(
            f"the ONNX file came out in IR version {graph.ir_version}; Triton 23.05 reads"
            f" {IR_VERSION} at most"
        )
    _check_batch_axes([*graph.graph.input, *graph.graph.output])
    onnx.save_model(graph, os.fspath(path), save_as_external_data=False)
    onnx.checker.check_model(os.fspath(path), full_check=True)


def _check_batch_axes(values: Sequence) -> None:
    for value in values:
        first = value.type.tensor_type.shape.dim[:1]
        if not first or first[0].HasField("dim_value"):
            raise GateError(
                f"'{value.name}' of the ONNX file has no dynamic batch axis; the network must keep"
                " the jets in the first axis"
            )
