"""A model server by the Open Inference Protocol v2 over gRPC (the extra `grpc`).

Addresses are grpc://host:port, and grpcs:// with TLS.
"""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from jec_client import protocol
from jec_client.credentials import Secret, authorization, cookie_header
from jec_client.errors import InputError, NotServing, Refused, ServerError, Unreachable
from jec_client.grpc_messages import SERVICE, message
from jec_client.http_server import may_wait, pauses

# Without limits of a message: the jets of a request are many megabytes.
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))

CODES = {
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
}
"""gRPC's refusals as those of HTTP; any other is a failure of the model."""

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where a server that answers without bytes puts the numbers of a type."""


class GrpcServer:
    """A model server at a URL; its methods and errors are those of HttpServer."""

    binary = True

    def __init__(
        self,
        url: str,
        timeout: float,
        *,
        headers: Mapping[str, str],
        token: Secret | None,
        cookies: Secret | None,
        verify: bool | str,
    ) -> None:
        """Keep the address and the credentials; no channel is opened yet."""
        parts = urllib.parse.urlsplit(url)
        self.url, self.timeout = url, timeout
        self.host, self.address = parts.hostname or "", parts.netloc
        self.headers, self.token, self.cookies = headers, token, cookies
        self.tls = _credentials(verify) if parts.scheme == "grpcs" else None
        self._channel: grpc.Channel | None = None
        self._process = 0

    def ready(self, model: str) -> None:
        """Raise NotServing unless the server serves the model."""
        if not self._call("ModelReady", name=model).ready:
            raise NotServing(f"{self.url} says that model {model} is not ready")

    def description(self, *, ends: float | None = None) -> protocol.Body:
        """Return the server's name, version and extensions."""
        answer = self._call("ServerMetadata", ends)
        extensions = list(answer.extensions)
        return {"name": answer.name, "version": answer.version, "extensions": extensions}

    def models(self) -> list[str]:
        """Return the names of the models; raises ServerError if the server does not list them."""
        return sorted({model.name for model in self._call("RepositoryIndex").models})

    def metadata(self, model: str, *, ends: float | None = None) -> protocol.Body:
        """Return the names, types and shapes of the model's inputs and outputs."""
        answer = self._call("ModelMetadata", ends, name=model)
        return {
            "name": answer.name,
            "inputs": [_as_json(tensor) for tensor in answer.inputs],
            "outputs": [_as_json(tensor) for tensor in answer.outputs],
        }

    def config(self, model: str, *, ends: float | None = None) -> protocol.Body:
        """Return Triton's configuration of a model; empty where the server does not have such."""
        try:
            config = self._call("ModelConfig", ends, name=model).config
        except (Refused, NotServing):
            return {}
        parameters = {p.key: {"string_value": p.value.string_value} for p in config.parameters}
        return {"max_batch_size": config.max_batch_size, "parameters": parameters}

    def infer(self, model: str, body: protocol.Body) -> protocol.Body:
        """Send a request in the protocol's JSON form and return the answer in that form."""
        outputs = self.ask(model, protocol.arrays(body["inputs"]))
        tensors = [protocol.encode(name, array) for name, array in outputs.items()]
        return {"model_name": model, "outputs": tensors}

    def ask(
        self, model: str, inputs: Mapping[str, Any], *, ends: float | None = None
    ) -> dict[str, Any]:
        """Return outputs for arrays. ends: until then the request is repeated, if that helps.

        Raises InputError for a type of numbers that the protocol lacks, and ServerError for an
        answer of another form and for the server's own errors.
        """
        tensors = []
        for name, array in inputs.items():
            datatype = protocol.datatype(name, array)
            tensors.append(message("Tensor")(name=name, datatype=datatype, shape=array.shape))
        raw = [protocol.raw_bytes(array) for array in inputs.values()]
        answer = self._call(
            "ModelInfer", ends, model_name=model, inputs=tensors, raw_input_contents=raw
        )
        outputs: dict[str, np.ndarray] = {}
        try:
            for index, tensor in enumerate(answer.outputs):
                if answer.raw_output_contents:
                    part = answer.raw_output_contents[index]
                    array = protocol.from_raw(part, tensor.datatype, tensor.shape)
                else:
                    numbers = getattr(tensor.contents, CONTENTS[tensor.datatype])
                    dtype = protocol.DTYPES[tensor.datatype]
                    array = np.array(numbers, dtype).reshape(tuple(tensor.shape))
                outputs[tensor.name] = array
        except (IndexError, KeyError, ValueError) as error:
            raise ServerError(
                f"the answer has not the form of the Open Inference Protocol v2: {error!r}"
            ) from None
        return outputs

    def _call(self, method: str, ends: float | None = None, **fields: Any) -> Any:
        """Return the answer to a request; all of the protocol's may be repeated."""
        request = message(f"{method}Request")(**fields)
        for pause in pauses():
            seconds = self.timeout
            if ends is not None:
                seconds = min(seconds, ends - time.monotonic())
            if seconds <= 0:
                raise Unreachable(f"{self.url} did not answer within the deadline")
            call = self._open().unary_unary(
                f"/{SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=message(f"{method}Response").FromString,
            )
            try:
                return call(request, timeout=seconds, metadata=self._metadata())
            except grpc.RpcError as error:
                passing = error.code() in (
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                )
                if not passing or not may_wait(pause, ends):
                    raise self._error(error, seconds) from None
            time.sleep(pause or 0)
        raise AssertionError("the last attempt returns or raises")

    def _open(self) -> grpc.Channel:
        """Return the connection of this process: one that was forked has none yet."""
        if self._channel is None or self._process != os.getpid():
            if self.tls is None:
                self._channel = grpc.insecure_channel(self.address, OPTIONS)
            else:
                self._channel = grpc.secure_channel(self.address, self.tls, OPTIONS)
            self._process = os.getpid()
        return self._channel

    def _metadata(self) -> list[tuple[str, str]]:
        metadata = [(name.lower(), value) for name, value in self.headers.items()]
        if self.token is not None:
            metadata.append(("authorization", authorization(self.token)))
        if self.cookies is not None:
            metadata.append(("cookie", cookie_header(self.cookies, self.host)))
        return metadata

    def _error(self, error: Any, seconds: float) -> ServerError:
        code, words = error.code(), (error.details() or "").strip()[:2000]
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return Unreachable(f"{self.url} did not answer within {seconds:.3g} s")
        if code == grpc.StatusCode.UNAVAILABLE:
            return Unreachable(f"no server answers at {self.url}: {words}")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return NotServing(f"({code.name}): {words}")
        return Refused(words, CODES.get(code, 500))


def _as_json(tensor: Any) -> protocol.Tensor:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _credentials(verify: bool | str) -> grpc.ChannelCredentials:
    if verify is True:
        return grpc.ssl_channel_credentials()
    if verify is False:
        raise InputError("verify=False does not exist with gRPC; give the path of certificates")
    try:
        return grpc.ssl_channel_credentials(Path(verify).read_bytes())
    except (OSError, ValueError) as error:  # ValueError for a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"verify= takes the path of a file of certificates with gRPC; {verify!r} cannot be"
            f" read: {reason}"
        ) from None
