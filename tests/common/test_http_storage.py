"""Reading from a real web server: with and without ranges, and its faults."""

import contextlib
import http.server
import os
import ssl
import threading

import pytest
import trustme

from common import storage
from common.errors import AccessError, InputError, StorageError
from common.machine import free_port
from common.storage import http as http_storage
from tests.servers import web

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def server(web_server):
    folder = web_server.data / "http"
    (folder / "deep [1]").mkdir(parents=True)
    (folder / "a.bin").write_bytes(CONTENT)
    (folder / "b c.bin").write_bytes(b"b")
    (folder / "empty.bin").touch()
    (folder / "deep [1]" / "d.bin").write_bytes(b"d")
    return web_server


@pytest.mark.parametrize("prefix", ["", "/plain"], ids=["with ranges", "without ranges"])
def test_ranges_and_whole_files_are_read(server, tmp_path, prefix):
    uri = f"{server.uri}{prefix}/http/a.bin"
    ranges = [(1000, 2000), (0, 1), (255_999, 256_000), (3, 3)]
    with storage.open_source(uri) as source:
        assert source.size == len(CONTENT)
        assert source.read_ranges(ranges) == [CONTENT[start:stop] for start, stop in ranges]
    assert storage.read_bytes(uri) == CONTENT
    storage.download(uri, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert storage.exists(uri)
    assert [entry.size for entry in storage.entries(uri)] == [len(CONTENT)]


def test_an_empty_file_has_size_0(server):
    with storage.open_source(f"{server.uri}/plain/http/empty.bin") as source:
        assert source.size == 0


def test_globs_use_the_pages_of_folders(server):
    def names(pattern):
        return [storage.name(entry.uri) for entry in storage.glob(f"{server.uri}/http{pattern}")]

    assert names("/*.bin") == ["a.bin", "b%20c.bin", "empty.bin"]
    assert names("/de*/*.bin") == ["d.bin"]
    assert names("/*.root") == []
    assert names("") == ["a.bin", "b%20c.bin", "empty.bin"]
    assert storage.read_bytes(storage.glob(f"{server.uri}/http/b*")[0].uri) == b"b"


def test_the_fingerprint_changes_with_the_file(server):
    uri = f"{server.uri}/http/changing.bin"
    path = server.data / "http" / "changing.bin"
    path.write_bytes(b"1")
    before = storage.fingerprint(storage.entries(uri))
    assert storage.fingerprint(storage.entries(uri)) == before
    os.utime(path, (1, 1))
    assert storage.fingerprint(storage.entries(uri)) != before


def test_a_file_that_changes_while_it_is_read_is_an_error(server, no_pauses):
    path = server.data / "http" / "replaced.bin"
    path.write_bytes(b"12345")
    with storage.open_source(f"{server.uri}/http/replaced.bin") as source:
        os.utime(path, (1, 1))
        with pytest.raises(StorageError, match="changed"):
            source.read(0, 2)
        path.unlink()
        with pytest.raises(InputError, match="there is no file"):
            source.read(0, 2)
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("fault", ["cut/2", "busy/2"])
def test_a_temporary_fault_is_retried(server, no_pauses, fault):
    with storage.open_source(f"{server.uri}/{fault}/http/a.bin") as source:
        assert source.read(0, 70_000) == CONTENT[:70_000]
    assert 2 <= len(no_pauses) <= 4


@pytest.mark.parametrize(
    ("path", "error", "facts"),
    [
        ("status/404/a.bin", InputError, ["there is no file", "404"]),
        ("status/403/a.bin", AccessError, ["refused", "403"]),
        ("status/401/a.bin", AccessError, ["refused", "401"]),
        ("status/418/a.bin", InputError, ["418"]),
        ("busy/99/http/a.bin", StorageError, ["503"]),
        ("cut/99/http/a.bin", StorageError, ["cannot read"]),
        ("login/a.bin", InputError, ["web page"]),
        ("disguised/a.bin", InputError, ["web page"]),
    ],
)
def test_a_permanent_fault_is_reported_with_its_status(server, no_pauses, path, error, facts):
    with pytest.raises(error) as error_info, storage.open_source(f"{server.uri}/{path}") as source:
        source.read(0, 100_000)
    for fact in [server.uri, *facts]:
        assert fact in str(error_info.value)


@pytest.mark.parametrize("kind", ["login", "disguised"])
def test_a_web_page_is_never_read_as_data(server, kind):
    uri = f"{server.uri}/{kind}/a.yaml"
    for use in (storage.read_bytes, storage.entries, storage.open_file):
        with pytest.raises(InputError, match="web page"):
            use(uri)


@pytest.mark.parametrize(
    "begin", ["\ufeff<!DOCTYPE html>", "<!-- login --><html>", "<?xml version='1.0'?><Error/>"]
)
def test_a_web_page_is_recognised_by_its_beginning(server, begin):
    (server.data / "page.root").write_text(begin)
    for use in (storage.read_bytes, storage.entries, storage.open_file):
        with pytest.raises(InputError, match="web page"):
            use(f"{server.uri}/page.root")


def test_a_pattern_without_a_server_is_refused(server):
    with pytest.raises(InputError, match="not an address"):
        storage.glob("http://[::1/x*")


def test_a_redirect_to_a_dead_server_is_reported_with_its_address(server, no_pauses):
    port = free_port()
    with pytest.raises(StorageError, match=f"redirect to 127.0.0.1:{port}"):
        storage.read_bytes(f"{server.uri}/away/{port}/a.bin")
    assert len(no_pauses) > 3


def test_a_redirect_is_followed(server):
    assert storage.read_bytes(f"{server.uri}/away/{server.port}/http/a.bin") == CONTENT


def test_a_server_that_does_not_exist_is_an_input_error():
    with pytest.raises(InputError, match=r"no server no\.such\.host\.invalid"):
        storage.read_bytes("http://no.such.host.invalid/a")


def test_a_server_killed_during_reading_is_a_storage_error(tmp_path, no_pauses):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.bin").write_bytes(CONTENT)
    server = web.start(tmp_path / "web")
    with storage.open_source(f"{server.uri}/a.bin") as source:
        assert source.read(0, 10) == CONTENT[:10]
        server.kill()
        with pytest.raises(StorageError, match="cannot read"):
            source.read(10, 20)


def test_web_servers_are_read_only(server, tmp_path):
    for write in (
        lambda uri: storage.write_text(uri, "x"),
        lambda uri: storage.upload(__file__, uri),
        storage.delete,
    ):
        with pytest.raises(InputError, match="read only"):
            write(f"{server.uri}/new")


# ------------------------------------------------------------------------- range requests, and TLS


@contextlib.contextmanager
def recording_server(folder, tls=None):
    """A server over a folder that records the path and the headers of each request.

    tls: the certificate authority of its certificate, for https.
    """
    requests = []

    class Recording(web.Handler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            requests.append((self.path, dict(self.headers)))
            # a proxy is asked for the whole address
            self.path = self.path.removeprefix("http://elsewhere.invalid").partition("?")[0]
            super().do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recording)
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.issue_cert("localhost").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    scheme = "http" if tls is None else "https"
    try:
        yield f"{scheme}://localhost:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.bin").write_bytes(CONTENT)
    return tmp_path / "web"


