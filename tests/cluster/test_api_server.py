"""Our objects, rights and pods before a real API server, without any controller."""

from __future__ import annotations

import base64
import copy
import threading
import time

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from clusters.api import EXPERIMENT, INFERENCE_SERVICE, PYTORCHJOB, Kind, connect
from clusters.kubernetes import KubernetesCluster
from clusters.owner import Owner
from clusters.permissions import Permission, requests
from clusters.pod_security import violations
from clusters.survey import Survey
from common.config import RunConfig
from operations.check_pod_security import pods_of
from operations.render import objects, placeholder_run
from tests.cluster.conftest import EDITOR, LEVELS, NAMESPACE

pytestmark = pytest.mark.cluster

KINDS = {kind.name: kind for kind in (EXPERIMENT, PYTORCHJOB, INFERENCE_SERVICE)}
RUNS = {
    "default": {},
    "ParticleNet": {"network_config": "networks/particle_net_regressor_open.py"},
    "2 replicas of 2 GPUs": {"num_replicas": 2, "num_gpus": 2, "early_stopping": "medianstop"},
    "MIG": {
        "num_gpus": 1,
        "gpu_resource": "nvidia.com/mig-1g.5gb",
        "tolerations": "nvidia.com/gpu:NoSchedule,slow",
        "node_selector": "zone=a",
        "priority_class": "batch",
        "ephemeral_storage": "20Gi",
    },
    "EOS": {"eos": "/var/eos", "kerberos_secret": "krb-secret"},
    "old predictor": {"predictor_form": "triton", "max_replicas": 3},
}


def manifests(**values) -> dict[str, dict]:
    """Every object of a run, by its file."""
    config = RunConfig(
        **{"s3_bucket": "s3://b/jec", "s3_endpoint": "https://s3.example.org", **values}
    )
    return objects(placeholder_run(config.replace(namespace=NAMESPACE)))


def path_of(kind: Kind, name: str = "") -> str:
    path = f"/apis/{kind.group}/{kind.version}/namespaces/{NAMESPACE}/{kind.plural}"
    return f"{path}/{name}" if name else path


def send(user: client.ApiClient, method: str, path: str, body=None, **query) -> dict:
    """The server's answer. Raises ApiException."""
    content = {"GET": None, "DELETE": None}.get(method, "application/json")
    answer = user.call_api(
        path,
        method,
        query_params=list(query.items()),
        header_params={"Content-Type": content} if content else {},
        body=body,
        auth_settings=["BearerToken"],
        response_type="object",
    )
    return answer[0]


# Objects
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", RUNS.values(), ids=RUNS)
def test_every_manifest_passes_a_strict_dry_run(admin, clients, values):
    editor = clients(EDITOR)
    for manifest in manifests(**values).values():
        answer = send(
            editor,
            "POST",
            path_of(KINDS[manifest["kind"]]),
            manifest,
            dryRun="All",
            fieldValidation="Strict",
        )
        assert answer["metadata"]["name"] == manifest["metadata"]["name"]
        lost_fields = lost_fields_of(manifest["spec"], answer["spec"])
        assert lost_fields == [], "fields that the server does not keep"


