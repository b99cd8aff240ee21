"""Kerberos tickets and bearer tokens with real XRootD servers that accept nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.servers import kerberos, tokens, xrootd
from tests.servers.grid import Grid

WORK = """
import sys
from common import storage
from common.errors import AccessError
try:
    if sys.argv[2:]:
        storage.write_text(sys.argv[1], sys.argv[2])
    print(storage.read_text(sys.argv[1]))
except AccessError as error:
    print("refused:", error)
"""
NO_LOGIN = {"XDG_RUNTIME_DIR": "/nowhere", "KRB5CCNAME": "/nowhere/ticket"}


def output_of(*words, program=WORK, **variables):
    """The output of a process that has only this login and reads an address."""
    inherited = {
        name: text for name, text in os.environ.items() if not name.startswith(("BEARER", "X509"))
    }
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        env=inherited | NO_LOGIN | variables,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


@pytest.fixture(scope="module")
def folder():
    """A folder that the servers' user may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="jec-login-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


# --------------------------------------------------------------------------------------- Kerberos


@pytest.fixture(scope="module")
def realm(folder):
    realm_ = kerberos.Realm(folder)
    yield realm_
    realm_.stop()


@pytest.fixture(scope="module")
def ticket_server(realm):
    """A server that accepts only Kerberos tickets."""
    xrootd.own(realm.keytab)
    server = xrootd.start(
        "xrootd.seclib libXrdSec.so",
        f"sec.protocol krb5 {realm.keytab} {kerberos.SERVICE}",
        "sec.protbind * only krb5",
        environment=realm.environment(),
    )
    (server.data / "a").write_text("abc")
    yield server
    server.remove()


def with_ticket(realm, server, **variables):
    names = {name: text for name, text in realm.environment().items() if name.startswith("KRB5")}
    return output_of(f"{server.uri}/a", **(names | variables))


def test_a_ticket_opens_the_server(realm, ticket_server, tmp_path):
    ticket = realm.ticket(tmp_path / "ticket", seconds=600)
    assert with_ticket(realm, ticket_server, KRB5CCNAME=str(ticket)) == "abc\n"
    assert "login as me" in ticket_server.log.read_text()


