"""The cluster files: they build, every object would be taken, names and permissions agree with the
code, and no key is in them.
"""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clusters import permissions, ticket, validate
from clusters.manifests import COPY_TICKET, CREDENTIALS, TICKET_SECRET, TICKETS, Ticket
from clusters.protocol import STEP_LABEL
from common.config import RunConfig
from operations.server import MULTI_USER_ACCOUNT, SINGLE_USER_ACCOUNT
from tests.deploy import kustomize

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SETTINGS = {
    "AWS_ENDPOINT_URL": "https://s3.example:8443",
    "S3_HOST": "s3.example:8443",
    "S3_REGION": "us-east-1",
    "S3_USE_HTTPS": "1",
    "KERBEROS_PRINCIPAL": "user@REALM",
}
MODELS = {
    "ServiceAccount": "V1ServiceAccount",
    "Role": "V1Role",
    "RoleBinding": "V1RoleBinding",
    "ConfigMap": "V1ConfigMap",
    "Secret": "V1Secret",
    "CronJob": "V1CronJob",
}
POD_DEFAULT = {  # fields of PodDefaultSpec in Kubeflow's admission webhook
    "desc": "str",
    "selector": "V1LabelSelector",
    "env": "list[V1EnvVar]",
    "envFrom": "list[V1EnvFromSource]",
    "volumes": "list[V1Volume]",
    "volumeMounts": "list[V1VolumeMount]",
    "initContainers": "list[V1Container]",
    "sidecars": "list[V1Container]",
    "tolerations": "list[V1Toleration]",
    "labels": "dict(str, str)",
    "annotations": "dict(str, str)",
    "serviceAccountName": "str",
    "automountServiceAccountToken": "bool",
    "imagePullSecrets": "list[V1LocalObjectReference]",
    "command": "list[str]",
    "args": "list[str]",
}


@pytest.fixture(scope="module")
def deploy(tmp_path_factory):
    """A copy of deploy/ with the example filled in."""
    folder = tmp_path_factory.mktemp("site") / "deploy"
    shutil.copytree(DEPLOY, folder)
    example = folder / "overlays/example"
    for name in ("settings", "s3"):
        values = SETTINGS if name == "settings" else dict.fromkeys(CREDENTIALS, "value")
        lines = (example / f"{name}.env.example").read_text().splitlines()
        keys = {line.split("=")[0] for line in lines if not line.startswith("#")}
        assert keys == set(values)
        (example / f"{name}.env").write_text(
            "".join(f"{key}={value}\n" for key, value in values.items())
        )
    return folder


COMPONENTS = ["pod_defaults", "eos", "tensorboard"]
EVERY_CLUSTER = ("v1", "batch/v1", "rbac.authorization.k8s.io/v1")


@pytest.fixture(scope="module")
def objects(deploy):
    """Those of an overlay with all components."""
    return kustomize.build(with_components(deploy, COMPONENTS))


def with_components(deploy, names):
    """Copy the example to an overlay with these components."""
    overlay = deploy / "overlays" / "-".join(["with", *names])
    shutil.copytree(deploy / "overlays/example", overlay)
    file = overlay / "kustomization.yaml"
    content = yaml.safe_load(file.read_text())
    assert content["components"] == []
    content["components"] = [f"../../{name}" for name in names]
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return overlay


def test_the_example_has_only_kinds_that_every_cluster_serves(deploy):
    """One object of a kind that the cluster does not serve makes `kubectl apply -k` fail."""
    example = kustomize.build(deploy / "overlays/example")
    assert {thing["apiVersion"] for thing in example} <= set(EVERY_CLUSTER)
    assert {thing["kind"] for thing in example} == {
        "ConfigMap",
        "Role",
        "RoleBinding",
        "Secret",
        "ServiceAccount",
    }


