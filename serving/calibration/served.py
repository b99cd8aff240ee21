"""A model on a server as the one that calibrates: its configuration describes it.

    model = served_model("http://127.0.0.1:8000", "pfn-1a2b3c4d-raw")

Answers come through the client (clients/python), with its retries. Whether the server still serves
the model that it described is asked at the end of each file.
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

DIGEST = "sha256"  # parameter of config.pbtxt: of model.onnx
DEADLINE = 300.0  # seconds for a step; a server that is restarted is back by then


class ServedModel:
    """A model of a server. Several threads may ask it."""

    def __init__(self, description: Description, client: Client, batch: int) -> None:
        """Answer with a client; `batch` jets go into one request."""
        self.description = description
        self.batch = batch
        self._client = client

    def answer(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Return the outputs for jets; column name -> (N,)."""
        answers = self._client.calibrate(dict(inputs), deadline=DEADLINE)
        return {name: np.asarray(answers[name]) for name in self.description.outputs}

    def check_unchanged(self) -> None:
        """Raise ClusterError if the server has another model than at the start."""
        digest = _facts(self._client.config()).get(DIGEST)
        if digest != self.description.digest:
            raise ClusterError(
                f"{self._client.url} serves another model {self.description.name} than at the"
                f" start (sha256 {digest}, not {self.description.digest})"
            )


def _facts(config: Mapping[str, Any]) -> dict[str, str]:
    """What a model's configuration on a server says of it."""
    parameters = config.get("parameters", {})
    return {key: str(value.get("string_value", "")) for key, value in parameters.items()}


def served_model(url: str, name: str, **login: Any) -> ServedModel:
    """The model of that name on a server; without a name, its only one that takes columns.

    login: token, cookies, verify of the client. Raises InputError where there is none, where the
    server does not describe it, or where nobody answers.
    """
    try:
        client = Client(url, name or "model", **login)
        if not name:
            name = _only_model(client)
            client = Client(url, name, **login)
        metadata, config = client.metadata(), client.config()
    except ClusterError as error:  # before anything has begun
        raise InputError(f"{error}; start a server with: python -m serving.serve RUN") from None
    facts = _facts(config)
    where = f"the model {name} at {url}"
    if KEY not in facts or DIGEST not in facts:
        raise InputError(
            f"{where} does not say what it was trained for: the server is too old to tell the"
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
        client.config()  # raises where nobody answers
    if len(models) != 1:
        there = f": {', '.join(models)}" if models else ""
        raise InputError(
            f"{client.url} serves {len(models)} models NAME{RAW_SUFFIX}{there}; name one with"
            " --model NAME"
        )
    return models[0]
