"""Golden requests and answers as bodies of the Open Inference Protocol v2 (REST), and how two
answers are compared.

    {"inputs": [{"name": ..., "shape": [N, ...], "datatype": "FP32", "data": [...]}]}      the
        request
    {"model_name": ..., "outputs": [{"name": ..., "shape": [N, 1], "datatype": "FP32", "data":
        [...]}]}      the answer

N is the number of jets; the shapes are those of the ONNX file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from common import storage
from common.errors import GateError, unknown

# relative where |answer| > 1: the parity gate's own, since the server must change nothing
TOLERANCE = 1e-5
SIZES = (1, 100)
# of the protocol's binary extension: bytes of JSON before those of the tensors
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
    folder: str | os.PathLike,
    inputs: Mapping[str, np.ndarray],
    model: str,
    outputs: Mapping[str, np.ndarray],
) -> None:
    """Write the golden request and answer of these jets (arrays with the jets in the first axis)
    into a folder or s3:// URI.
    """
    request, response = file_names(len(next(iter(inputs.values()))))
    storage.write_json(storage.join(os.fspath(folder), request), request_body(inputs))
    storage.write_json(storage.join(os.fspath(folder), response), response_body(model, outputs))


def file_names(num_jets: int) -> tuple[str, str]:
    """Names of the golden request and answer of so many jets."""
    suffix = "" if num_jets == 1 else f"-{num_jets}"
    return f"request{suffix}.json", f"response{suffix}.json"


def request_body(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The request for arrays with the jets in the first axis."""
    return {"inputs": [_encode(name, array) for name, array in inputs.items()]}


def response_body(model: str, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The answer that a server of `model` is to give."""
    return {
        "model_name": model,
        "model_version": "1",
        "outputs": [_encode(name, array) for name, array in outputs.items()],
    }


def arrays(tensors: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The arrays of a body's "inputs" or "outputs"."""
    return {
        t["name"]: np.asarray(t["data"], dtype=_DTYPES[t["datatype"]]).reshape(t["shape"])
        for t in tensors
    }


def to_binary(inputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a request whose tensors follow its JSON as bytes, and which wants its
    answer so.
    """
    tensors, parts = [], []
    for name, array in inputs.items():
        part = np.ascontiguousarray(array).tobytes()
        parameters = {"binary_data_size": len(part)}
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": _NAMES[array.dtype],
                "parameters": parameters,
            }
        )
        parts.append(part)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    return b"".join([head, *parts]), {
        "Content-Type": "application/octet-stream",
        HEADER_LENGTH: str(len(head)),
    }


def from_binary(content: bytes, head: int) -> dict[str, np.ndarray]:
    """The outputs of an answer whose first `head` bytes are JSON; tensors that came as JSON all the
    same are read from it.
    """
    found, place = {}, head
    for tensor in json.loads(content[:head])["outputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            found |= arrays([tensor])
            continue
        found[tensor["name"]] = np.frombuffer(
            content[place : place + size], _DTYPES[tensor["datatype"]]
        ).reshape(tensor["shape"])
        place += size
    return found


def max_difference(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Largest difference between two answers, relative where |expected| > 1; infinite for what is
    no number.

    Raises GateError if an output is missing or has another shape.
    """
    got, wanted = arrays(answer["outputs"]), arrays(expected["outputs"])
    largest = 0.0
    for name, array in wanted.items():
        if name not in got:
            raise GateError(f"the answer lacks output '{name}': {unknown('output', name, got)}")
        if got[name].shape != array.shape:
            raise GateError(
                f"output '{name}' has shape {got[name].shape}, the golden answer {array.shape}"
            )
        scaled = np.abs(got[name].astype(np.float64) - array) / np.maximum(1.0, np.abs(array))
        largest = max(
            largest, float(np.where(np.isfinite(scaled), scaled, np.inf).max(initial=0.0))
        )
    return largest


def _encode(name: str, array: np.ndarray) -> dict[str, Any]:
    array = np.asarray(array)
    # The shortest decimal that reads back as the same float32, a third of the length of the
    # double's.
    data = (
        [float(str(x)) for x in array.ravel()]
        if array.dtype == np.float32
        else array.ravel().tolist()
    )
    return {"name": name, "shape": list(array.shape), "datatype": _NAMES[array.dtype], "data": data}
