"""Client of an inference server by the Open Inference Protocol v2 over HTTP.

It needs the standard library and numpy alone.

    python -m serving.client --url http://127.0.0.1:8000 --model pfn-1a2b3c4d --request
        golden/request.json

prints the server's answer. Nothing of a model server's own client is needed, here or in anybody's
code.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common import storage
from common.cli import Parser, require_url, run_main, seconds, word
from common.errors import (
    ClusterError,
    DeadlineError,
    GateError,
    InputError,
    UnreachableError,
    unknown,
)
from common.records import GoldenAnswers, RoundTrip
from serving import golden
from serving.connection import Connections, Reply
from serving.golden import SIZES, TOLERANCE, Body, file_names, max_difference

if TYPE_CHECKING:
    import numpy as np

RETRY_SECONDS = 1.0  # between two looks at a service that is not ready
# for the times of one size of request: enough for ten of a network that takes half a second
ROUND_TRIP_SECONDS = 5.0


class Unreachable(UnreachableError):
    """No server answers at that address (yet)."""


class NotServing(ClusterError):
    """The model cannot be asked now; asking again may help.

    The server answers 502, 503 or 504, or an ingress has no route.
    """


class Client:
    """One model of one server. `headers` go with every request (a Host for an ingress, a token)."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.url, self.model, self.timeout, self.headers = (
            url.rstrip("/"),
            model,
            timeout,
            dict(headers or {}),
        )
        host = urllib.parse.urlsplit(self.url).hostname
        if not host or not self.url.startswith(("http://", "https://")):
            raise InputError(f"'{url}' is no address of a server; write http://host:port")
        self._connections = Connections(self.url, timeout)

    def ready(self) -> bool:
        """True if the server says that the model can take requests now."""
        try:
            self._call(f"/v2/models/{self.model}/ready")
        except ClusterError:
            return False
        return True

    def server_name(self) -> str:
        """What the server calls itself; empty if it does not answer."""
        try:
            return str(self._call("/v2").get("name", ""))
        except ClusterError:
            return ""

    def models(self) -> list[str]:
        """Names of the server's models; empty where it does not tell."""
        try:
            # Triton
            return sorted(entry["name"] for entry in self._call("/v2/repository/index", {}))
        except (ClusterError, KeyError, TypeError):
            pass
        try:
            return sorted(self._call("/v2/models")["models"])  # kserve's own server
        except (ClusterError, KeyError, TypeError):
            return []

    def metadata(self) -> Body:
        """Names, datatypes and shapes of the model's inputs and outputs. Raises as `infer`."""
        return self._call_model("")

    def infer(self, body: Body) -> Body:
        """The server's answer to a request body (see serving.golden).

        Raises Unreachable, NotServing, InputError for an unknown model (with those there are) or a
        request that the server refuses (in its own words), and ClusterError for a model that failed
        or an answer that is no JSON.
        """
        return self._call_model("/infer", body)

    def ask(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The model's outputs for arrays with the jets in the first axis.

        They are sent and received as bytes (the protocol's binary extension). Several times faster
        than JSON for more than a few jets. Raises as `infer`.
        """
        path = f"/v2/models/{self.model}/infer"
        with self._explained():
            return golden.from_binary(*_parts(self._exchange(path, *golden.to_binary(inputs))))

    def _call_model(self, path: str, body: Body | None = None) -> Body:
        with self._explained():
            answer: Body = self._call(f"/v2/models/{self.model}{path}", body)
        return answer

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn a refusal into an InputError or a ClusterError, whichever it is."""
        try:
            yield
        except _Refused as refused:
            known = self.models()
            if known and self.model not in known:
                raise InputError(f"{self.url}: {unknown('model', self.model, known)}") from None
            if refused.code >= 500:
                raise ClusterError(
                    f"model {self.model} at {self.url} failed ({refused.code}): {refused}"
                ) from None
            raise InputError(
                f"{self.url} refused the request for model {self.model} ({refused.code}): {refused}"
            ) from None

    def _call(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        reply = self._exchange(
            path, data, {"Content-Type": "application/json"} if data is not None else {}
        )
        return _json(reply.content, self.url + path)

    def _exchange(self, path: str, data: bytes | None, headers: Mapping[str, str]) -> Reply:
        """The server's reply, if it is a good one."""
        try:
            reply = self._connections.request(path, data, {**self.headers, **headers})
        except TimeoutError:
            raise Unreachable(f"{self.url} did not answer within {self.timeout:.0f} s") from None
        except (http.client.HTTPException, OSError) as error:
            raise Unreachable(f"no server answers at {self.url}: {error or repr(error)}") from None
        if reply.status < 300:
            return reply
        text, from_model_server = _reason(reply)
        # A 404 in another form comes from an ingress that does not know the service yet; a
        # redirection from a login or to another address.
        if (
            reply.status < 400
            or reply.status in (502, 503, 504)
            or (reply.status == 404 and not from_model_server)
        ):
            raise NotServing(f"{self.url} cannot serve model {self.model} ({reply.status}): {text}")
        raise _Refused(text, reply.status)


class _Refused(ClusterError):
    """An error of the model server itself, in its words."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def golden_check(
    url: str,
    name: str,
    golden_uri: str,
    deadline: float,
    *,
    headers: Mapping[str, str] | None = None,
) -> GoldenAnswers:
    """Send the golden requests of a model until each comes back with the golden answer.

    deadline: seconds for all requests. Raises GateError for an answer beyond the tolerance,
    DeadlineError if the model does not answer in time, and as Client.infer.
    """
    started = time.monotonic()
    client = Client(url, name, headers=headers)
    differences: dict[str, float] = {}
    answers: list[Body] = []
    for size in SIZES:
        request_file, response_file = file_names(size)
        request = storage.read_json(storage.join(golden_uri, request_file))
        response = storage.read_json(storage.join(golden_uri, response_file))
        answer = _infer_until(client, request, started + deadline, deadline)
        answers.append(answer)
        difference = max_difference(answer, response)
        differences[str(size)] = difference
        if not difference <= TOLERANCE:
            raise GateError(
                f"model {name} at {url} answers the golden request of {size}"
                f" {'jet' if size == 1 else 'jets'} with a difference of {difference:.2g} (allowed"
                f" {TOLERANCE:g}): it serves another model than was exported"
            )
    return GoldenAnswers(
        max_difference=differences,
        tolerance=TOLERANCE,
        answer=answers[0],
        seconds=time.monotonic() - started,
    )


def round_trips(
    url: str,
    name: str,
    golden_uri: str,
    *,
    repeats: int = 10,
    headers: Mapping[str, str] | None = None,
) -> dict[str, RoundTrip]:
    """Measure the time of the golden requests, one after the other, as JSON, on a kept connection.

    The keys are the numbers of jets in a request. At most ROUND_TRIP_SECONDS a size. Raises as
    Client.infer.
    """
    client = Client(url, name, headers=headers)
    trips: dict[str, RoundTrip] = {}
    for size in SIZES:
        request = storage.read_json(storage.join(golden_uri, file_names(size)[0]))
        client.infer(request)
        times: list[float] = []
        while not times or (len(times) < repeats and sum(times) < ROUND_TRIP_SECONDS):
            started = time.perf_counter()
            client.infer(request)
            times.append(time.perf_counter() - started)
        trips[str(size)] = RoundTrip(
            median_ms=1000 * statistics.median(times),
            min_ms=1000 * min(times),
            max_ms=1000 * max(times),
            repeats=len(times),
        )
    return trips


def _infer_until(client: Client, request: Body, ends: float, deadline: float) -> Body:
    """Ask again while nobody answers or the model is not up.

    What the server refuses is not asked again.
    """
    while True:
        try:
            return client.infer(request)
        except (Unreachable, NotServing) as error:
            if time.monotonic() + RETRY_SECONDS > ends:
                raise DeadlineError(
                    f"model {client.model} gave no answer within {deadline:.0f} s: {error}"
                ) from None
        time.sleep(RETRY_SECONDS)


def _parts(reply: Reply) -> tuple[bytes, int]:
    """A reply's content and the length of the JSON at its head."""
    return reply.content, int(reply.headers.get(golden.HEADER_LENGTH, len(reply.content)))


def _json(content: bytes, where: str) -> Any:
    if not content:  # Triton's readiness has no body
        return {}
    try:
        return json.loads(content)
    except ValueError:
        raise ClusterError(f"{where} did not answer with JSON but with {content[:200]!r}") from None


def _reason(reply: Reply) -> tuple[str, bool]:
    """The server's words, and whether they have the form of a model server's.

    That form is {"error": ...}, or FastAPI's {"detail": ...}.
    """
    if "Location" in reply.headers:
        return f"it sends elsewhere, to {reply.headers['Location']}", False
    with contextlib.suppress(ValueError):
        words = json.loads(reply.content)
        if isinstance(words, dict) and (words.keys() & {"error", "detail"}):
            return str(words.get("error") or words["detail"]).strip()[:2000], True
    return reply.content.decode(errors="replace").strip()[:2000] or reply.reason, False


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m serving.client",
        description="Send one request to a served model and print the answer.",
    )
    parser.add_argument("--url", required=True, help="the server, http://host:port")
    parser.add_argument("--model", type=word, required=True, help="the model's name on the server")
    parser.add_argument(
        "--request",
        required=True,
        help="JSON file (path or address) with the request's body, as golden/NAME/request.json",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        help="seconds to wait for the answer (default: %(default)g)",
    )
    options = parser.parse_args(argv)

    def body() -> None:
        require_url("--url", options.url)
        answer = Client(options.url, options.model, timeout=options.timeout).infer(
            storage.read_json(options.request)
        )
        print(json.dumps(answer, indent=2))

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
