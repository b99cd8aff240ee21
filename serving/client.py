"""The client with the errors of this project, and golden requests sent with it.

The client itself is the package jec_client (clients/python), which can be installed without this
project.

    python -m serving.client --url http://127.0.0.1:8000 --model pfn-1a2b3c4d --request
        golden/request.json

prints the answer of the server.
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

RETRY_SECONDS = 1.0  # pause between two requests to a service that is not ready
# for the requests of one size: enough for ten requests of half a second
ROUND_TRIP_SECONDS = 5.0


class Unreachable(jec_client.Unreachable, UnreachableError):
    """No server answers at the address (yet)."""


class NotServing(jec_client.NotServing, ClusterError):
    """The model cannot answer now; another attempt may succeed.

    The server answers 502, 503 or 504, or an ingress has no route.
    """


class ModelError(jec_client.ServerError, ClusterError):
    """The server or its model failed, or its answer does not follow the protocol."""


class Client(jec_client.Client):
    """A client for one model of one server, with the errors of this project."""

    unreachable = Unreachable
    not_serving = NotServing
    model_error = ModelError


def golden_check(
    url: str,
    name: str,
    golden_uri: str,
    deadline: float,
    *,
    headers: Mapping[str, str] | None = None,
    is_running: Callable[[], bool] = lambda: True,
) -> GoldenAnswers:
    """Send the golden requests of a model and compare the answers with the golden answers.

    Requests are repeated until the model answers.

    Args:
        url: The server.
        name: The model.
        golden_uri: Folder of the golden requests and answers.
        deadline: Seconds for all requests.
        headers: Further headers of the requests.
        is_running: Returns False if the server is known to have ended.

    Raises:
        GateError: If an answer differs by more than the tolerance.
        ClusterError: If the server has ended, or as Client.infer.
        DeadlineError: If the model does not answer in time.
    """
    start = time.monotonic()
    client = Client(url, name, headers=headers)
    differences: dict[str, float] = {}
    answers: list[Body] = []
    for size in SIZES:
        request_file, response_file = file_names(size)
        request = storage.read_object(storage.join(golden_uri, request_file))
        response = storage.read_object(storage.join(golden_uri, response_file))
        answer = _infer_until(client, request, start + deadline, deadline, is_running)
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
        seconds=time.monotonic() - start,
    )


def round_trips(
    url: str,
    name: str,
    golden_uri: str,
    *,
    repeats: int = 10,
    headers: Mapping[str, str] | None = None,
) -> dict[str, RoundTrip]:
    """Measure the duration of golden requests, one after the other, as JSON, on one connection.

    At most ROUND_TRIP_SECONDS are spent on each size.

    Returns:
        The durations by number of jets in a request.

    Raises:
        ClusterError: As Client.infer.
    """
    client = Client(url, name, headers=headers)
    trips: dict[str, RoundTrip] = {}
    for size in SIZES:
        request = storage.read_object(storage.join(golden_uri, file_names(size)[0]))
        client.infer(request)
        times: list[float] = []
        while not times or (len(times) < repeats and sum(times) < ROUND_TRIP_SECONDS):
            start = time.perf_counter()
            client.infer(request)
            times.append(time.perf_counter() - start)
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
    """Send a request; repeat it while no server answers or the model is not ready.

    A request that the server refuses is not repeated.
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
    """Send the request that the command line names and return the exit code."""
    parser = Parser(
        prog="python -m serving.client",
        description="Send one request to a served model and print the answer.",
    )
    parser.add_argument("--url", required=True, metavar="URL", help="the server, http://HOST:PORT")
    parser.add_argument(
        "--model", type=word, required=True, metavar="NAME", help="the model's name on the server"
    )
    parser.add_argument(
        "--request",
        required=True,
        metavar="FILE",
        help="JSON file (path or address) with the request's body, such as"
        " golden/NAME/request.json of a run",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=60.0,
        metavar="SECONDS",
        help="seconds to wait for the answer (default: %(default)g)",
    )
    options = parser.parse_args(argv)

    def body() -> None:
        require_url("--url", options.url)
        answer = Client(options.url, options.model, timeout=options.timeout).infer(
            storage.read_object(options.request)
        )
        print(json.dumps(answer, indent=2))

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
