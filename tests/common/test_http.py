"""HTTP requests: retries, headers, and errors without secrets."""

from __future__ import annotations

import http.server
import re
import socket

import pytest
import urllib3

from common import http as http_module
from common.errors import UnreachableError
from common.http import REASONS
from common.machine import free_port
from tests.servers.handling import handling


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the server's next code, and records method and headers of each request."""

    def log_message(self, *_):
        pass

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, dict(self.headers)))
        self.send_response(self.server.codes.pop(0))
        self.send_header("Content-Length", "0")
        self.send_header("Set-Cookie", "session=abc; Path=/")
        self.end_headers()

    def __getattr__(self, name):
        """Answer every method alike: http.server looks for do_GET, do_HEAD, do_POST."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)


@pytest.fixture
def server():
    with handling(Handler, requests=[], codes=[]) as server:
        server.url += "/secret-part"
        yield server


@pytest.mark.parametrize(
    ("method", "codes", "status"),
    [
        ("GET", [503, 200], 200),
        ("HEAD", [502, 200], 200),
        ("GET", [503, 503], 503),
        ("GET", [404], 404),
        ("GET", [500], 500),
        ("POST", [503], 503),
    ],
)
def test_errors_of_a_gateway_are_retried_once_except_for_post(server, method, codes, status):
    server.codes = list(codes)
    answer = http_module.send(http_module.session(), method, server.url)
    assert answer.status_code == status
    assert len(server.requests) == len(codes)


def test_our_authorization_header_is_sent_instead_of_netrc_s(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.codes = [200, 200]
    client = http_module.session()
    for _ in range(2):
        http_module.send(client, "GET", server.url, headers={"Authorization": "Bearer ours"})
    assert [headers["Authorization"] for _, headers in server.requests] == ["Bearer ours"] * 2
    assert server.requests[1][1]["Cookie"] == "session=abc"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9/secret-part", "Connection refused"),
        ("http://no-such-host.invalid/secret-part", "host name no-such-host.invalid cannot be"),
        ("https://user:secret-part@127.0.0.1:9/", "Connection refused"),
        ("http://[secret-part/", "address is not valid"),
        ("secret-part", "https:// or http://"),
    ],
)
def test_an_error_has_the_reason_and_not_the_address(url, reason):
    with pytest.raises(UnreachableError) as error:
        http_module.send(http_module.session(), "GET", url)
    assert reason in str(error.value)
    assert "secret-part" not in str(error.value)
    assert not re.search(r"Error\b|Invalid|Missing|gaierror", str(error.value))


def test_a_silent_server_is_an_error_after_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        port = silent.getsockname()[1]
        with pytest.raises(UnreachableError, match=r"within 0\.1 s"):
            http_module.send(http_module.session(), "GET", f"http://127.0.0.1:{port}", seconds=0.1)


def urllib3_error(port: int) -> Exception:
    pool = urllib3.PoolManager(retries=False)
    with pytest.raises(urllib3.exceptions.HTTPError) as error:
        pool.request("GET", f"http://127.0.0.1:{port}/secret-part", timeout=0.1)
    return error.value


def test_errors_of_urllib3_are_given_in_words():
    assert http_module.reason_of(urllib3_error(free_port())) == "Connection refused"
    retries = urllib3.PoolManager(retries=urllib3.Retry(0))
    with pytest.raises(urllib3.exceptions.MaxRetryError) as error:
        retries.request("GET", f"http://127.0.0.1:{free_port()}/secret-part")
    assert http_module.reason_of(error.value) == "Connection refused"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert http_module.reason_of(urllib3_error(silent.getsockname()[1])) == "timed out"
    assert http_module.reason_of(urllib3.exceptions.ProtocolError("x")) == REASONS["ProtocolError"]
    throttled = urllib3.exceptions.MaxRetryError(
        None, "/secret-part", urllib3.exceptions.ResponseError("too many 503 error responses")
    )
    assert http_module.reason_of(throttled) == "too many 503 error responses"
