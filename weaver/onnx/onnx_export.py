"""Export a network as one ONNX file, dynamic in the batch axis, with metadata about its origin.

    export_onnx(model, model_info, data_config, "model.onnx", metadata={"run_id": "pfn-1a2b3c4d"})

The file has opset 17 and IR version 8, which ONNX Runtime 1.15 in Triton 23.05 can read. torch's
newer exporter (dynamo=True) writes IR version 10, which that runtime rejects. `weaver.onnx.parity`
checks that the file computes the same as the network.

Axes that `dynamic_axes` of a network file leaves free (in published ones the number of particles)
stay free in the graph. It is traced at the data config's length; `weaver.onnx.free_axes` checks
other lengths.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import GateError, InputError

if TYPE_CHECKING:
    import torch

OPSET = 17
IR_VERSION = 8  # the highest that ONNX Runtime 1.15 in Triton 23.05 must read
# not 1: the exporter would treat an axis of size one as constant, and the file would work for one
# jet only
TRACE_BATCH = 3
TRACE_PLACES = 7  # size of a free axis if neither the data config nor the network gives one


def export_onnx(
    model,
    model_info: Mapping[str, Any],
    data_config,
    path: str | os.PathLike,
    *,
    opset: int = OPSET,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` as one ONNX file to `path`, and return the path.

    model_info: that of get_model: input_names, input_shapes (the first axis is the batch) and
    output_names; optional: input_types {name: numpy type}, default float32, and dynamic_axes {name:
    {axis: what it counts}}. All other axes but the batch are fixed. data_config: its `input_shapes`
    come before those of model_info. metadata: becomes text in the file's metadata_props.

    Raises InputError for an input without a fixed shape, and GateError if Triton could not load the
    file.
    """
    import numpy as np
    import torch

    shapes = input_shapes(model_info, data_config)
    outputs = list(model_info["output_names"])
    free = free_axes(model_info)
    axes = {}
    for name in [*shapes, *outputs]:
        # the batch axis has the same name in all tensors, which may differ from the network's name
        axes[name] = {**free.get(name, {}), 0: "batch"}

    # Random numbers of each input's type and shape.
    rng = np.random.default_rng(0)
    types = model_info.get("input_types", {})
    example = []
    for name, shape in shapes.items():
        array = rng.uniform(1, 3, (TRACE_BATCH, *shape))
        example.append(torch.from_numpy(array.astype(types.get(name, np.float32))))

    network = without_trimming(model)
    with warnings.catch_warnings(), torch.no_grad(), _own_symbolics(opset):
        # Deprecation: see the module's docstring. Tracer: it warns about each conversion of a shape
        # to a Python number; whether that made the graph wrong is checked later, at other batch
        # sizes and lengths.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # it reports operations that it does not fold
        warnings.filterwarnings("ignore", message="Constant folding")
        # about networks that change their inputs in place; the graph's inputs do not change
        warnings.filterwarnings("ignore", message="ONNX Preprocess - Removing mutation")
        torch.onnx.export(
            network,
            tuple(example),
            os.fspath(path),
            input_names=list(shapes),
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
        )
    _finish(path, opset, metadata or {})
    return Path(path)


@contextlib.contextmanager
def _own_symbolics(opset: int) -> Iterator[None]:
    """Replace operations that torch's exporter would write with another result than PyTorch's."""
    import torch

    # The registration is deprecated together with this exporter.
    torch.onnx.register_custom_op_symbolic("aten::atan2", _atan2, opset)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::atan2", opset)


