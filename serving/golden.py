"""Golden requests and answers as bodies of the Open Inference Protocol v2, and their comparison.

    {"inputs": [{"name": ..., "shape": [N, ...], "datatype": "FP32", "data": [...]}]}      the
        request
    {"model_name": ..., "outputs": [{"name": ..., "shape": [N, 1], "datatype": "FP32", "data":
        [...]}]}      the answer

N is the number of jets; the shapes are those of the ONNX file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from common import storage
from common.errors import GateError, unknown

Body = dict[str, Any]
"""A request or an answer as JSON has it, see the head of this file."""

Tensor = dict[str, Any]
"""An entry of a body's "inputs" or "outputs": name, shape, datatype, data."""

# Relative where |answer| > 1: the parity gate's own, since the server must change nothing.
TOLERANCE = 1e-5
# One jet, as a client asks first, and enough of them that a server batches.
SIZES = (1, 100)
# Of the protocol's binary extension: how many bytes of JSON stand before those of the tensors.
HEADER_LENGTH = "Inference-Header-Content-Length"

_DTYPES = {
    "FP32": np.float32,
    "FP64": np.float64,
    "FP16": np.float16,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def write(
    folder: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    model: str,
    outputs: Mapping[str, np.ndarray],
) -> None:
    """Write the golden request and answer of these jets into a folder or s3:// URI.

    inputs, outputs: name -> array with the jets in the first axis.
    """
    request, response = file_names(len(next(iter(inputs.values()))))
    storage.write_json(storage.join(os.fspath(folder), request), request_body(inputs))
    storage.write_json(storage.join(os.fspath(folder), response), response_body(model, outputs))


def file_names(num_jets: int) -> tuple[str, str]:
    """Names of the golden request and answer of so many jets."""
    suffix = "" if num_jets == 1 else f"-{num_jets}"
    return f"request{suffix}.json", f"response{suffix}.json"


def request_body(inputs: Mapping[str, np.ndarray]) -> Body:
    """The request for arrays with the jets in the first axis."""
    return {"inputs": [_encode(name, array) for name, array in inputs.items()]}


def response_body(model: str, outputs: Mapping[str, np.ndarray]) -> Body:
    """The answer that a server of `model` is to give."""
    return {
        "model_name": model,
        "model_version": "1",
        "outputs": [_encode(name, array) for name, array in outputs.items()],
    }


def arrays(tensors: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """The arrays of a body's "inputs" or "outputs"."""
    by_name = {}
    for tensor in tensors:
        array: np.ndarray = np.asarray(tensor["data"], dtype=_DTYPES[tensor["datatype"]])
        by_name[tensor["name"]] = array.reshape(tensor["shape"])
    return by_name


def to_binary(inputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request with its tensors as bytes behind its JSON.

    The request asks for an answer in the same form.
    """
    tensors = []
    parts = []
    for name, array in inputs.items():
        part = np.ascontiguousarray(array).tobytes()
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _NAMES[array.dtype],
                "parameters": {"binary_data_size": len(part)},
            }
        )
        parts.append(part)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *parts]), headers


def from_binary(content: bytes, head: int) -> dict[str, np.ndarray]:
    """The outputs of an answer whose first `head` bytes are JSON."""
    by_name: dict[str, np.ndarray] = {}
    place = head
    for tensor in json.loads(content[:head])["outputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            # A server may answer in JSON although bytes were asked for, as kserve's own does.
            by_name |= arrays([tensor])
            continue
        datatype = _DTYPES[tensor["datatype"]]
        array: np.ndarray = np.frombuffer(content[place : place + size], datatype)
        by_name[tensor["name"]] = array.reshape(tensor["shape"])
        place += size
    return by_name


def max_difference(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Largest difference between two answers, relative where |expected| > 1.

    It is infinite where a difference is no number. Raises GateError if an output is missing or has
    another shape.
    """
    answers = arrays(answer["outputs"])
    largest = 0.0
    for name, golden in arrays(expected["outputs"]).items():
        if name not in answers:
            raise GateError(f"the answer lacks output '{name}': {unknown('output', name, answers)}")
        array = answers[name]
        if array.shape != golden.shape:
            raise GateError(
                f"output '{name}' has shape {array.shape}, the golden answer {golden.shape}"
            )
        scaled = np.abs(array.astype(np.float64) - golden) / np.maximum(1.0, np.abs(golden))
        # NaN would lose every comparison, and so pass.
        finite = np.where(np.isfinite(scaled), scaled, np.inf)
        largest = max(largest, float(finite.max(initial=0.0)))
    return largest


def _encode(name: str, array: np.ndarray) -> Tensor:
    array = np.asarray(array)
    data = array.ravel().tolist()
    if array.dtype == np.float32:
        # The shortest decimal that reads back as the same float32, a third of the length of the
        # double's.
        data = [float(str(x)) for x in array.ravel()]
    return {"name": name, "shape": list(array.shape), "datatype": _NAMES[array.dtype], "data": data}