def authority(path):
    """A new certificate authority, whose certificate is written to a file."""
    certificate_authority = trustme.CA()
    certificate_authority.cert_pem.write_to_path(str(path))
    return certificate_authority


def test_each_range_is_one_request_without_a_login(folder, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine localhost login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with (
        recording_server(folder) as (uri, requests),
        storage.open_source(f"{uri}/a.bin?part=a%2Fb") as source,
    ):
        assert source.read_ranges([(0, 10), (99, 200)]) == [CONTENT[:10], CONTENT[99:200]]
    ranges = sorted(headers["Range"] for _, headers in requests)
    assert ranges == ["bytes=0-63", "bytes=0-9", "bytes=99-199"]
    for path, headers in requests:
        assert path == "/a.bin?part=a%2Fb"
        assert headers["Accept-Encoding"] == "identity"
        assert "Authorization" not in headers


def test_ranges_after_a_redirect_are_read_through_requests(folder):
    with recording_server(folder) as (uri, requests):
        port = uri.rpartition(":")[2]
        with storage.open_source(f"{uri}/away/{port}/a.bin") as source:
            requests.clear()
            for start in (0, 100, 200):
                assert source.read(start, start + 10) == CONTENT[start : start + 10]
    away, there = f"/away/{port}/a.bin", "/a.bin"
    # the first one is tried directly, and then as the others are
    assert [path for path, _ in requests] == [away, *[away, there] * 3]


def test_ranges_go_through_the_proxy_of_the_environment(folder, monkeypatch):
    with recording_server(folder) as (proxy, requests):
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        uri = "http://elsewhere.invalid/a.bin"
        with storage.open_source(uri) as source:
            assert source.read(5, 20) == CONTENT[5:20]
        assert http_storage.range_of(uri, 7, 9, {"If-Match": "x"}) == CONTENT[7:9]
    assert [path for path, _ in requests] == [uri] * 3
    assert requests[-1][1]["If-Match"] == "x"


def test_a_web_page_instead_of_a_range_is_refused(folder, monkeypatch):
    with recording_server(folder) as (uri, _), storage.open_source(f"{uri}/a.bin") as source:
        send = web.Handler._send

        def as_page(self, status, body, headers, **options):
            send(self, status, body, {**headers, "Content-Type": "text/html"}, **options)

        monkeypatch.setattr(web.Handler, "_send", as_page)
        with pytest.raises(InputError, match="web page"):
            source.read(0, 10)


def test_trusted_certificates_are_loaded_once(folder, tmp_path, monkeypatch):
    """For any number of connections; each server's certificate is checked."""
    files = []
    load = ssl.SSLContext.load_verify_locations

    def record_and_load(self, cafile=None, *rest, **options):
        files.append(cafile)
        return load(self, cafile, *rest, **options)

    trusted = authority(tmp_path / "ca.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", record_and_load)
    with (
        recording_server(folder, trusted) as (first, requests),
        recording_server(folder, trusted) as (second, _),
    ):
        for uri in (first, second):
            with storage.open_source(f"{uri}/a.bin") as source:
                ranges = [(start, start + 10) for start in range(0, 100, 10)]
                expected = [CONTENT[start:stop] for start, stop in ranges]
                assert source.read_ranges(ranges) == expected
        assert len(requests) == 1 + len(ranges)
    assert files == [str(tmp_path / "ca.pem")]


def test_no_server_is_trusted_without_its_authority(folder, tmp_path, monkeypatch):
    trusted = authority(tmp_path / "ca.pem")
    authority(tmp_path / "other.pem")
    with recording_server(folder, trusted) as (uri, requests):
        content = http_storage.range_of(f"{uri}/a.bin", 0, 10, {}, str(tmp_path / "ca.pem"))
        assert content == CONTENT[:10]
        num_requests = len(requests)
        # the same server, by the usual certificates, by others, and by another name than its own
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            monkeypatch.delenv(name, raising=False)
        assert http_storage.range_of(f"{uri}/a.bin", 0, 10, {}) is None
        assert http_storage.range_of(f"{uri}/a.bin", 0, 10, {}, str(tmp_path / "other.pem")) is None
        by_number = uri.replace("localhost", "127.0.0.1")
        ca = str(tmp_path / "ca.pem")
        assert http_storage.range_of(f"{by_number}/a.bin", 0, 10, {}, ca) is None
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "other.pem"))
        with pytest.raises(InputError, match="no TLS connection"):
            storage.open_source(f"{uri}/a.bin")
        assert len(requests) == num_requests


def test_unreadable_certificates_are_refused_by_name(folder, tmp_path, monkeypatch):
    (tmp_path / "empty.pem").touch()
    with recording_server(folder, authority(tmp_path / "ca.pem")) as (uri, _):
        for name in ("missing.pem", "empty.pem"):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / name))
            with pytest.raises(InputError, match=name):
                storage.open_source(f"{uri}/a.bin")
