"""A model server by the Open Inference Protocol v2 over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from jec_client import protocol
from jec_client.connection import Connections, Reply
from jec_client.credentials import Secret, authorization, cookie_header
from jec_client.errors import NotServing, Refused, ServerError, Unreachable

PAUSES = (0.25, 0.5, 1.0)
"""Seconds before a request is sent again, where that is safe."""

OVERLOADED = (429, 502, 503, 504)
"""Answers of a gateway or a server that may take the request later."""


class HttpServer:
    """A model server at a URL. `headers` go with every request.

    timeout: seconds for one request. token, cookies: read anew for each request. Its methods raise
    Unreachable, NotServing, Refused, ServerError, and InputError for a secret that is gone.
    """

    binary = True
    """Whether tensors are sent as bytes; JSON takes several times longer."""

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
        """Keep the address and the credentials; no connection is opened yet."""
        self.url, self.timeout = url, timeout
        self.headers, self.token, self.cookies = headers, token, cookies
        self.host = urllib.parse.urlsplit(url).hostname or ""
        self._connections = Connections(url, timeout, verify)

    def ready(self, model: str) -> None:
        """Raise NotServing unless the server serves the model."""
        self._get(f"{_path(model)}/ready")

    def description(self, *, ends: float | None = None) -> protocol.Body:
        """Return the server's name, version and extensions."""
        return self._object("/v2", ends)

    def models(self) -> list[str]:
        """Return the names of the models.

        Raises KeyError, TypeError or ServerError if it lists none.
        """
        try:
            index = self._json(self._exchange("/v2/repository/index", b"{}"))
            return sorted({entry["name"] for entry in index})  # Triton
        except (ServerError, KeyError, TypeError):
            return sorted(self._get("/v2/models")["models"])  # kserve's own server

    def metadata(self, model: str, *, ends: float | None = None) -> protocol.Body:
        """Return the names, types and shapes of the model's inputs and outputs."""
        return self._object(_path(model), ends)

    def config(self, model: str, *, ends: float | None = None) -> protocol.Body:
        """Return Triton's configuration of a model; empty where the server does not have such."""
        try:
            return self._object(f"{_path(model)}/config", ends)
        except (Refused, NotServing):
            return {}

    def infer(self, model: str, body: protocol.Body) -> protocol.Body:
        """Send a request in the protocol's JSON form and return the answer in that form."""
        answer: protocol.Body = self._json(
            self._exchange(
                f"{_path(model)}/infer",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
        )
        return answer

    def ask(
        self, model: str, inputs: Mapping[str, Any], *, ends: float | None = None
    ) -> dict[str, Any]:
        """Return outputs for arrays. ends: until then the request is repeated, if that helps."""
        if self.binary:
            body, headers = protocol.to_binary(inputs)
        else:
            tensors = [protocol.encode(name, array) for name, array in inputs.items()]
            body = json.dumps({"inputs": tensors}).encode()
            headers = {"Content-Type": "application/json"}
        reply = self._exchange(f"{_path(model)}/infer", body, headers, ends)
        head = reply.headers.get(protocol.HEADER_LENGTH, "")
        return protocol.from_binary(
            reply.content, int(head) if head.isdigit() else len(reply.content)
        )

    def _get(self, path: str) -> Any:
        return self._json(self._exchange(path))

    def _object(self, path: str, ends: float | None) -> protocol.Body:
        answer = self._json(self._exchange(path, ends=ends))
        if not isinstance(answer, dict):
            raise ServerError(f"{self.url}{path} answered with {str(answer)[:200]}")
        return answer

    def _json(self, reply: Reply) -> Any:
        if not reply.content:  # Triton's readiness has no body
            return {}
        try:
            return json.loads(reply.content)
        except (ValueError, RecursionError):
            raise ServerError(
                f"{self.url} did not answer with JSON but with {reply.content[:200]!r}"
            ) from None

    def _exchange(
        self,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        ends: float | None = None,
    ) -> Reply:
        """Send a request and return the reply, whose status is below 300.

        All requests of the protocol may be repeated, because none changes the server. With `ends`
        (time.monotonic), a request is repeated until then if there was no answer or the server was
        overloaded.
        """
        for pause in pauses():
            seconds = self.timeout
            if ends is not None:
                seconds = min(seconds, ends - time.monotonic())
            if seconds <= 0:
                raise Unreachable(f"{self.url} did not answer within the deadline")
            try:
                reply = self._connections.request(path, data, self._headers(headers), seconds)
                if reply.status not in OVERLOADED or not may_wait(pause, ends):
                    return self._check(reply)
            except TimeoutError:
                raise Unreachable(f"{self.url} did not answer within {seconds:.3g} s") from None
            except ssl.SSLCertVerificationError as error:
                raise Unreachable(
                    f"the certificate of {self.url} cannot be verified ({error.verify_message});"
                    " give verify= the path of its certificate authority"
                ) from None
            except (http.client.HTTPException, OSError) as error:
                if not isinstance(error, ConnectionError) or not may_wait(pause, ends):
                    raise Unreachable(
                        f"no server answers at {self.url}: {_failure(error)}"
                    ) from None
            time.sleep(pause or 0)
        raise AssertionError("the last attempt returns or raises")

    def _headers(self, headers: Mapping[str, str] | None) -> dict[str, str]:
        all_headers = {**self.headers, **(headers or {})}
        if self.token is not None:
            all_headers["Authorization"] = authorization(self.token)
        if self.cookies is not None:
            all_headers["Cookie"] = cookie_header(self.cookies, self.host)
        return all_headers

    def _check(self, reply: Reply) -> Reply:
        if reply.status < 300:
            return reply
        text, from_model_server = _reason(reply)
        if reply.status in (401, 403) and not from_model_server:
            raise Refused(f"{text}; {self._login()}", reply.status)
        if reply.status < 400:
            text += f"; if that is a login: {self._login()}"
        # A 404 in another form comes from an ingress that does not know the service yet; a
        # redirection from a login or to another address.
        if (
            reply.status < 400
            or reply.status in OVERLOADED
            or (reply.status == 404 and not from_model_server)
        ):
            raise NotServing(f"({reply.status}): {text}")
        raise Refused(text, reply.status)

    def _login(self) -> str:
        """Say what to do about a login that a gateway does not accept."""
        secrets = [str(secret) for secret in (self.token, self.cookies) if secret is not None]
        if secrets:
            return f"the login of {' and '.join(secrets)} was not accepted"
        return "give token= or cookies="


def pauses() -> tuple[float | None, ...]:
    """Return the pause after each attempt; None after the last."""
    return (*PAUSES, None)


def may_wait(pause: float | None, ends: float | None) -> bool:
    """Return whether there is a further attempt, which has to begin before `ends`."""
    return pause is not None and ends is not None and time.monotonic() + pause < ends


def _path(model: str) -> str:
    return f"/v2/models/{urllib.parse.quote(model, safe='')}"


def _failure(error: http.client.HTTPException | OSError) -> str:
    """Why there is no answer, and what to try if the server speaks another protocol."""
    if isinstance(error, ssl.SSLError):
        return f"{error}; if it has no TLS, write http:// instead of https://"
    # a connection that is closed is one of these as well
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return "what it sends is not HTTP; write grpc:// for a port of gRPC, https:// for TLS"
    return str(error) or repr(error)


def _reason(reply: Reply) -> tuple[str, bool]:
    """Return the server's words, and whether they have the form of a model server's.

    That form is {"error": ...}, or FastAPI's {"detail": ...}.
    """
    location = reply.headers.get("Location")
    if location is not None:
        parts = urllib.parse.urlsplit(location)
        return f"it sends elsewhere, to {parts._replace(query='', fragment='').geturl()}", False
    with contextlib.suppress(ValueError, RecursionError):
        words = json.loads(reply.content)
        if isinstance(words, dict) and (words.keys() & {"error", "detail"}):
            return str(words.get("error") or words["detail"]).strip()[:2000], True
    return reply.content.decode(errors="replace").strip()[:2000] or reply.reason, False
