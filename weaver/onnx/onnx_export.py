"""A network as one ONNX file: dynamic in the batch axis, with its provenance inside.

    export_onnx(model, model_info, data_config, "model.onnx", metadata={"run_id": "pfn-1a2b3c4d"})

Opset 17 in IR version 8 is what ONNX Runtime 1.15, the one inside Triton 23.05, reads; torch's
newer exporter (dynamo=True) writes IR version 10, which that runtime refuses. `weaver.onnx.parity`
proves that the file computes what the network does.

Axes that `dynamic_axes` of a network file leaves free (published ones leave the number of
particles free) stay so in the graph. It is traced at the data config's length, and
`weaver.onnx.free_axes` proves that it computes what the network does at other lengths as well.
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
IR_VERSION = 8  # the newest that ONNX Runtime 1.15 is asked to read here
# not 1: the exporter would take a first axis of one for a constant and the file would work for one
# jet only
TRACE_BATCH = 3
TRACE_PLACES = 7  # of a free axis whose size neither the data config nor the network states


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
    the shape may say -1). `metadata` becomes text in the file's metadata_props. What is traced is
    `untrimmed(model)`.

    Raises InputError for an input without a fixed shape and GateError if the file written is not
    what Triton is to load.
    """
    import numpy as np
    import torch

    shapes = input_shapes(model_info, data_config)
    outputs = list(model_info["output_names"])
    free = free_axes(model_info)
    axes = {}
    for name in [*shapes, *outputs]:
        # the batch axis has the same name everywhere, whatever the network calls it
        axes[name] = {**free.get(name, {}), 0: "batch"}

    # Random numbers of each input's type and shape.
    rng = np.random.default_rng(0)
    types = model_info.get("input_types", {})
    example = []
    for name, shape in shapes.items():
        array = rng.uniform(1, 3, (TRACE_BATCH, *shape))
        example.append(torch.from_numpy(array.astype(types.get(name, np.float32))))

    network = untrimmed(model)
    with warnings.catch_warnings(), torch.no_grad(), _own_symbolics(opset):
        # Deprecation: see the module's text. Tracer: it warns at each Python number made of a
        # shape; whether one of them made the graph wrong is measured afterwards, at other batch
        # sizes and lengths.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # says what it leaves as it is
        warnings.filterwarnings("ignore", message="Constant folding")
        # of networks that change their inputs in place: those of the graph stay as they are
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
    """Replace operations for which torch's exporter writes something else than PyTorch computes."""
    import torch

    # Registration says that it is deprecated together with this exporter.
    torch.onnx.register_custom_op_symbolic("aten::atan2", _atan2, opset)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::atan2", opset)


def _atan2(graph, y, x):
    """Write atan2(y, x) for torch's exporter, which itself writes atan(y / x).

    That is NaN where both are 0, as the momenta in padded places are, and -pi instead of pi on the
    negative x axis.
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


def untrimmed(model: torch.nn.Module) -> torch.nn.Module:
    """Copy a network, on the CPU, in evaluation mode and without its trimming of padded places.

    Networks cut a batch to its fullest jet to save work. In a graph the length of the jets that it
    is traced with would become a constant. Known are `SequenceTrimmer`, which network files copy
    from weaver-core, and this project's own ParticleNet.
    """
    network = copy.deepcopy(model).cpu().eval()
    for module in network.modules():
        if type(module).__name__ == "SequenceTrimmer":
            setattr(module, "enabled", False)  # noqa: B010 (a module's class declares no such field)
        elif hasattr(module, "trims"):
            setattr(module, "trims", False)  # noqa: B010
    return network


def free_axes(model_info: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """The axes beside the batch that a network leaves free: {input or output: {axis: name}}.

    `dynamic_axes` holds them as torch.onnx.export takes them: {axis: name}, or a list of axes.
    """
    free: dict[str, dict[int, str]] = {}
    for name, stated in (model_info.get("dynamic_axes") or {}).items():
        axes = (
            stated if isinstance(stated, Mapping) else {axis: f"{name}_{axis}" for axis in stated}
        )
        free[name] = {axis: label for axis, label in axes.items() if axis}
    return free


def input_shapes(model_info: Mapping[str, Any], data_config=None) -> dict[str, tuple[int, ...]]:
    """Shape of each input without the batch axis: {name: (C, P) or (C,)}.

    The inputs are in the order in which the network takes them. These are the sizes that are
    traced: those of the data config, also where an axis is free. Raises InputError where the size
    of an axis that is not free is stated nowhere.
    """
    known = dict(getattr(data_config, "input_shapes", None) or {})
    free = free_axes(model_info)
    shapes = {}
    for name in model_info["input_names"]:
        sizes = []
        stated = known.get(name, model_info["input_shapes"][name])
        for axis, size in enumerate(stated[1:], start=1):
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
    """Put the metadata into the file, and check it.

    It must be as the ONNX standard says, self-contained, readable by Triton, and dynamic in the
    batch axis.
    """
    import onnx

    model = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    if opset <= OPSET and model.ir_version > IR_VERSION:
        raise GateError(
            f"the ONNX file came out in IR version {model.ir_version}; Triton 23.05 reads"
            f" {IR_VERSION} at most"
        )
    for value in [*model.graph.input, *model.graph.output]:
        axes = value.type.tensor_type.shape.dim
        # a network that reshapes with a number of jets leaves it in the graph as a constant
        if not axes or axes[0].HasField("dim_value"):
            raise GateError(
                f"'{value.name}' of the ONNX file has no dynamic batch axis; the network must keep"
                " the jets in the first axis"
            )
    onnx.save_model(model, os.fspath(path), save_as_external_data=False)
    onnx.checker.check_model(os.fspath(path), full_check=True)
