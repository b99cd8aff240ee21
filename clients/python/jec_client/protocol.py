"""Bodies of the Open Inference Protocol v2, as JSON and with the tensors as bytes behind it.

    {"inputs": [{"name": ..., "shape": [N, ...], "datatype": "FP32", "data": [...]}]}      the
        request
    {"model_name": ..., "outputs": [{"name": ..., "shape": [N, 1], "datatype": "FP32", "data":
        [...]}]}      the answer

N is the number of jets.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jec_client.errors import InputError, ServerError

Body = dict[str, Any]
"""A request or an answer as JSON has it, see the head of this file."""

Tensor = dict[str, Any]
"""An entry of a body's "inputs" or "outputs": name, shape, datatype, data."""

# Of the protocol's binary extension: how many bytes of JSON stand before those of the tensors.
HEADER_LENGTH = "Inference-Header-Content-Length"

DTYPES: Mapping[str, Any] = {
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
"""The protocol's types of numbers; there are BYTES besides, for text."""

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def encode(name: str, array: np.ndarray) -> Tensor:
    """Return an array of any shape as a tensor of JSON; its numbers go row by row.

    Raises InputError for a type of numbers that the protocol lacks.
    """
    array = np.asarray(array)
    data = array.ravel().tolist()
    if array.dtype == np.float32:
        # The shortest decimal that reads back as the same float32, a third of the length of the
        # double's.
        data = [float(str(x)) for x in array.ravel()]
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": datatype(name, array),
        "data": data,
    }


def arrays(tensors: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Return arrays of a body's "inputs" or "outputs" by name, in the shapes of the tensors.

    Raises KeyError for a tensor without one of its fields or of an unknown type, and ValueError for
    data that do not fit the shape.
    """
    by_name = {}
    for tensor in tensors:
        array: np.ndarray = np.asarray(tensor["data"], dtype=DTYPES[tensor["datatype"]])
        by_name[tensor["name"]] = array.reshape(tensor["shape"])
    return by_name


def to_binary(inputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """Return the body and headers of a request with its tensors as bytes behind its JSON.

    The arrays may have any shape. The request asks for an answer in the same form. Raises
    InputError for a type of numbers that the protocol lacks.
    """
    tensors = []
    parts = []
    for name, array in inputs.items():
        part = raw_bytes(array)
        tensors.append(
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatype(name, array),
                "parameters": {"binary_data_size": len(part)},
            }
        )
        parts.append(part)
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *parts]), headers


def raw_bytes(array: np.ndarray) -> bytes:
    """Return the numbers of an array of any shape, row by row, little-endian."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def from_binary(content: bytes, head: int) -> dict[str, np.ndarray]:
    """Return the outputs of an answer whose first `head` bytes are JSON.

    Raises ServerError for an answer of another form.
    """
    by_name: dict[str, np.ndarray] = {}
    place = head
    try:
        for tensor in json.loads(content[:head])["outputs"]:
            size = (tensor.get("parameters") or {}).get("binary_data_size")
            if size is None:
                # A server may answer in JSON although bytes were asked for, as kserve's own does.
                by_name |= arrays([tensor])
                continue
            part = content[place : place + size]
            by_name[tensor["name"]] = from_raw(part, tensor["datatype"], tensor["shape"])
            place += size
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ServerError(
            f"the answer has not the form of the Open Inference Protocol v2 ({error!r}):"
            f" {content[:200]!r}"
        ) from None
    return by_name


def from_raw(part: bytes, datatype: str, shape: Iterable[int]) -> np.ndarray:
    """Return an array of the bytes of its numbers.

    Raises KeyError or ValueError where they do not fit.
    """
    little: np.ndarray = np.frombuffer(part, np.dtype(DTYPES[datatype]).newbyteorder("<"))
    return little.astype(DTYPES[datatype], copy=False).reshape(tuple(shape))


def datatype(name: str, array: np.ndarray) -> str:
    """Return the protocol's name of an array's type, such as FP32.

    Raises InputError for a type that the protocol lacks; `name` is the input's, for the message.
    """
    native = array.dtype.newbyteorder("=")
    if native not in _NAMES:
        raise InputError(
            f"input '{name}' is {array.dtype}; the protocol has {', '.join(map(str, _NAMES))}"
        )
    return _NAMES[native]