def test_every_component_exists_and_is_optional(deploy):
    folders = {file.parent.name for file in deploy.glob("*/kustomization.yaml")} - {"base"}
    assert folders == set(COMPONENTS)
    base = len(kustomize.build(deploy / "overlays/example"))
    for name in COMPONENTS:
        assert len(kustomize.build(with_components(deploy, [name]))) > base


def only(objects, kind, name):
    (match,) = [
        thing for thing in objects if thing["kind"] == kind and thing["metadata"]["name"] == name
    ]
    return match


def test_every_object_fits_its_api_model(objects):
    problems_by_name = {
        f"{thing['kind']} {thing['metadata']['name']}": list(problems(thing)) for thing in objects
    }
    assert len(problems_by_name) == len(objects) == 12, (
        "two objects have one name, or the number of objects has changed"
    )
    assert {
        name: problem_list for name, problem_list in problems_by_name.items() if problem_list
    } == {}


def problems(thing):
    kind = thing["kind"]
    if kind in MODELS:
        yield from validate._against_model(thing, MODELS[kind], "kubernetes.client", "")
    elif kind == "PodDefault":
        assert thing["apiVersion"] == "kubeflow.org/v1alpha1"
        assert thing["spec"]["selector"], "an empty selector would take every pod of the namespace"
        for field, value in thing["spec"].items():
            yield from validate._against_model(
                value, POD_DEFAULT[field], "kubernetes.client", field
            )
    else:
        assert (thing["apiVersion"], kind) == ("tensorboard.kubeflow.org/v1alpha1", "Tensorboard")
        assert set(thing["spec"]) == {"logspath"}


def test_the_checks_find_wrong_fields(objects):
    wrong_object = {**only(objects, "ServiceAccount", "jec-predictor"), "secret": []}
    assert any("unknown field 'secret'" in problem for problem in problems(wrong_object))
    wrong_object = {**only(objects, "PodDefault", "jec-s3")}
    wrong_object["spec"] = {**wrong_object["spec"], "env": [{"name": "A", "valeu": "b"}]}
    assert any("unknown field 'valeu'" in problem for problem in problems(wrong_object))


def test_the_launcher_s_role_is_the_table_of_permissions(objects):
    assert only(objects, "Role", "jec-launcher")["rules"] == permissions.rules()


def test_every_subject_is_in_the_namespace(objects):
    assert {thing["metadata"]["namespace"] for thing in objects} == {"NAMESPACE"}
    for binding in (thing for thing in objects if thing["kind"] == "RoleBinding"):
        assert only(objects, "Role", binding["roleRef"]["name"])
        assert {subject["namespace"] for subject in binding["subjects"]} == {"NAMESPACE"}


def test_the_accounts_that_kubeflow_takes_by_itself_have_the_role(objects):
    """A clone in the UI names no account."""
    subjects = only(objects, "RoleBinding", "jec-launcher")["subjects"]
    accounts = {SINGLE_USER_ACCOUNT, MULTI_USER_ACCOUNT}
    assert {subject["name"] for subject in subjects} == accounts


def test_the_predictors_secret_has_the_names_of_the_configuration(objects):
    config = RunConfig()
    secret = only(objects, "Secret", config.s3_secret)
    assert set(secret["data"]) == set(CREDENTIALS)
    assert secret["metadata"]["annotations"] == {
        "serving.kserve.io/s3-endpoint": SETTINGS["S3_HOST"],
        "serving.kserve.io/s3-usehttps": "1",
        "serving.kserve.io/s3-region": "us-east-1",
    }
    assert only(objects, "ServiceAccount", "jec-predictor")["secrets"] == [
        {"name": config.s3_secret}
    ]


def test_every_reference_names_an_existing_key(objects):
    keys_by_name = {
        thing["metadata"]["name"]: set(thing["data"])
        for thing in objects
        if thing["kind"] in ("ConfigMap", "Secret")
    }
    text = yaml.safe_dump(objects, default_flow_style=True, width=10**9)
    references = re.findall(r"KeyRef: \{key: ([\w-]+), name: ([\w-]+)\}", text)
    assert len(references) == 7
    assert [(name, key) for key, name in references if key not in keys_by_name[name]] == []


