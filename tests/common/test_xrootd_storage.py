"""Reading and writing a real XRootD server: globs, logins and faults."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from common import storage
from common.errors import InputError, StorageError
from common.machine import free_port
from common.storage import xrootd_login
from tests.servers import xrootd
from tests.servers.grid import Grid

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(xrootd_server, tmp_path):
    """The server, with files in a folder of the test's own."""
    place = f"{xrootd_server.uri}/{tmp_path.name}"
    for name in ("a.root", "it's b [1].root", ".hidden.root", "x/c.root", "y/c.root", "y/z/d.root"):
        storage.write_bytes(f"{place}/{name}", CONTENT)
    yield place
    storage.delete(place)


def test_globs_match_files_of_a_server(server):
    def names(pattern):
        return [entry.uri.removeprefix(server) for entry in storage.glob(server + pattern)]

    assert names("/*.root") == ["/a.root", "/it's b [1].root"]
    assert names("/[xy]/c.root") == ["/x/c.root", "/y/c.root"]
    assert names("/?/*.root") == ["/x/c.root", "/y/c.root"]
    assert names("/*/*/*") == ["/y/z/d.root"]
    assert names("/nowhere*/x.root") == names("/nothing/*.root") == []
    assert len(names("")) == 6
    single = server.replace("//" + server.rsplit("/", 1)[1], "/" + server.rsplit("/", 1)[1])
    assert storage.glob(f"{single}/a.root")[0].uri == f"{server}/a.root"


def test_an_address_with_one_slash_names_the_same_file(server, tmp_path):
    single = "/".join(server.rsplit("//", 1))
    assert storage.read_bytes(f"{single}/a.root") == CONTENT
    assert storage.read_bytes(f"{server}/a.root/") == CONTENT
    with storage.open_source(f"{single}/a.root") as source:
        assert source.read(1, 3) == CONTENT[1:3]
    assert storage.download(f"{single}/a.root", tmp_path / "copy").read_bytes() == CONTENT
    storage.write_text(f"{single}/written", "1")
    assert storage.read_text(f"{server}/written") == "1"


def test_a_file_in_place_of_a_folder_is_an_input_error(server, no_pauses):
    for use in (storage.read_bytes, lambda uri: storage.write_text(uri, "1")):
        with pytest.raises(InputError, match="is a file"):
            use(f"{server}/a.root/below")


def test_missing_files_and_folders_are_input_errors(server, no_pauses):
    with pytest.raises(InputError, match="there is no file"):
        storage.open_source(f"{server}/nothing.root")
    with pytest.raises(InputError, match="folder"):
        storage.read_bytes(f"{server}/x")
    assert not storage.exists(f"{server}/a.root/below")
    assert storage.entries(f"{server}/a.root/below") == []


def test_an_unreachable_server_is_an_error_after_the_retries(no_pauses, monkeypatch):
    with pytest.raises(InputError, match=r"no\.such\.host\.invalid"):
        storage.read_bytes("root://no.such.host.invalid//a")
    start = time.monotonic()
    with pytest.raises(StorageError, match="cannot reach"):
        storage.read_bytes(f"root://localhost:{free_port()}//a")
    assert len(no_pauses) == 6
    assert time.monotonic() - start < 60


READER = """
import sys
from common import storage
from common.storage import retries
from common.errors import JecError
retries.PAUSES = (0.2,) * int(sys.argv[2])
with storage.open_source(sys.argv[1]) as source:
    source.read(0, 10)
    print("ready", flush=True)
    input()
    try:
        print(source.read(10, 20) == bytes(range(10, 20)))
    except JecError as error:
        print(type(error).__name__, error)
"""


