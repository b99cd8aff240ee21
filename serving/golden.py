"""Golden requests and answers as bodies of the Open Inference Protocol v2, and their comparison.

The bodies are those of jec_client/protocol.py; N is the number of jets, and the shapes are those of
the ONNX file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from common import storage
from common.errors import GateError, unknown
from jec_client.protocol import Body, arrays, encode, from_binary, to_binary

__all__ = [
    "SIZES",
    "TOLERANCE",
    "Body",
    "arrays",
    "file_names",
    "from_binary",
    "max_difference",
    "request_body",
    "response_body",
    "to_binary",
    "write",
]

# Relative where |answer| > 1: the parity gate's own, since the server must change nothing.
TOLERANCE = 1e-5
# One jet, as a client asks first, and enough of them that a server batches.
SIZES = (1, 100)


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
    return {"inputs": [encode(name, array) for name, array in inputs.items()]}


def response_body(model: str, outputs: Mapping[str, np.ndarray]) -> Body:
    """The answer that a server of `model` is to give."""
    return {
        "model_name": model,
        "model_version": "1",
        "outputs": [encode(name, array) for name, array in outputs.items()],
    }


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