def test_containers_are_unprivileged_and_of_the_site_s_images(objects):
    all_containers = [container for thing in objects for container in kustomize.containers(thing)]
    assert len(all_containers) == 2
    for container in all_containers:
        assert container["image"] == "REGISTRY/jec-steps:TAG"
        assert container["resources"].keys() == {"requests", "limits"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    pod = only(objects, "CronJob", "jec-ticket")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    mounts = {
        mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]
    }
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_the_tensorboard_s_pod_gets_s3(objects):
    """The controller copies labels to the pod, and PodDefaults are found by them."""
    board, default = only(objects, "Tensorboard", "jec"), only(objects, "PodDefault", "jec-s3")
    assert default["spec"]["selector"]["matchLabels"].items() <= board["metadata"]["labels"].items()
    assert board["spec"]["logspath"] == "s3://BUCKET/PREFIX/RUN_ID/trials"


def test_the_cron_job_s_command_renews_the_ticket(objects, monkeypatch):
    (container,) = kustomize.containers(only(objects, "CronJob", "jec-ticket"))
    calls = []
    monkeypatch.setattr(
        ticket, "new_ticket", lambda keytab, principal: f"{keytab} {principal}".encode()
    )
    monkeypatch.setattr(ticket, "store", lambda *what: calls.append(what) or "jets")
    assert container["command"] == ["python", "-m", ticket.__name__]
    assert (
        ticket.main(
            [argument.replace("$(PRINCIPAL)", "user@REALM") for argument in container["args"]]
        )
        == 0
    )
    assert calls == [(b"/secrets/keytab/keytab user@REALM", "krb-secret", "krb5cc_1000", None)]
    assert only(objects, "Role", "jec-ticket")["rules"][0]["resourceNames"] == ["krb-secret"]


def test_eos_gets_a_ticket_that_only_the_user_reads(objects, tmp_path):
    spec = only(objects, "PodDefault", "jec-eos")["spec"]
    assert spec["selector"]["matchLabels"] == {STEP_LABEL: "prepare"}, (
        "jobs get EOS from their own manifests; twice would clash"
    )
    (container,) = spec["initContainers"]
    assert container["args"] == [
        COPY_TICKET.format(secret=TICKET_SECRET, key="krb5cc_1000", tickets=TICKETS)
    ], "as jobs do it"
    assert spec["env"] == [
        {"name": name, "value": value}
        for name, value in Ticket(secret="", key="").environment.items()
    ]
    (tmp_path / "krb5cc_1000").write_bytes(b"ticket")
    (tmp_path / "krb5cc_1000").chmod(0o444)
    code = (
        container["args"][0]
        .replace("/secrets/kerberos", str(tmp_path))
        .replace("/tickets", str(tmp_path))
    )
    subprocess.run([sys.executable, "-S", *container["command"][1:], code], check=True, timeout=60)
    assert (tmp_path / "krb5cc").read_bytes() == b"ticket"
    assert stat.S_IMODE((tmp_path / "krb5cc").stat().st_mode) == 0o600


def test_nothing_is_applied_before_the_keys_are_there(deploy, tmp_path):
    shutil.copytree(deploy, tmp_path / "deploy", ignore=shutil.ignore_patterns("s3.env"))
    with pytest.raises(FileNotFoundError, match=r"s3\.env"):
        kustomize.build(tmp_path / "deploy/overlays/example")


def test_no_key_is_in_the_repository():
    for path in (path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".env"):
        text = path.read_text()
        assert not re.search(r"^kind: Secret$", text, re.MULTILINE), (
            "Secrets are made from s3.env, which git ignores"
        )
        if path.name == "s3.env.example":
            assert not re.search(r"^\w+=.+", text, re.MULTILINE)
    assert "*.env" in (DEPLOY / ".gitignore").read_text().split()
