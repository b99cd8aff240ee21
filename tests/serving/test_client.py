"""The client against servers that misbehave: what it waits for, what it gives up on, and what it
says.
"""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
import time

import pytest

from common.errors import ClusterError, DeadlineError, GateError, InputError
from common.machine import free_port
from serving import client as client_module
from serving import golden
from serving.client import Client, NotServing, Unreachable, golden_check, main

ANSWER = {
    "model_name": "m",
    "outputs": [{"name": "output", "shape": [1, 1], "datatype": "FP32", "data": [0.25]}],
}


@pytest.fixture
def serve_answers():
    """A server that gives prepared (status, body) answers, one a request, the last one for ever;
    use as serve_answers(answers) -> url.
    """
    running = []

    def start(*answers: tuple[int, object], delay: float = 0.0) -> str:
        remaining = list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_GET()

            def do_GET(self):
                time.sleep(delay)
                status, body = remaining.pop(0) if len(remaining) > 1 else remaining[0]
                content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def golden_uri(tmp_path):
    """Golden files whose answer is ANSWER, for 1 and for 100 jets alike."""
    for size in golden.SIZES:
        for name, body in zip(golden.file_names(size), ({"inputs": []}, ANSWER), strict=True):
            (tmp_path / name).write_text(json.dumps(body))
    return str(tmp_path)


@pytest.mark.faults
def test_golden_check_does_not_wait_for_a_server_that_has_ended(golden_uri):
    url = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with pytest.raises(ClusterError, match="m ended") as error:
        golden_check(url, "m", golden_uri, 30, is_running=lambda: False)
    assert not isinstance(error.value, DeadlineError)
    assert time.monotonic() - start < 10


def answer_of(value: float) -> dict:
    return {**ANSWER, "outputs": [{**ANSWER["outputs"][0], "data": [value]}]}


def test_golden_check_waits_for_a_service_that_comes_up(serve_answers, golden_uri, monkeypatch):
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0.01)
    url = serve_answers((503, "no healthy upstream"), (404, "404 page not found"), (200, ANSWER))
    checked = golden_check(url, "m", golden_uri, 10)
    assert checked.max_difference == {"1": 0.0, "100": 0.0}
    assert checked.answer == ANSWER


def test_golden_check_refuses_another_answer(serve_answers, golden_uri):
    with pytest.raises(
        GateError, match=r"golden request of 1 jet with a difference of 0\.001 \(allowed 1e-05\)"
    ):
        golden_check(serve_answers((200, answer_of(0.251))), "m", golden_uri, 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_golden_check_refuses_nan(serve_answers, golden_uri, value):
    with pytest.raises(GateError, match="difference of inf"):
        golden_check(serve_answers((200, answer_of(value))), "m", golden_uri, 10)


def test_golden_check_ends_at_its_deadline_with_the_last_error(golden_uri, monkeypatch):
    monkeypatch.setattr(client_module, "RETRY_SECONDS", 0.05)
    with pytest.raises(
        DeadlineError,
        match=r"model m gave no answer within 0 s: no server answers at http://127\.0\.0\.1:9",
    ):
        golden_check("http://127.0.0.1:9", "m", golden_uri, 0.2)


def test_golden_check_does_not_repeat_a_request_to_a_failing_model(serve_answers, golden_uri):
    with pytest.raises(
        ClusterError, match=r"model m at http\S+ failed \(500\): onnxruntime: out of memory"
    ):
        golden_check(
            serve_answers((500, {"error": "onnxruntime: out of memory"})), "m", golden_uri, 60
        )


def test_a_refused_connection_is_an_error():
    client = Client("http://127.0.0.1:9", "m")
    assert not client.ready()
    with pytest.raises(Unreachable, match=r"no server answers at http://127\.0\.0\.1:9"):
        client.infer({})


def test_a_server_that_does_not_answer_in_time_is_an_error(serve_answers):
    with pytest.raises(Unreachable, match="did not answer within 0"):
        Client(serve_answers((200, ANSWER), delay=1.0), "m", timeout=0.1).infer({})


def test_a_server_that_is_not_ready_is_an_error(serve_answers):
    with pytest.raises(NotServing, match=r"cannot serve model m \(503\): starting"):
        Client(serve_answers((503, {"error": "starting"})), "m").infer({})


def test_an_answer_that_is_not_json_is_an_error(serve_answers):
    with pytest.raises(
        ClusterError, match="did not answer with JSON but with b'<html>login</html>'"
    ):
        Client(serve_answers((200, "<html>login</html>")), "m").infer({})


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_an_invalid_address_is_refused(url):
    with pytest.raises(InputError, match="is not the address of a server; write http://host:port"):
        Client(url, "m")


def test_a_kept_connection_that_the_server_closed_is_opened_again():
    """Each connection answers one request, promises to stay, and is closed."""
    connections = []

    class Forgetful(socketserver.StreamRequestHandler):
        def handle(self):
            connections.append(self.client_address)
            lines = list(iter(lambda: self.rfile.readline().strip().lower(), b""))
            self.rfile.read(
                next(
                    int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")
                )
            )
            body = json.dumps(ANSWER).encode()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forgetful) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        client = Client(f"http://127.0.0.1:{server.server_address[1]}", "m")
        assert [client.infer({}) for _ in range(3)] == [ANSWER] * 3
        server.shutdown()
    assert len(connections) == 3


def test_a_redirection_is_not_followed():
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", "https://login")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        with pytest.raises(NotServing, match=r"\(302\): it sends elsewhere, to https://login"):
            Client(f"http://127.0.0.1:{server.server_port}", "m").metadata()
        server.shutdown()


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(serve_answers, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert Client(serve_answers((200, ANSWER)), "m").infer({}) == ANSWER


def test_command_line_prints_the_answer(serve_answers, golden_uri, capsys):
    assert (
        main(
            [
                "--url",
                serve_answers((200, ANSWER)),
                "--model",
                "m",
                "--request",
                f"{golden_uri}/request.json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out) == ANSWER


def test_errors_of_the_command_line_are_one_line(golden_uri, capsys):
    assert (
        main(
            [
                "--url",
                "http://127.0.0.1:9",
                "--model",
                "m",
                "--request",
                f"{golden_uri}/request.json",
            ]
        )
        == 1
    )
    assert (
        main(
            [
                "--url",
                "http://127.0.0.1:9",
                "--model",
                "m",
                "--request",
                f"{golden_uri}/missing.json",
            ]
        )
        == 2
    )
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error"]
    assert "missing.json" in lines[1]
