"""One real API server for all tests of this room: the CRDs, the namespaces and deploy/'s Role."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from tests.cluster.api_server import ApiServer, definitions

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "physics"
LEVELS = ("restricted", "baseline")
EDITOR = "system:serviceaccount:physics:default-editor"


@pytest.fixture(scope="session")
def server(tmp_path_factory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api-server")) as api_server:
        yield api_server


@pytest.fixture(scope="session")
def clients(server, tmp_path_factory) -> Callable[[str], client.ApiClient]:
    """A client of a user."""
    folder = tmp_path_factory.mktemp("kubeconfigs")

    def make(user: str) -> client.ApiClient:
        path = server.kubeconfig(folder / user.replace(":", "-"), user, namespace=NAMESPACE)
        return config.new_client_from_config(str(path))

    return make


@pytest.fixture(scope="session")
def admin(clients) -> client.ApiClient:
    """The administrator, on a server with all that the tests need."""
    admin_client = clients("admin")
    extensions = client.ApiextensionsV1Api(admin_client)
    names = []
    for definition in definitions():
        admin_client.call_api(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            "POST",
            body=definition,
            auth_settings=["BearerToken"],
            header_params={"Content-Type": "application/json"},
            response_type="object",
        )
        names.append(definition["metadata"]["name"])
    end = time.monotonic() + 60
    for name in names:
        while not _is_established(extensions.read_custom_resource_definition(name)):
            assert time.monotonic() < end, f"{name} is not established"
            time.sleep(0.1)

    core = client.CoreV1Api(admin_client)
    core.create_namespace({"metadata": {"name": NAMESPACE}})
    for level in LEVELS:
        labels = {"pod-security.kubernetes.io/enforce": level}
        core.create_namespace({"metadata": {"name": level, "labels": labels}})
    rights = client.RbacAuthorizationV1Api(admin_client)
    role, binding = (
        yaml.safe_load((ROOT / "deploy" / "base" / f"launcher_role{suffix}.yaml").read_text())
        for suffix in ("", "_binding")
    )
    binding["subjects"][0]["namespace"] = NAMESPACE
    rights.create_namespaced_role(NAMESPACE, role)
    rights.create_namespaced_role_binding(NAMESPACE, binding)
    return admin_client


def _is_established(definition) -> bool:
    conditions = definition.status.conditions or []
    return any(
        condition.type == "Established" and condition.status == "True" for condition in conditions
    )


@pytest.fixture
def editor(admin, server, tmp_path, monkeypatch) -> None:
    """This process is the account of the steps."""
    path = server.kubeconfig(tmp_path / "kubeconfig", EDITOR, namespace=NAMESPACE)
    monkeypatch.setenv("KUBECONFIG", str(path))