def reader(uri, attempts):
    environment = os.environ | {"XRD_CONNECTIONWINDOW": "1", "XRD_STREAMERRORWINDOW": "0"}
    process = subprocess.Popen(
        [sys.executable, "-c", READER, uri, str(attempts)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_server_killed_during_reading_is_an_error():
    server = xrootd.start()
    try:
        (server.data / "a").write_bytes(CONTENT)
        process = reader(f"{server.uri}/a", 2)
        server.kill()
        output, _ = process.communicate("\n", timeout=60)
        assert output.startswith("PassingError cannot reach root://localhost")
    finally:
        server.remove()


def test_a_restarted_server_is_read_again():
    server = xrootd.start()
    (server.data / "a").write_bytes(CONTENT)
    process = reader(f"{server.uri}/a", 20)
    server.kill()
    second_server = xrootd.start(f"oss.localroot {server.data}", port=server.port)
    output, _ = process.communicate("\n", timeout=60)
    second_server.remove()
    server.remove()
    assert output == "True\n"


def test_a_redirect_to_a_dead_data_server_is_reported(no_pauses):
    dead = free_port()
    redirector = xrootd.start(f"xrootd.redirect localhost:{dead} /")
    try:
        with pytest.raises(StorageError, match=f"redirected to localhost:{dead}"):
            storage.read_bytes(f"{redirector.uri}/a")
    finally:
        redirector.remove()


@pytest.fixture(scope="module")
def grid():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Grid(Path(folder))


@pytest.fixture(scope="module")
def guarded(grid):
    """A server that accepts only X509 proxies (GSI)."""
    xrootd.need_program()
    certificate, key = grid.host()
    if os.getuid() == 0:
        shutil.chown(key, xrootd.USER)
    server = xrootd.start(
        "xrootd.seclib libXrdSec.so",
        f"sec.protocol gsi -certdir:{grid.certificates} -cert:{certificate} -key:{key}"
        " -gmapopt:nomap -crl:0",
        "sec.protbind * only gsi",
    )
    (server.data / "a").write_bytes(b"abc")
    yield server
    server.remove()


READ = """
import sys
from common import storage
from common.errors import AccessError
try:
    print(storage.read_bytes(sys.argv[1]))
except AccessError as error:
    print("refused:", error)
"""


def read_as(server, grid, **variables):
    """The output of a process with these variables that reads the guarded server's file."""
    variables["X509_CERT_DIR"] = str(grid.certificates)
    return subprocess.run(
        [sys.executable, "-c", READ, f"{server.uri}/a"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


def test_a_proxy_opens_a_guarded_server(guarded, grid, tmp_path):
    proxy = grid.proxy(tmp_path / "proxy", hours=1)
    assert read_as(guarded, grid, X509_USER_PROXY=str(proxy)) == "b'abc'\n"


@pytest.mark.parametrize(("hours", "fact"), [(-1, "expired on"), (None, "There is no X509 proxy")])
def test_a_guarded_server_refuses_others(guarded, grid, tmp_path, hours, fact):
    proxy = tmp_path / "proxy"
    if hours is not None:
        grid.proxy(proxy, hours)
    output = read_as(guarded, grid, X509_USER_PROXY=str(proxy), BEARER_TOKEN=token(-60))
    assert output.startswith(f"refused: {guarded.uri.rstrip('/')} refused access to /a")
    for text in [fact, str(proxy), "voms-proxy-init", "kinit", "token in BEARER_TOKEN expired on"]:
        assert text in output


def test_the_proxy_of_a_mounted_secret_is_copied(guarded, grid, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    grid.proxy(secret / "x509up", hours=1).chmod(0o444)
    login = {"JEC_XROOTD_LOGIN": str(secret), "TMPDIR": str(tmp_path)}
    assert read_as(guarded, grid, **login) == "b'abc'\n"
    copy = tmp_path / f"xrootd-{os.getuid()}" / "x509up"
    assert copy.stat().st_mode & 0o777 == 0o600


def token(seconds):
    claims = json.dumps({"exp": time.time() + seconds}).encode()
    return "head." + base64.urlsafe_b64encode(claims).decode().rstrip("=") + ".signature"


@pytest.mark.parametrize(
    ("hours", "facts"),
    [
        (1, ["is valid until"]),
        (-1, ["expired on", "voms-proxy-init"]),
        (None, ["There is no X509 proxy", "voms-proxy-init"]),
    ],
)
def test_state_reports_the_proxy(grid, tmp_path, monkeypatch, hours, facts):
    path = tmp_path / "proxy"
    monkeypatch.setenv("X509_USER_PROXY", str(path))
    if hours is not None:
        grid.proxy(path, hours)
    text = xrootd_login.state()
    for fact in [str(path), *facts]:
        assert fact in text


@pytest.mark.parametrize("by_file", [True, False])
@pytest.mark.parametrize(
    ("seconds", "fact"), [(100, "valid until"), (-100, "expired on"), (None, "There is no token")]
)
def test_state_reports_the_token(tmp_path, monkeypatch, by_file, seconds, fact):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    if by_file:
        monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    if seconds is not None and by_file:
        (tmp_path / "token").write_text(token(seconds) + "\n")
    elif seconds is not None:
        monkeypatch.setenv("BEARER_TOKEN", token(seconds))
    text = xrootd_login.state()
    assert fact in text
    if seconds is not None:
        assert token(seconds)[:20] not in text
