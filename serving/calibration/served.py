"""A model on a server that calibrates files; the server's configuration describes it.

    model = served_model("http://127.0.0.1:8000", "pfn-1a2b3c4d-raw")

Requests go through the client (clients/python), with its retries. At the end of each file it is
checked that the server still serves the model that it described.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from common.errors import ClusterError, InputError
from common.layout import RAW_SUFFIX
from jec_client.protocol import DTYPES
from serving.calibration.model import Arrays, Description, Input, describe, limits_of
from serving.client import Client
from serving.validity import KEY

DIGEST = "sha256"  # parameter of config.pbtxt with the digest of model.onnx
DEADLINE = 300.0  # seconds for a step; longer than a restart of the server


class ServedModel:
    """A model on a server; thread-safe."""

    def __init__(self, description: Description, client: Client, batch: int) -> None:
        """Use a client, with `batch` jets per request."""
        self.description = description
        self.batch = batch
        self._client = client

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs by name, (N,) each."""
        answers = self._client.calibrate(dict(inputs), deadline=DEADLINE)
        return {name: np.asarray(answers[name]) for name in self.description.outputs}

    def check_unchanged(self) -> None:
        """Check that the server still has the same model.

        Raises:
            ClusterError: If it has another one.
        """
        digest = _facts(self._client.config()).get(DIGEST)
        if digest != self.description.digest:
            raise ClusterError(
                f"{self._client.url} serves another model {self.description.name} than at the"
                f" start (sha256 {digest}, not {self.description.digest})"
            )


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a model's configuration on a server."""
    parameters = config.get("parameters", {})
    return {key: str(value.get("string_value", "")) for key, value in parameters.items()}


def served_model(url: str, name: str, **login: Any) -> ServedModel:
    """Return a model on a server.

    Args:
        url: The server.
        name: The model; empty for the only model that takes columns.
        **login: token, cookies and verify of the client.

    Raises:
        InputError: If there is no such model, the server does not describe it, or no server
            answers.
    """
    try:
        client = Client(url, name or "model", **login)
        if not name:
            name = _only_model(client)
            client = Client(url, name, **login)
        metadata, config = client.metadata(), client.config()
    except ClusterError as error:  # nothing was calibrated yet
        raise InputError(f"{error}; start a server with: python -m serving.serve RUN") from None
    facts = _facts(config)
    where = f"the model {name} at {url}"
    if KEY not in facts or DIGEST not in facts:
        raise InputError(
            f"{where} has no description of its training: the server is too old to return the"
            f" model's configuration (/v2/models/{name}/config), or the model was exported by an"
            " earlier version; serve it with python -m serving.serve RUN, or give --model RUN"
        )
    counter_of: dict[str, str] = {}
    limits = limits_of(where, facts, [entry["name"] for entry in metadata["inputs"]])
    for counter, branches in limits.counters.items() if limits else ():
        counter_of |= dict.fromkeys(branches, counter)
    inputs = {}
    for entry in metadata["inputs"]:
        dtype = np.dtype(DTYPES[entry["datatype"]])
        inputs[entry["name"]] = Input(dtype=dtype, counter=counter_of.get(entry["name"], ""))
    outputs = [entry["name"] for entry in metadata["outputs"]]
    description = describe(where, name, facts[DIGEST], facts, inputs, outputs)
    return ServedModel(description, client, int(config.get("max_batch_size", 0)) or 1024)


def _only_model(client: Client) -> str:
    models = [name for name in client.models() if name.endswith(RAW_SUFFIX)]
    if not models:
        client.config()  # raises if no server answers
    if len(models) != 1:
        there = f": {', '.join(models)}" if models else ""
        raise InputError(
            f"{client.url} serves {len(models)} models NAME{RAW_SUFFIX}{there}; name one with"
            " --model NAME"
        )
    return models[0]
