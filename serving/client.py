"""The client with this project's errors, and the golden requests through it.

The client itself is the package jec_client (clients/python), which is installed without this
project.

    python -m serving.client --url http://127.0.0.1:8000 --model pfn-1a2b3c4d --request
        golden/request.json

prints the server's answer.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import jec_client
from common import storage
from common.cli import Parser, require_url, run_main, seconds, word
from common.errors import ClusterError, DeadlineError, GateError, UnreachableError
from common.records import GoldenAnswers, RoundTrip
from serving.golden import SIZES, TOLERANCE, Body, file_names, max_difference

RETRY_SECONDS = 1.0  # between two looks at a service that is not ready
# for the times of one size of request: enough for ten of a network that takes half a second
ROUND_TRIP_SECONDS = 5.0


class Unreachable(jec_client.Unreachable, UnreachableError):
    """No server answers at that address (yet)."""


class NotServing(jec_client.NotServing, ClusterError):
    """The model cannot be asked now; asking again may help.

    The server answers 502, 503 or 504, or an ingress has no route.
    """


class ModelError(jec_client.ServerError, ClusterError):
    """The server or its model failed, or answered in another form than the protocol's."""


class Client(jec_client.Client):
    """One model of one server, with this project's errors."""

    unreachable = Unreachable
    not_serving = NotServing
    failed = ModelError


def golden_check(
    url: str,
    name: str,
    golden_uri: str,
    deadline: float,
    *,
    headers: Mapping[str, str] | None = None,
    is_running: Callable[[], bool] = lambda: True,
) -> GoldenAnswers:
    """Send the golden requests of a model until each comes back with the golden answer.

    deadline: seconds for all requests. is_running: whether the server has not ended, if that is
    known. Raises GateError for an answer beyond the tolerance, ClusterError where the server has
    ended, DeadlineError if the model does not answer in time, and as Client.infer.
    """
    started = time.monotonic()
    client = Client(url, name, headers=headers)
    differences: dict[str, float] = {}
    answers: list[Body] = []
    for size in SIZES:
        request_file, response_file = file_names(size)
        request = storage.read_json(storage.join(golden_uri, request_file))
        response = storage.read_json(storage.join(golden_uri, response_file))
        answer = _infer_until(client, request, started + deadline, deadline, is_running)
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


def _infer_until(
    client: Client, request: Body, ends: float, deadline: float, is_running: Callable[[], bool]
) -> Body:
    """Ask again while nobody answers or the model is not up.

    What the server refuses is not asked again.
    """
    while True:
        try:
            return client.infer(request)
        except (Unreachable, NotServing) as error:
            if not is_running():
                raise ClusterError(f"the server of {client.model} ended by itself") from None
            if time.monotonic() + RETRY_SECONDS > ends:
                raise DeadlineError(
                    f"model {client.model} gave no answer within {deadline:.0f} s: {error}"
                ) from None
        time.sleep(RETRY_SECONDS)


def main(argv: list[str] | None = None) -> int:
    """Send the request that the command line names; return the exit code."""
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
