"""--check reads the data with the pods' login, from a Secret, and never with the user's own."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from common.config import RunConfig
from common.storage import xrootd_login
from operations.check import inputs_of_a_run
from operations.pods_login import as_the_pods
from operations.table import State
from tests.clusters import conftest as clusters_conftest

fake = clusters_conftest.fake

ROOT_DATA = {
    f"data_{part}": f"root://localhost:1//{part}.root" for part in ("train", "val", "test")
}
OURS = {"BEARER_TOKEN": "ours", "X509_USER_PROXY": "/ours", "KRB5CCNAME": "FILE:/ours"}


@pytest.fixture
def cluster(fake, monkeypatch):
    """A cluster with the Secret grid-login; this process has a login of its own."""
    backend = fake()
    data = {"x509up": base64.b64encode(b"the pods' proxy").decode()}
    backend.api.create("secrets", {"metadata": {"name": "grid-login"}, "data": data})
    backend.api.create("secrets", {"metadata": {"name": "other"}, "data": {"user": "bWU="}})
    for name, value in OURS.items():
        monkeypatch.setenv(name, value)
    return backend


def logins():
    names = (*OURS, "BEARER_TOKEN_FILE", xrootd_login.SECRET_FOLDER)
    return {name: os.environ.get(name) for name in names}


def test_the_secrets_proxy_is_used_and_ours_is_hidden(cluster):
    before = logins()
    with as_the_pods(RunConfig(xrootd_secret="grid-login", **ROOT_DATA)) as lines:
        assert [line.state for line in lines] == [State.OK]
        xrootd_login.prepare()
        proxy = Path(os.environ["X509_USER_PROXY"])
        assert proxy.read_text() == "the pods' proxy"
        assert proxy.stat().st_mode & 0o777 == 0o600
        assert logins()["BEARER_TOKEN"] is None
        assert "/ours" not in str(logins())
        # a renewed Secret is copied anew
        Path(os.environ[xrootd_login.SECRET_FOLDER], "x509up").write_text("renewed")
        xrootd_login.prepare()
        assert proxy.read_text() == "renewed"
    assert logins() == before


@pytest.mark.parametrize(
    ("keys", "have_proxy", "variable", "note"),
    [
        (["token"], False, None, False),
        (["token"], True, None, True),
        (["krb5cc_1000"], True, "/nonexistent", False),
        ([], False, None, False),
    ],
    ids=["token", "token beside our proxy", "ticket beside our proxy", "no login"],
)
def test_a_missing_proxy_is_set_only_to_hide_ours_and_never_beside_a_token(
    cluster, monkeypatch, tmp_path, keys, have_proxy, variable, note
):
    """With a missing proxy XRootD's client uses no TLS, and without TLS it sends no token."""
    ours = tmp_path / "x509up"
    if have_proxy:
        ours.write_text("our proxy")
    monkeypatch.setattr(xrootd_login, "default_proxy", lambda: ours)
    data = dict.fromkeys(keys, base64.b64encode(b"the pods'").decode())
    if keys:
        cluster.api.create("secrets", {"metadata": {"name": "login"}, "data": data})
    before = logins()
    secret = "login" if keys else "none"
    with as_the_pods(RunConfig(xrootd_secret=secret, **ROOT_DATA)) as lines:
        xrootd_login.prepare()
        assert os.environ.get("X509_USER_PROXY") == variable
        assert (str(ours) in lines[0].finding) is note
    assert logins() == before


@pytest.mark.parametrize("secret", ["absent", "other"])
def test_an_unusable_secret_is_reported(cluster, secret):
    before = logins()
    with as_the_pods(RunConfig(xrootd_secret=secret, **ROOT_DATA)) as lines:
        assert [line.state for line in lines] == [State.NOT_SEEN]
        assert f"Secret {secret}" in lines[0].finding
        assert logins() == before


def test_without_a_secret_the_pods_have_no_login(cluster):
    with as_the_pods(RunConfig(**ROOT_DATA)) as lines:
        assert [line.state for line in lines] == [State.OK]
        assert "There is no token" in xrootd_login.state()


def test_without_root_addresses_no_secret_is_read(cluster):
    cluster.api.forbid("get", "secrets")
    with as_the_pods(RunConfig(xrootd_secret="grid-login")) as lines:
        assert lines == []


def test_the_table_has_the_line_and_tries_the_paths(cluster, xrootd_server):
    config = RunConfig(
        **{name: f"{xrootd_server.uri}/nothing/{name}.root" for name in ROOT_DATA},
        xrootd_secret="grid-login",
    )
    lines = {line.what: line for line in inputs_of_a_run(config, on_kubeflow=True)}
    assert "grid-login" in lines["XRootD as the pods"].finding
    assert lines["train data"].state == State.ERROR
    assert "/nothing/data_train.root" in lines["train data"].finding
