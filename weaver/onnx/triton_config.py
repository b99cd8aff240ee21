"""Write and check Triton's config.pbtxt for an ONNX file.

    text = triton_config("model.onnx", "pfn-1a2b3c4d")

Names, types and dims are read from the graph; `check_config` compares a config that a user has
edited with the graph. Only Triton's protobuf messages are loaded, not its client:
`tritonclient.grpc` and kserve cannot be imported into the same process.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import os
import types
from collections.abc import Mapping
from typing import Any

from common.errors import InputError, unknown

MAX_BATCH_SIZE = 1024  # jets in one execution, unless it was measured (weaver/onnx/memory.py)
PLACES = 128  # size of free axes in a warm-up: about the number of candidates of a jet
# Device -> Triton's kind of instance. With KIND_AUTO a model gets one instance on each GPU, or one
# on the CPU if there is no GPU.
DEVICES = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
# name of the variant for one machine: <model>/configs/local.pbtxt, which Triton uses with
# --model-config-name=local
LOCAL = "local"

# Instances of the local variant, between which its backend (serving/backends) divides the cores:
# one sends its response while another computes.
LOCAL_INSTANCES = 2

# Triton's optimization.graph.level -> the name of ONNX Runtime's GraphOptimizationLevel, as
# Triton's ONNX Runtime backend maps them.
GRAPH_LEVELS = {
    0: "ORT_ENABLE_ALL",
    1: "ORT_ENABLE_EXTENDED",
    -1: "ORT_ENABLE_BASIC",
    2: "ORT_DISABLE_ALL",
}

# onnx.TensorProto.DataType -> Triton's DataType.
_TYPES = {
    "FLOAT": "TYPE_FP32",
    "DOUBLE": "TYPE_FP64",
    "FLOAT16": "TYPE_FP16",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
}

Signature = dict[str, tuple[int, list[int]]]
"""Name of a tensor -> Triton's data type, and the shape with -1 for a dynamic axis."""


def triton_config(
    onnx_path: str | os.PathLike,
    name: str,
    *,
    max_batch_size: int = MAX_BATCH_SIZE,
    graph_level: int = 0,
    warmup: tuple[int, ...] | None = None,
    device: str = "auto",
    instances: int = 1,
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """Make the text of config.pbtxt for an ONNX file, which Triton serves as `name`.

    max_batch_size: most jets in one execution; 0 switches batching off. graph_level: one of
    GRAPH_LEVELS. warmup: batch sizes that Triton runs before the model is ready; default: 1 and the
    largest, so that no request waits for memory to be allocated. device: one of DEVICES.
    instances: copies of the model on each device. parameters: those of the backend, such as
    {"intra_op_thread_count": 2}, and others that only clients read. Raises InputError for a graph
    without a dynamic batch axis, a type that Triton does not know, or an unknown level or device.
    """
    from google.protobuf import text_format

    if graph_level not in GRAPH_LEVELS:
        raise InputError(
            unknown("graph optimisation level", str(graph_level), map(str, GRAPH_LEVELS))
        )
    if device not in DEVICES:
        raise InputError(unknown("device", device, DEVICES))
    inputs, outputs = graph_signature(onnx_path)
    config = messages().ModelConfig(
        name=name,
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        default_model_filename="model.onnx",
    )
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for tensor, (data_type, shape) in tensors.items():
            field.add(name=tensor, data_type=data_type, dims=_dims(tensor, shape, max_batch_size))
    config.version_policy.latest.num_versions = 1
    # By default one instance: a second one would wait for the first on a GPU, and double the
    # threads of ONNX Runtime on a CPU.
    config.instance_group.add(
        count=instances, kind=getattr(messages().ModelInstanceGroup, DEVICES[device])
    )
    config.optimization.graph.level = graph_level
    if max_batch_size > 1:
        # present and empty: waiting requests are combined, but no request waits to be combined
        config.dynamic_batching.SetInParent()
    warmup_sizes = [min(size, max(max_batch_size, 1)) for size in warmup or (1, max_batch_size)]
    for size in dict.fromkeys(warmup_sizes):  # each once
        _add_warmup(config, size)
    for key, value in (parameters or {}).items():
        config.parameters[key].string_value = str(value)
    return text_format.MessageToString(
        config, use_short_repeated_primitives=True, use_index_order=True
    )


def graph_signature(onnx_path: str | os.PathLike) -> tuple[Signature, Signature]:
    """Read the inputs and outputs of an ONNX file; returns (inputs, outputs).

    Raises InputError for a type that Triton does not know.
    """
    import onnx

    graph = onnx.load(os.fspath(onnx_path), load_external_data=False).graph
    # old files list the weights among the inputs
    constants = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in constants]
    inputs = {value.name: _signature(value) for value in values}
    outputs = {value.name: _signature(value) for value in graph.output}
    return inputs, outputs