def lost_fields_of(ours, theirs, where: str = "spec") -> list[str]:
    """Return the paths of the fields of `ours` that are missing or different in `theirs`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        places = []
        for key, value in ours.items():
            if key not in theirs:
                places.append(f"{where}.{key}")
            else:
                places += lost_fields_of(value, theirs[key], f"{where}.{key}")
        return places
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        places = []
        for number, (our_item, their_item) in enumerate(zip(ours, theirs, strict=True)):
            places += lost_fields_of(our_item, their_item, f"{where}[{number}]")
        return places
    return [] if ours == theirs else [where]


def test_a_misspelt_field_is_refused(admin):
    manifest = manifests()["export_job.yaml"]
    manifest["spec"]["runPolicy"]["backofLimit"] = 1
    with pytest.raises(ApiException) as error:
        send(admin, "POST", path_of(PYTORCHJOB), manifest, fieldValidation="Strict")
    assert error.value.status == 400
    assert "backofLimit" in error.value.body


def test_check_passes_our_manifests_and_names_a_wrong_field(editor):
    survey = Survey(connect(), NAMESPACE)
    for manifest in manifests().values():
        kind = KINDS[manifest["kind"]]
        assert survey.serves(kind)
        assert survey.dry_run_refusal(kind, manifest) == ""
    wrong = manifests()["export_job.yaml"]
    wrong["spec"]["pytorchReplicaSpecs"]["Master"]["replicas"] = "one"
    assert "replicas" in survey.dry_run_refusal(PYTORCHJOB, wrong)


# Rights
# ------------------------------------------------------------------------------------------------


def test_the_role_grants_exactly_the_permissions_of_the_table(editor):
    survey = Survey(connect(), NAMESPACE)
    assert [
        permission.name
        for permission, verb in requests()
        if not survey.is_allowed(permission, verb)
    ] == []
    beyond = {
        ("", "pods"): "create",
        ("", "secrets"): "list",
        ("", "configmaps"): "update",
        ("kubeflow.org", "trials"): "create",
        ("rbac.authorization.k8s.io", "roles"): "create",
    }
    for (group, resource), verb in beyond.items():
        wish = Permission(group=group, resource=resource, verbs=(verb,), why="")
        assert not survey.is_allowed(wish, verb), (resource, verb)


def test_an_administrator_reads_the_rights_of_the_steps_account(
    admin, server, tmp_path, monkeypatch
):
    path = server.kubeconfig(tmp_path / "kubeconfig", "admin", namespace=NAMESPACE)
    monkeypatch.setenv("KUBECONFIG", str(path))
    survey = Survey(connect(), NAMESPACE)
    for permission, verb in requests():
        assert survey.account_is_allowed("default-editor", permission, verb, NAMESPACE) is True
        assert survey.account_is_allowed("default", permission, verb, NAMESPACE) is False


METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "delete": "DELETE"}


@pytest.mark.parametrize(
    ("permission", "verb"), list(requests()), ids=lambda part: getattr(part, "name", part)
)
def test_the_server_grants_each_right_to_the_account_alone(admin, clients, permission, verb):
    """The server decides on a right before it looks for the object."""
    resource, _, sub = permission.resource.partition("/")
    version = {"serving.kserve.io": "v1beta1", "argoproj.io": "v1alpha1", "kubeflow.org": "v1"}
    if resource in ("experiments", "trials"):
        version["kubeflow.org"] = "v1beta1"
    group = permission.group
    start = f"/apis/{group}/{version.get(group, 'v1')}" if group else "/api/v1"
    path = f"{start}/namespaces/{NAMESPACE}/{resource}"
    if verb not in ("list", "create"):
        path += "/no-such-thing" + (f"/{sub}" if sub else "")
    body: dict | None = {"metadata": {"name": "no-such-thing"}} if verb == "update" else {}
    if verb in ("get", "list", "delete"):
        body = None
    method = METHODS.get(verb, "PATCH")
    codes = []
    for user in (EDITOR, "nobody"):
        try:
            send(clients(user), method, path, body)
            codes.append(200)
        except ApiException as error:
            codes.append(error.status)
    assert codes[1] == 403
    assert codes[0] in (200, 400, 404, 415, 422)


# Pod Security
# ------------------------------------------------------------------------------------------------


def refusal_of_pod(admin: client.ApiClient, level: str, spec: dict) -> str:
    """Why a namespace that enforces a level refuses a pod; empty if it takes it."""
    pod = {"metadata": {"name": "pod"}, "spec": {**spec, "restartPolicy": "Never"}}
    for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
        container.setdefault("image", "image")
    try:
        send(admin, "POST", f"/api/v1/namespaces/{level}/pods", pod, dryRun="All")
    except ApiException as error:
        if error.status == 403 and "PodSecurity" in error.body:
            return str(error.body)
        raise
    return ""


def pods(**values) -> list[dict]:
    specs = []
    for manifest in manifests(**values).values():
        for spec in pods_of(copy.deepcopy(manifest), None):
            for key in ("model", "triton", "minReplicas", "maxReplicas", "priorityClassName"):
                spec.pop(key, None)
            spec.pop("deploymentStrategy", None)
            specs.append(spec)
    return specs


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("values", RUNS.values(), ids=RUNS)
def test_check_and_the_server_agree_on_pod_security(admin, level, values):
    for spec in pods(**values):
        answer = refusal_of_pod(admin, level, spec)
        assert bool(answer) == bool(violations(spec, level)), answer


@pytest.mark.parametrize("level", LEVELS)
def test_our_pods_pass_pod_security_unless_they_mount_a_folder_of_the_node(admin, level):
    own = [manifest for manifest in manifests().values() if manifest["kind"] != "InferenceService"]
    for manifest in own:
        for spec in pods_of(manifest, None):
            assert refusal_of_pod(admin, level, spec) == ""
    with_folder = pods(eos="/var/eos")[0]
    assert "hostPath" in refusal_of_pod(admin, level, with_folder)


@pytest.mark.parametrize(
    "security_context",
    [
        {"allowPrivilegeEscalation": True},
        {"capabilities": {"drop": ["NET_RAW"]}},
        {"runAsNonRoot": False},
        {"runAsUser": 0},
        {"seccompProfile": {"type": "Unconfined"}},
        {"privileged": True, "allowPrivilegeEscalation": True},
    ],
    ids=lambda security_context: next(iter(security_context)),
)
def test_check_and_the_server_refuse_the_same_containers(admin, security_context):
    spec = pods()[0]
    container = spec["containers"][0]
    container["securityContext"] = {**container["securityContext"], **security_context}
    assert refusal_of_pod(admin, "restricted", spec)
    assert violations(spec, "restricted")


def test_check_reads_the_namespaces_labels(admin, server, tmp_path, monkeypatch):
    path = server.kubeconfig(tmp_path / "kubeconfig", "admin", namespace=NAMESPACE)
    monkeypatch.setenv("KUBECONFIG", str(path))
    for level in LEVELS:
        labels = Survey(connect(), level).namespace_labels()
        assert labels["pod-security.kubernetes.io/enforce"] == level
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(path, EDITOR, namespace=NAMESPACE)))
    survey = Survey(connect(), NAMESPACE)
    assert survey.namespace_labels() is None
    assert "forbidden" in survey.unseen[f"Namespace {NAMESPACE}"]
    assert survey.nodes() is None


# Owners and deletion
# ------------------------------------------------------------------------------------------------

OWNER = Owner(
    api_version="argoproj.io/v1alpha1",
    name="jec-pipeline-x",
    uid="0a0b0c0d-0000-4000-8000-000000000001",
    namespace=NAMESPACE,
)


def test_a_job_is_owned_until_it_has_ended_well_and_then_removed(editor, clients):
    """With our Role alone, under the plugin that guards blockOwnerDeletion."""
    manifest = manifests()["export_job.yaml"]
    name = manifest["metadata"]["name"]
    admin = clients("admin")
    owners = []

    def operate() -> None:
        """What the training operator would do."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                job = send(admin, "GET", path_of(PYTORCHJOB, name))
            except ApiException:
                time.sleep(0.05)
                continue
            owners.extend(job["metadata"].get("ownerReferences") or [])
            condition = {"type": "Succeeded", "status": "True", "reason": "r", "message": "m"}
            job["status"] = {"conditions": [condition], "replicaStatuses": {}}
            send(admin, "PUT", path_of(PYTORCHJOB, name) + "/status", job)
            return

    operator = threading.Thread(target=operate)
    operator.start()
    cluster = KubernetesCluster(NAMESPACE, OWNER, poll=0.1)
    cluster.run_job(manifest, deadline=60, report=lambda _: None)
    operator.join()
    assert owners == [OWNER.reference]
    job = send(admin, "GET", path_of(PYTORCHJOB, name))
    assert not job["metadata"].get("ownerReferences")
    cluster.delete_job(name)
    with pytest.raises(ApiException, match="404"):
        send(admin, "GET", path_of(PYTORCHJOB, name))