def test_the_ticket_of_a_mounted_secret_opens_the_server(realm, ticket_server, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    realm.ticket(secret / "krb5cc_1000", seconds=600).chmod(0o444)
    login = {"JEC_XROOTD_LOGIN": str(secret), "TMPDIR": str(tmp_path)}
    assert with_ticket(realm, ticket_server, **login) == "abc\n"


def test_an_expired_ticket_is_reported_with_its_remedy(realm, ticket_server, tmp_path):
    ticket = realm.ticket(tmp_path / "ticket", seconds=1)
    time.sleep(2.5)  # with the realm's tolerance of a second
    output = with_ticket(realm, ticket_server, KRB5CCNAME=str(ticket))
    assert output.startswith("refused: ")
    assert f"The Kerberos ticket {ticket} expired; renew it: kinit" in output


def test_a_missing_ticket_is_reported_with_its_remedy(realm, ticket_server, tmp_path):
    output = with_ticket(realm, ticket_server, KRB5CCNAME=str(tmp_path / "ticket"))
    assert output.startswith("refused: ")
    assert "There is no Kerberos ticket (kinit" in output


# ----------------------------------------------------------------------------------------- tokens


@pytest.fixture(scope="module")
def grid(folder):
    return Grid(folder)


@pytest.fixture(scope="module")
def issuer(folder):
    return tokens.Issuer(folder)


@pytest.fixture(scope="module")
def token_server(grid, issuer):
    """A server that accepts only bearer tokens, over TLS, and enforces their scopes."""
    certificate, key = grid.host()
    xrootd.own(key)
    server = xrootd.start(
        "xrootd.seclib libXrdSec.so",
        f"xrd.tls {certificate} {key}",
        f"xrd.tlsca certdir {grid.certificates}",
        "xrootd.tls capable all",
        f"sec.protocol ztn -tokenlib {tokens.PLUGIN}",
        "sec.protbind * only ztn",
        "ofs.authorize 1",
        f"ofs.authlib {tokens.PLUGIN} config={issuer.config}",
        environment=issuer.environment,
    )
    (server.data / "a").write_text("abc")
    yield server
    server.remove()


def with_token(grid, server, *content, scheme="root", path="/a", **variables):
    uri = server.uri.replace("root", scheme, 1) + path
    return output_of(uri, *content, X509_CERT_DIR=str(grid.certificates), **variables)


@pytest.mark.parametrize("scheme", ["root", "roots"])
def test_a_token_opens_the_server(grid, issuer, token_server, scheme):
    token = issuer.token(600)
    assert with_token(grid, token_server, scheme=scheme, BEARER_TOKEN=token) == "abc\n"


def test_a_missing_proxy_that_breaks_tls_is_reported_with_its_remedy(grid, issuer, token_server):
    missing = {"X509_USER_PROXY": "/nowhere/proxy"}
    output = with_token(grid, token_server, BEARER_TOKEN=issuer.token(600), **missing)
    assert output.startswith("refused: ")
    assert "unset X509_USER_PROXY to log in with a token" in output


def test_a_token_may_come_from_a_file_or_a_mounted_secret(grid, issuer, token_server, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    file = secret / "token"
    file.write_text(issuer.token(600) + "\n")
    file.chmod(0o600)
    assert with_token(grid, token_server, BEARER_TOKEN_FILE=str(file)) == "abc\n"
    file.chmod(0o444)
    login = {"JEC_XROOTD_LOGIN": str(secret), "TMPDIR": str(tmp_path)}
    assert with_token(grid, token_server, **login) == "abc\n"


AS_THE_PODS = """
import sys, types
from common import storage
from common.config import RunConfig
from operations import pods_login
uri, token = sys.argv[1:]
secret = types.SimpleNamespace(contents={"token": token.encode()})
pods_login.secret_of = lambda config, name: secret
config = RunConfig(data_train=uri, data_val=uri, data_test=uri, xrootd_secret="grid-login")
with pods_login.as_the_pods(config):
    print(storage.read_text(uri))
"""


def test_the_check_reads_with_the_token_of_a_secret(grid, issuer, token_server, tmp_path):
    output = with_token(
        *(grid, token_server, issuer.token(600)), program=AS_THE_PODS, TMPDIR=str(tmp_path)
    )
    assert output == "abc\n"


def test_writing_needs_a_token_with_the_scope_to_modify(grid, issuer, token_server):
    token = issuer.token(600, "storage.read:/ storage.modify:/out")
    assert with_token(grid, token_server, "new", path="/out/b", BEARER_TOKEN=token) == "new\n"
    assert (token_server.data / "out" / "b").read_text() == "new"
    token = issuer.token(600)
    output = with_token(grid, token_server, "other", path="/out/b", BEARER_TOKEN=token)
    assert "refused access to /out" in output
    assert (token_server.data / "out" / "b").read_text() == "new"


@pytest.mark.parametrize(
    ("seconds", "scope", "fact"),
    [
        (-600, "storage.read:/", "The token in BEARER_TOKEN expired on"),
        (None, "", "There is no token: BEARER_TOKEN is not set (oidc-token or htgettoken"),
        (600, "storage.read:/other", "There is a token in BEARER_TOKEN, valid until"),
    ],
    ids=["expired", "missing", "of another folder"],
)
def test_an_unusable_token_is_reported_without_its_value(
    grid, issuer, token_server, seconds, scope, fact
):
    token = issuer.token(seconds, scope) if seconds is not None else ""
    output = with_token(grid, token_server, BEARER_TOKEN=token)
    assert output.startswith("refused: ")
    assert "refused access to /a" in output
    assert fact in output
    assert not token or token not in output
