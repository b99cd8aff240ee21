"""Reading and writing a real XRootD server: globs, logins and faults."""

import base64
import datetime
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
from common.storage import xrootd_login
from tests.servers import xrootd

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(xrootd_server, tmp_path):
    """The server, with files in a folder of the test's own."""
    place = f"{xrootd_server.uri}/{tmp_path.name}"
    for name in ("a.root", "it's b [1].root", ".hidden.root", "x/c.root", "y/c.root", "y/z/d.root"):
        storage.write_bytes(f"{place}/{name}", CONTENT)
    yield place
    storage.delete(place)


def test_globs(server):
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


def test_a_file_that_vanishes_in_the_middle(server, no_pauses):
    with pytest.raises(InputError, match="there is no file"):
        storage.open_source(f"{server}/nothing.root")
    with pytest.raises(InputError, match="folder"):
        storage.read_bytes(f"{server}/x")
    assert not storage.exists(f"{server}/a.root/below")
    assert storage.entries(f"{server}/a.root/below") == []


def test_a_server_that_is_not_there(no_pauses, monkeypatch):
    with pytest.raises(InputError, match=r"no\.such\.host\.invalid"):
        storage.read_bytes("root://no.such.host.invalid//a")
    start = time.monotonic()
    with pytest.raises(StorageError, match="cannot reach"):
        storage.read_bytes(f"root://localhost:{xrootd.free_port()}//a")
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


def test_a_server_killed_in_the_middle():
    server = xrootd.start()
    try:
        (server.data / "a").write_bytes(CONTENT)
        lost = reader(f"{server.uri}/a", 2)
        server.kill()
        said, _ = lost.communicate("\n", timeout=60)
        assert said.startswith("PassingError cannot reach root://localhost")
    finally:
        server.remove()


def test_a_server_that_comes_back_is_asked_again():
    server = xrootd.start()
    (server.data / "a").write_bytes(CONTENT)
    waiting = reader(f"{server.uri}/a", 20)
    server.kill()
    again = xrootd.start(f"oss.localroot {server.data}", port=server.port)
    said, _ = waiting.communicate("\n", timeout=60)
    again.remove()
    server.remove()
    assert said == "True\n"


def test_a_redirect_to_a_dead_data_server(no_pauses):
    dead = xrootd.free_port()
    redirector = xrootd.start(f"xrootd.redirect localhost:{dead} /")
    try:
        with pytest.raises(StorageError, match=f"redirected to localhost:{dead}"):
            storage.read_bytes(f"{redirector.uri}/a")
    finally:
        redirector.remove()


@pytest.fixture(scope="module")
def guarded():
    """A server that wants a shared secret (sss), and the file that holds it."""
    xrootd.need_program()
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder, "client.keytab")
        command = ["xrdsssadmin", "-k", "jec", "-u", "anybody", "-g", "anygroup", "add", str(keys)]
        subprocess.run(command, input="y\n", text=True, check=True, capture_output=True)
        for_server = Path(shutil.copy(keys, Path(folder, "server.keytab")))
        for_server.chmod(0o600)
        if os.getuid() == 0:
            os.chmod(folder, 0o755)
            shutil.chown(for_server, xrootd.USER)
        server = xrootd.start(
            "xrootd.seclib libXrdSec.so",
            f"sec.protocol sss -s {for_server}",
            "sec.protbind * only sss",
        )
        (server.data / "a").write_bytes(b"abc")
        yield server, keys
        server.remove()


READ = """
import sys
from common import storage
from common.errors import InputError
try:
    print(storage.read_bytes(sys.argv[1]))
except InputError as error:
    print("refused:", error)
"""


def test_a_server_with_a_login(guarded):
    server, keys = guarded

    def said(**variables):
        return subprocess.run(
            [sys.executable, "-c", READ, f"{server.uri}/a"],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    assert said(XrdSecSSSKT=str(keys)) == "b'abc'\n"
    refused = said(XrdSecSSSKT="/nowhere", X509_USER_PROXY="/no/proxy", BEARER_TOKEN=token(-60))
    assert refused.startswith("refused:")
    for fact in [server.uri.rstrip("/"), "/no/proxy", "voms-proxy-init", "kinit", "expired on"]:
        assert fact in refused


def token(seconds):
    claims = json.dumps({"exp": time.time() + seconds}).encode()
    return "head." + base64.urlsafe_b64encode(claims).decode().rstrip("=") + ".signature"


def make_proxy(path, days):
    """A certificate that ends in some days, as a proxy file holds it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "me")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


@pytest.mark.parametrize(
    ("days", "facts"),
    [
        (1, ["is valid until"]),
        (-1, ["expired on", "voms-proxy-init"]),
        (None, ["There is no X509 proxy", "voms-proxy-init"]),
    ],
)
def test_the_state_of_the_proxy(tmp_path, monkeypatch, days, facts):
    path = tmp_path / "proxy"
    monkeypatch.setenv("X509_USER_PROXY", str(path))
    if days is not None:
        make_proxy(path, days)
    said = xrootd_login.state()
    for fact in [str(path), *facts]:
        assert fact in said


@pytest.mark.parametrize("by_file", [True, False])
@pytest.mark.parametrize(
    ("seconds", "fact"), [(100, "valid until"), (-100, "expired on"), (None, "There is no token")]
)
def test_the_state_of_the_token(tmp_path, monkeypatch, by_file, seconds, fact):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("BEARER_TOKEN", raising=False)
    if by_file:
        monkeypatch.setenv("BEARER_TOKEN_FILE", str(tmp_path / "token"))
    if seconds is not None and by_file:
        (tmp_path / "token").write_text(token(seconds) + "\n")
    elif seconds is not None:
        monkeypatch.setenv("BEARER_TOKEN", token(seconds))
    said = xrootd_login.state()
    assert fact in said
    if seconds is not None:
        assert token(seconds)[:20] not in said