def test_an_owner_that_blocks_its_own_deletion_needs_another_right(admin, clients):
    """Why our references do not block: the Role has no right on a Workflow's finalizers."""
    manifest = manifests()["evaluate_job.yaml"]
    reference = {**OWNER.reference, "blockOwnerDeletion": True}
    manifest["metadata"]["ownerReferences"] = [reference]
    with pytest.raises(ApiException) as error:
        send(clients(EDITOR), "POST", path_of(PYTORCHJOB), manifest, dryRun="All")
    assert error.value.status == 403


def test_an_experiment_is_deleted_in_the_background(editor, clients):
    """After a deletion in the foreground, it stays until the garbage collector removes it.

    No garbage collector runs beside this API server.
    """
    manifest = manifests()["experiment.yaml"]
    name = manifest["metadata"]["name"]
    admin = clients("admin")
    send(admin, "POST", path_of(EXPERIMENT), manifest)
    KubernetesCluster(NAMESPACE, poll=0.1).delete_experiment(name)
    with pytest.raises(ApiException, match="404"):
        send(admin, "GET", path_of(EXPERIMENT, name))

    send(admin, "POST", path_of(EXPERIMENT), manifest)
    send(admin, "DELETE", path_of(EXPERIMENT, name), propagationPolicy="Foreground")
    remaining = send(admin, "GET", path_of(EXPERIMENT, name))
    assert remaining["metadata"]["finalizers"] == ["foregroundDeletion"]
    remaining["metadata"]["finalizers"] = []
    send(admin, "PUT", path_of(EXPERIMENT, name), remaining)


def test_an_experiment_keeps_the_parameters_that_it_was_made_with(editor, clients):
    manifest = manifests(memory="24Gi")["experiment.yaml"]
    name = manifest["metadata"]["name"]
    admin = clients("admin")
    send(admin, "POST", path_of(EXPERIMENT), manifest)
    run_id = manifest["metadata"]["labels"]["jec/run-id"]
    [(experiment, annotations)] = KubernetesCluster(NAMESPACE, poll=0.1).experiments(run_id).items()
    assert experiment == name
    assert '"memory": "24Gi"' in annotations["jec/parameters"]
    send(admin, "DELETE", path_of(EXPERIMENT, name))


def test_the_keys_of_a_secret_are_read_by_the_role(admin, editor):
    value = base64.b64encode(b"canary").decode()
    secret = {"metadata": {"name": "jec-webhook"}, "data": {"url": value}}
    send(admin, "POST", f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)
    secret = Survey(connect(), NAMESPACE).secret("jec-webhook")
    assert secret.values == {"url": "canary"}
