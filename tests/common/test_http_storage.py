"""Reading from a real web server: with and without ranges, and its faults."""

import os

import pytest

from common import storage
from common.errors import AccessError, InputError, StorageError
from tests.servers import web
from tests.servers.xrootd import free_port

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
def test_parts_and_whole(server, tmp_path, prefix):
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


def test_an_empty_file(server):
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


def test_a_file_that_changes_while_it_is_read(server, no_pauses):
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
def test_a_fault_that_passes_is_waited_out(server, no_pauses, fault):
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
def test_faults_that_stay(server, no_pauses, path, error, facts):
    with pytest.raises(error) as caught, storage.open_source(f"{server.uri}/{path}") as source:
        source.read(0, 100_000)
    for fact in [server.uri, *facts]:
        assert fact in str(caught.value)


@pytest.mark.parametrize("kind", ["login", "disguised"])
def test_a_page_is_never_taken_for_data(server, kind):
    uri = f"{server.uri}/{kind}/a.yaml"
    for use in (storage.read_bytes, storage.entries, storage.open_file):
        with pytest.raises(InputError, match="web page"):
            use(uri)


@pytest.mark.parametrize(
    "begin", ["\ufeff<!DOCTYPE html>", "<!-- login --><html>", "<?xml version='1.0'?><Error/>"]
)
def test_a_page_is_known_by_its_beginning(server, begin):
    (server.data / "page.root").write_text(begin)
    for use in (storage.read_bytes, storage.entries, storage.open_file):
        with pytest.raises(InputError, match="web page"):
            use(f"{server.uri}/page.root")


def test_a_pattern_without_a_server(server):
    with pytest.raises(InputError, match="no address"):
        storage.glob("http://[::1/x*")


def test_a_redirect_to_a_dead_server_names_it(server, no_pauses):
    port = free_port()
    with pytest.raises(StorageError, match=f"redirect to 127.0.0.1:{port}"):
        storage.read_bytes(f"{server.uri}/away/{port}/a.bin")
    assert len(no_pauses) > 3


def test_a_redirect_is_followed(server):
    assert storage.read_bytes(f"{server.uri}/away/{server.port}/http/a.bin") == CONTENT


def test_a_server_that_does_not_exist():
    with pytest.raises(InputError, match=r"no server no\.such\.host\.invalid"):
        storage.read_bytes("http://no.such.host.invalid/a")


def test_a_server_killed_in_the_middle(tmp_path, no_pauses):
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