def parse_config(text: str, where: str = "config.pbtxt"):
    """Parse a config.pbtxt to a ModelConfig message; `where` names it in errors.

    Raises InputError, with line and column, for text that Triton could not read.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, messages().ModelConfig())
    except text_format.ParseError as error:
        raise InputError(
            f"{where} is not a Triton model configuration: {error}; correct the file there"
        ) from None


def check_config(text: str, onnx_path: str | os.PathLike, where: str = "config.pbtxt"):
    """Parse a config.pbtxt and compare it with its ONNX file.

    Returns the ModelConfig message. Raises InputError that names the tensor, its entry in the
    config, and its type or shape in the file.
    """
    config = parse_config(text, where)
    inputs, outputs = graph_signature(onnx_path)
    missing = sorted(set(inputs) - {entry.name for entry in config.input})
    if missing:
        raise InputError(f"{where}: input '{missing[0]}' of the ONNX file is not listed; add it")
    for kind, entries, tensors in (
        ("input", config.input, inputs),
        ("output", config.output, outputs),
    ):
        for entry in entries:
            if entry.name not in tensors:
                raise InputError(f"{where}: {unknown(kind, entry.name, tensors)}")
            _check_entry(
                f"{where}: {kind} '{entry.name}'",
                entry,
                config.max_batch_size,
                *tensors[entry.name],
            )
    return config


def _check_entry(where: str, entry, max_batch_size: int, data_type: int, shape: list[int]) -> None:
    """Raise InputError if type or dims of a tensor differ between config and ONNX file."""
    name = messages().DataType.Name
    if entry.data_type != data_type:
        raise InputError(f"{where} is {name(entry.data_type)}, the ONNX file has {name(data_type)}")
    dims = ([-1] if max_batch_size > 0 else []) + list(entry.dims)
    same_rank = len(dims) == len(shape)
    # -1, on either side, stands for any size
    if not same_rank or any(
        dim != size for dim, size in zip(dims, shape, strict=True) if -1 not in (dim, size)
    ):
        raise InputError(
            f"{where} has dims {list(entry.dims)}, with batch axis {dims}; the ONNX file has"
            f" {shape}; write these"
        )
    if max_batch_size > 0 and shape[0] != -1:
        raise InputError(
            f"{where}: max_batch_size {max_batch_size} needs a dynamic first axis, the ONNX file"
            f" has {shape}"
        )


def _signature(value) -> tuple[int, list[int]]:
    """Return Triton's data type and the shape of a tensor of the graph."""
    import onnx

    tensor = value.type.tensor_type
    element = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if element not in _TYPES:
        raise InputError(
            f"'{value.name}' of the ONNX file is {element}, which Triton cannot pass on; there are:"
            f" {', '.join(_TYPES)}"
        )
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return messages().DataType.Value(_TYPES[element]), shape


def _dims(name: str, shape: list[int], max_batch_size: int) -> list[int]:
    """Return the dims in config.pbtxt: without the batch axis, unless batching is off."""
    if max_batch_size == 0:
        return shape
    if shape[:1] != [-1]:
        raise InputError(
            f"'{name}' of the ONNX file has shape {shape}: max_batch_size {max_batch_size} needs a"
            " dynamic first axis"
        )
    # Triton requires at least one dim besides the batch, so it cannot batch outputs of shape (N,).
    if len(shape) == 1:
        raise InputError(
            f"'{name}' of the ONNX file has shape {shape}; make it (N, 1), so that a dimension is"
            " left beside the batch"
        )
    return shape[1:]


def _add_warmup(config, batch_size: int) -> None:
    """Add a warm-up: a batch of jets that Triton runs before the model is ready."""
    is_batched = config.max_batch_size > 0
    sample = config.model_warmup.add(
        name=f"batch {batch_size}", batch_size=batch_size if is_batched else 0
    )
    for entry in config.input:
        dims = [PLACES if size == -1 else size for size in entry.dims]
        if not is_batched:
            dims[0] = 1  # then the dims begin with the batch axis
        tensor = sample.inputs[entry.name]
        tensor.data_type = entry.data_type
        tensor.dims.extend(dims)
        # a jet without particles, which the gate has tried on every model
        tensor.zero_data = True


@functools.cache
def messages():
    """Load Triton's model_config_pb2 directly from its file.

    Importing its package would register messages that kserve registers too. Raises InputError if
    tritonclient is not installed.
    """
    spec = importlib.util.find_spec("tritonclient")
    if spec is None or spec.submodule_search_locations is None:
        raise InputError(
            "config.pbtxt is written with Triton's protobuf messages, but tritonclient is not"
            " installed; type: pip install tritonclient"
        )
    path = os.path.join(spec.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    loader = importlib.machinery.SourceFileLoader("jec_model_config_pb2", path)
    module = types.ModuleType(loader.name)
    loader.exec_module(module)
    return module