def _atan2(graph, y, x):
    """Write atan2(y, x) in place of torch's exporter, which writes atan(y / x).

    The exporter's form is NaN if both are 0, as for momenta in padded places, and -pi instead of pi
    on the negative x axis.
    """
    import torch

    def constant(value: float):
        return graph.op("Constant", value_t=torch.tensor(value, dtype=x.type().dtype()))

    zero = constant(0.0)
    x_is_zero = graph.op("Equal", x, zero)
    is_origin = graph.op("And", x_is_zero, graph.op("Equal", y, zero))
    angle = graph.op("Atan", graph.op("Div", y, graph.op("Where", is_origin, constant(1.0), x)))
    above = graph.op("Add", angle, constant(math.pi))
    below = graph.op("Sub", angle, constant(math.pi))
    left = graph.op("Where", graph.op("GreaterOrEqual", y, zero), above, below)
    return graph.op("Where", graph.op("Less", x, zero), left, angle)


def without_trimming(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a network to the CPU, in evaluation mode, and switch off its trimming of padding.

    Networks trim a batch to its longest jet to save work. In a graph, the length of the traced jets
    would then become a constant. This switches off `SequenceTrimmer`, which network files copy from
    weaver-core, and the trimming of this project's ParticleNet.
    """
    network = copy.deepcopy(model).cpu().eval()
    for module in network.modules():
        if type(module).__name__ == "SequenceTrimmer":
            setattr(module, "enabled", False)  # noqa: B010 (a module's class declares no such field)
        elif hasattr(module, "trims"):
            setattr(module, "trims", False)  # noqa: B010
    return network


def free_axes(model_info: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """Return the free axes of a network, without the batch: input or output -> {axis: name}.

    They come from model_info's `dynamic_axes`, in a form of torch.onnx.export: {axis: name}, or a
    list of axes.
    """
    free: dict[str, dict[int, str]] = {}
    for name, open_axes in (model_info.get("dynamic_axes") or {}).items():
        axes = (
            open_axes
            if isinstance(open_axes, Mapping)
            else {axis: f"{name}_{axis}" for axis in open_axes}
        )
        free[name] = {axis: label for axis, label in axes.items() if axis}
    return free


def input_shapes(model_info: Mapping[str, Any], data_config=None) -> dict[str, tuple[int, ...]]:
    """Return the shapes for tracing a network, without the batch axis: input -> (C, P) or (C,).

    The inputs are in the network's order. Sizes come from the data config, also for free axes.
    Raises InputError if an axis that is not free has no size.
    """
    config_shapes = dict(getattr(data_config, "input_shapes", None) or {})
    free = free_axes(model_info)
    shapes = {}
    for name in model_info["input_names"]:
        sizes = []
        shape = config_shapes.get(name, model_info["input_shapes"][name])
        for axis, size in enumerate(shape[1:], start=1):
            is_open = axis in free.get(name, {}) and int(size) < 1
            sizes.append(TRACE_PLACES if is_open else int(size))
        if not sizes or min(sizes) < 1:
            raise InputError(
                f"input '{name}' cannot be exported with shape {('N', *sizes)}: beside the jets it"
                " needs at least one axis of fixed size; give its group a 'length' in the data"
                " config, or, if it is one value a jet, a second variable"
            )
        shapes[name] = tuple(sizes)
    return shapes


def _finish(path: str | os.PathLike, opset: int, metadata: Mapping[str, Any]) -> None:
    """Add the metadata to the file, and check that it is valid, complete and dynamic in the batch.

    Raises GateError if Triton 23.05 could not read it, or an axis of the batch is fixed.
    """
    import onnx

    model = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    if opset <= OPSET and model.ir_version > IR_VERSION:
        raise GateError(
            f"the ONNX file has IR version {model.ir_version}; Triton 23.05 reads {IR_VERSION} at"
            " most"
        )
    for value in [*model.graph.input, *model.graph.output]:
        axes = value.type.tensor_type.shape.dim
        # if a network reshapes with the number of jets, it becomes a constant of the graph
        if not axes or axes[0].HasField("dim_value"):
            raise GateError(
                f"'{value.name}' of the ONNX file has no dynamic batch axis; the network must keep"
                " the jets in the first axis"
            )
    onnx.save_model(model, os.fspath(path), save_as_external_data=False)
    onnx.checker.check_model(os.fspath(path), full_check=True)
