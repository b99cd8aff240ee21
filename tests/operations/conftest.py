"""A Kubeflow Pipelines server that kfp's real client talks to, and no credentials of the machine
that the tests run on.
"""

from __future__ import annotations

import pytest

from tests.operations.fake_kfp import FakeKfp

VARIABLES = (
    "KFP_TOKEN",
    "KFP_TOKEN_FILE",
    "KFP_COOKIE_FILE",
    "KFP_USERNAME",
    "KFP_PASSWORD",
    "KFP_ENDPOINT",
    "KF_PIPELINES_ENDPOINT",
    "KF_PIPELINES_UI_ENDPOINT",
    "KUBERNETES_SERVICE_HOST",
)


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))  # kfp's client keeps its settings there


@pytest.fixture
def kfp():
    with FakeKfp() as server:
        yield server
