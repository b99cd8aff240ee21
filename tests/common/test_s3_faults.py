"""S3 that throttles or fails temporarily: requests are retried with growing pauses, and end with a
reason if it continues.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common import storage
from common.errors import AccessError, InputError, StorageError
from common.storage import s3


class Faulty(BaseHTTPRequestHandler):
    """Answers the next `faults` requests with an error, then serves the stored objects."""

    protocol_version = "HTTP/1.1"  # or a PUT waits a second for the leave to send

    faults: list[tuple[int, str]]
    objects: dict[str, bytes]
    requests = 0
    cuts = 0
    """The number of bodies that are truncated."""
    gets: list[tuple[bool, dict[str, str]]]
    """Whether the address is signed, and the headers of each GET."""

    def _fails(self) -> bool:
        type(self).requests += 1
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.faults:
            status, code = self.faults.pop(0)
            self._answer(
                status, f"<Error><Code>{code}</Code><Message>later</Message></Error>".encode()
            )
            return True
        if self.command == "PUT":
            self.objects[self.path] = content
        return False

    def do_PUT(self) -> None:
        if not self._fails():
            self._answer(200, b"")

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.gets.append(("X-Amz-Signature=" in query, dict(self.headers)))
        if self._fails():
            return
        content = self.objects[path]
        if range_ := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self._answer(206, content[int(range_[1]) : int(range_[2]) + 1])
        else:
            self._answer(200, content)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"e"')
        self.end_headers()
        if self.command == "GET" and self.cuts:
            type(self).cuts -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[type[Faulty]]:
    """A server at AWS_ENDPOINT_URL whose class holds `faults`; pauses between requests are recorded
    in `pauses` instead of waited for.
    """
    handler = type("Handler", (Faulty,), {"faults": [], "objects": {}, "pauses": [], "gets": []})
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http_server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://127.0.0.1:{http_server.server_port}"
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("botocore.endpoint.time.sleep", handler.pauses.append)
    storage.forget_client()
    yield handler
    storage.forget_client()
    http_server.shutdown()
    http_server.server_close()


@pytest.mark.parametrize("fault", [(503, "SlowDown"), (500, "InternalError"), (502, "Bad Gateway")])
def test_a_temporary_fault_is_retried(server, fault):
    server.faults += [fault] * 3
    storage.write_text("s3://jets/one", "content")
    server.faults += [fault] * 2
    assert storage.read_text("s3://jets/one") == "content"
    assert server.requests == 4 + 3
    assert len(server.pauses) == 5
    assert all(pause > 0 for pause in server.pauses)


def test_a_permanent_fault_is_reported_with_address_and_code(server):
    server.faults += [(503, "SlowDown")] * 100
    with pytest.raises(StorageError, match=r"http://127.* SlowDown .*s3://jets/one"):
        storage.read_bytes("s3://jets/one")
    assert server.requests == 9
    assert len(server.pauses) == 8
    # seconds: longer each time, and random
    assert all(pause <= 2**number for number, pause in enumerate(server.pauses))
    assert sum(server.pauses) > 5


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDenied"),
        (403, "SignatureDoesNotMatch"),
        (403, "RequestTimeTooSkewed"),
        (401, "Unauthorized"),
        (400, "ExpiredToken"),
        (400, "InvalidToken"),
    ],
)
def test_refused_access_is_retryable_and_names_the_keys(server, tmp_path, status, code):
    content = tmp_path / "a"
    content.write_bytes(b"a")
    entry = storage.Entry(uri="s3://jets/one", size=10, tag="e")

    def read_a_part() -> bytes:
        server.faults *= 2  # the signed address is refused, then boto3
        with storage.open_source(entry.uri, entry) as source:
            return source.read(0, 5)

    for use in (
        lambda: storage.read_bytes(entry.uri),
        lambda: storage.write_bytes(entry.uri, b""),
        lambda: storage.entries(entry.uri),
        lambda: storage.upload(content, entry.uri),
        lambda: storage.download(entry.uri, tmp_path / "b"),
        read_a_part,
    ):
        server.faults += [(status, code)]
        with pytest.raises(AccessError) as error_info:
            use()
        assert error_info.value.retryable
        for fact in (entry.uri, code, "AWS_SESSION_TOKEN"):
            assert fact in str(error_info.value)
    assert server.requests == 7  # none is repeated: only other keys would help


def test_a_wrong_name_is_not_retryable(server):
    for status, code in [(404, "NoSuchBucket"), (404, "NoSuchKey")]:
        server.faults += [(status, code)]
        with pytest.raises(InputError, match=r"s3://jets/one|'jets'") as error_info:
            storage.read_bytes("s3://jets/one")
        assert not error_info.value.retryable


@pytest.mark.parametrize("number_of_cuts", [2, 99])
def test_a_truncated_body_is_requested_again(server, no_pauses, tmp_path, number_of_cuts):
    storage.write_bytes("s3://jets/one", b"0123456789")
    server.cuts = number_of_cuts
    if number_of_cuts < 10:
        assert storage.read_bytes("s3://jets/one") == b"0123456789"
        assert len(no_pauses) == number_of_cuts
        return
    with pytest.raises(StorageError, match="s3://jets/one"):
        storage.read_bytes("s3://jets/one")
    assert len(no_pauses) == 6


def test_ranges_are_read_from_a_signed_address(server):
    storage.write_bytes("s3://jets/it's [1]~.root", b"0123456789")
    with storage.open_source(
        "s3://jets/it's [1]~.root", storage.Entry(uri="s3://jets/one", size=10, tag="e")
    ) as source:
        assert source.read_ranges([(0, 4), (7, 10)]) == [b"0123", b"789"]
    assert [signed for signed, _ in server.gets] == [True, True]
    for _, headers in server.gets:
        assert headers["If-Match"] == '"e"'
        assert "Authorization" not in headers


@pytest.mark.parametrize("fault", ["busy", "refused", "cut", "short", "no ranges"])
def test_boto3_reads_where_a_signed_address_fails(server, monkeypatch, fault):
    storage.write_bytes("s3://jets/one", b"0123456789")
    if fault == "cut":
        server.cuts = 1
    elif fault in ("busy", "refused"):
        server.faults.append((503, "SlowDown") if fault == "busy" else (403, "AccessDenied"))
    else:
        answer = server._answer
        answers = []

        def other_answer(self, status, body):
            answers.append(status)
            if len(answers) == 1:
                status, body = (206, body[:-1]) if fault == "short" else (200, b"0123")
            answer(self, status, body)

        monkeypatch.setattr(server, "_answer", other_answer)
    with storage.open_source(
        "s3://jets/one", storage.Entry(uri="s3://jets/one", size=10, tag="e")
    ) as source:
        assert source.read(0, 4) == b"0123"
        assert source.read(4, 8) == b"4567"
    assert [signed for signed, _ in server.gets] == [True, False, False]


def test_other_keys_are_used_once_the_client_is_forgotten(monkeypatch):
    """`--check` reads with our own keys, then with those of the run's Secret."""
    keys = []
    for key in ("our-own", "of-the-secret"):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        storage.forget_client()
        address = s3.signer().generate_presigned_url("get_object", {"Bucket": "b", "Key": "k"})
        keys.append(re.search(r"X-Amz-Credential=([\w-]+)", address)[1])
    storage.forget_client()
    assert keys == ["our-own", "of-the-secret"]
