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

# Relative where |answer| > 1. The same as in the parity gate, since a server must change nothing.
TOLERANCE = 1e-5
# One jet, as in a first request, and enough jets for batching.
SIZES = (1, 100)


def write(
    folder: str | os.PathLike[str],
    inputs: Mapping[str, np.ndarray],
    model: str,
    outputs: Mapping[str, np.ndarray],
) -> None:
    """Write the golden request and answer of these jets into a folder (path or URI).

    Args:
        folder: The folder.
        inputs: Inputs by name, with the jets in the first axis.
        model: Name of the model.
        outputs: Outputs by name, with the jets in the first axis.
    """
    request, response = file_names(len(next(iter(inputs.values()))))
    storage.write_json(storage.join(os.fspath(folder), request), request_body(inputs))
    storage.write_json(storage.join(os.fspath(folder), response), response_body(model, outputs))


def file_names(num_jets: int) -> tuple[str, str]:
    """Return the names of the golden request and answer for this number of jets."""
    suffix = "" if num_jets == 1 else f"-{num_jets}"
    return f"request{suffix}.json", f"response{suffix}.json"


def request_body(inputs: Mapping[str, np.ndarray]) -> Body:
    """Return the request for inputs by name, (N, ...) each for N jets.

    Raises InputError for a type of numbers that the protocol lacks.
    """
    return {"inputs": [encode(name, array) for name, array in inputs.items()]}


def response_body(model: str, outputs: Mapping[str, np.ndarray]) -> Body:
    """Return the answer that a server of `model` must give; outputs by name, (N, ...) each.

    Raises InputError for a type of numbers that the protocol lacks.
    """
    return {
        "model_name": model,
        "model_version": "1",
        "outputs": [encode(name, array) for name, array in outputs.items()],
    }


def max_difference(answer: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest difference between two answers, relative where |expected| > 1.

    It is infinite if a difference is not a number.

    Raises:
        GateError: If an output is missing or has another shape.
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
        differences = np.abs(array.astype(np.float64) - golden) / np.maximum(1.0, np.abs(golden))
        # Comparisons with NaN are false, so that NaN would pass.
        finite = np.where(np.isfinite(differences), differences, np.inf)
        largest = max(largest, float(finite.max(initial=0.0)))
    return largest
