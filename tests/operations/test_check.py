"""--check: each line of its table, on a fake cluster, a fake registry, a real S3 server, and with
nothing to ask.
"""

from __future__ import annotations

import base64
import http.server
import json

import pytest
import yaml

import pipeline
from clusters import api as api_module
from clusters import permissions
from clusters.api import PYTORCHJOB, connect
from clusters.pod_security import violations
from clusters.survey import Survey
from common import storage
from common.config import RunConfig
from common.errors import InputError
from common.storage import retries
from operations import (
    check,
    check_cluster,
    check_images,
    check_inputs,
    check_pod_security,
    check_storage,
)
from operations.quantities import amount, quantity_text
from operations.render import objects, placeholder_run
from tests.clusters import conftest as clusters_conftest
from tests.clusters.admission import pod_security
from tests.servers.handling import handling
from tests.weaver import conftest as weaver_conftest

# fixtures of other rooms
fake = clusters_conftest.fake
jet_files = weaver_conftest.jet_files
STATES = ("ok", "warning", "error", "not seen")
# Beyond the Role of deploy/: --check says "not seen" where its user may not do these.
OPTIONAL_READS = (
    ("create", "localsubjectaccessreviews.authorization.k8s.io"),
    ("get", "deployments.apps"),
    ("get", "servingruntimes.serving.kserve.io"),
    ("get", "clusterservingruntimes.serving.kserve.io"),
    ("get", "clusterstoragecontainers.serving.kserve.io"),
    ("get", "namespaces"),
    ("list", "nodes"),
    ("get", "configmaps"),
)


def lines(rows) -> dict[str, list[tuple[str, str]]]:
    """what -> [(state, finding and cure)]."""
    table: dict[str, list[tuple[str, str]]] = {}
    for line in rows:
        assert line.state in STATES
        assert line.state != "error" or line.finding
        table.setdefault(line.what, []).append((line.state, f"{line.finding} {line.cure}"))
    return table


def config(**values) -> RunConfig:
    return RunConfig(
        **{"s3_bucket": "s3://b/jec", "s3_endpoint": "https://s3.example.org", **values}
    )


def create_needs(
    api,
    *,
    keys=("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    endpoint="s3.example.org",
    account_secret="s3-secret",
) -> None:
    """What a run needs in its namespace, as deploy/ makes it."""
    data = {key: base64.b64encode(b"testing").decode() for key in keys}
    annotations = {"serving.kserve.io/s3-endpoint": endpoint, "serving.kserve.io/s3-usehttps": "1"}
    with api.lock:
        api.create(
            "secrets", {"metadata": {"name": "s3-secret", "annotations": annotations}, "data": data}
        )
        api.create(
            "serviceaccounts",
            {"metadata": {"name": "default"}, "secrets": [{"name": account_secret}]},
        )
        container = {"name": "kserve-container", "image": "nvcr.io/nvidia/tritonserver:23.05-py3"}
        api.create(
            "clusterservingruntimes",
            {
                "metadata": {"name": "kserve-tritonserver"},
                "spec": {"protocolVersions": ["v2", "grpc-v2"], "containers": [container]},
            },
        )
        katib = {
            "metadata": {"name": "katib-controller"},
            "spec": {
                "selector": {},
                "template": {
                    "spec": {
                        "containers": [
                            {
                                "name": "katib",
                                "image": "ghcr.io/kubeflow/katib/katib-controller:v0.19.0",
                            }
                        ]
                    }
                },
            },
        }
        api.create("deployments", katib, "kubeflow")
        api.create("namespaces", {"metadata": {"name": "physics"}})
        add_node(api)


def add_node(api, *, cpu="16", memory="64Gi", gpus="8", labels=None, unschedulable=False) -> None:
    """A node of the cluster with what it offers to pods."""
    name = f"node-{len(api.all('nodes'))}"
    node = {"metadata": {"name": name, "labels": labels or {}}, "spec": {}}
    if unschedulable:
        node["spec"]["unschedulable"] = True
    amounts = {"cpu": cpu, "memory": memory, "ephemeral-storage": "100Gi", "nvidia.com/gpu": gpus}
    api.create("nodes", node)["status"] = {"allocatable": amounts}


def grant_optional_reads(api) -> None:
    """Let the user see what --check can also say."""
    for verb, resource in OPTIONAL_READS:
        api.grant(verb, resource)


def rows_of(backend, **values) -> dict[str, list[tuple[str, str]]]:
    grant_optional_reads(backend.api)
    return lines(check_cluster.check_cluster(config(**values), account="auto", on_cluster=True))


def test_a_complete_cluster_has_no_errors(fake):
    backend = fake()
    create_needs(backend.api)
    table = rows_of(backend)
    assert {state for rows in table.values() for state, _ in rows} == {"ok"}
    assert "v1.31.2" in table["cluster"][0][1]
    assert "katib-controller:v0.19.0" in table["Experiment API"][0][1]
    assert "tritonserver:23.05-py3" in table["serving runtime"][0][1]
    assert (
        not backend.api.all("experiments")
        + backend.api.all("pytorchjobs")
        + backend.api.all("inferenceservices")
    ), "nothing is created"
    assert [name for name in table if name.startswith("dry run")] == [
        "dry run experiment",
        "dry run export",
        "dry run evaluate",
        "dry run pfn-regressor-open",
    ]


@pytest.mark.parametrize(
    ("what", "break_it", "state", "message"),
    [
        (
            "Experiment API",
            lambda api: api.kinds.pop("experiments"),
            "error",
            "does not serve kubeflow.org/v1beta1 install Katib",
        ),
        (
            "namespace physics",
            lambda api: api.forbid("create", "pytorchjobs"),
            "error",
            "we may not create pytorchjobs.kubeflow.org",
        ),
        (
            "namespace physics",
            lambda api: api.forbid("*", "pods/log"),
            "warning",
            "may not get pods/log",
        ),
        (
            "rights of the steps",
            lambda api: api.forbid("create", "localsubjectaccessreviews"),
            "not seen",
            "may not ask for others",
        ),
        ("Secret s3-secret", lambda api: api.forbid("get", "secrets"), "not seen", "forbidden"),
        (
            "ServiceAccount default",
            lambda api: api.forbid("get", "serviceaccounts"),
            "not seen",
            "forbidden",
        ),
        (
            "serving runtime",
            lambda api: api.delete("clusterservingruntimes", api.all("clusterservingruntimes")[0]),
            "error",
            "there is no kserve-tritonserver",
        ),
        ("quota", lambda api: api.forbid("list", "resourcequotas"), "not seen", "forbidden"),
    ],
)
def test_each_missing_thing_is_a_line_with_its_remedy(fake, what, break_it, state, message):
    backend = fake()
    create_needs(backend.api)
    with backend.api.lock:
        break_it(backend.api)
    rows = rows_of(backend)[what]
    assert any(row_state == state and message in text for row_state, text in rows), rows


def test_rights_that_only_argo_needs_are_not_required_of_the_user(fake):
    backend = fake()
    create_needs(backend.api)
    with backend.api.lock:
        for verb in ("create", "patch"):
            backend.api.forbid(verb, "workflowtaskresults.argoproj.io")
    ((state, _),) = rows_of(backend)["namespace physics"]
    assert state == "ok"


@pytest.mark.parametrize(
    ("values", "what", "message"),
    [
        (
            {"keys": ("AWS_ACCESS_KEY_ID",)},
            "Secret s3-secret",
            "has no AWS_SECRET_ACCESS_KEY; it has AWS_ACCESS_KEY_ID kubectl",
        ),
        ({"endpoint": "other.example.org"}, "Secret s3-secret", "--s3-endpoint is s3.example.org"),
        (
            {"account_secret": "another"},
            "ServiceAccount default",
            "does not name Secret s3-secret: KServe would have no keys kubectl -n",
        ),
    ],
)
def test_contents_of_secrets_and_accounts_are_checked(fake, values, what, message):
    backend = fake()
    create_needs(backend.api, **values)
    assert any(state == "error" and message in text for state, text in rows_of(backend)[what]), (
        rows_of(backend)[what]
    )


def test_an_empty_namespace_says_what_to_create(fake):
    table = rows_of(fake())
    assert table["Secret s3-secret"][0][0] == "error"
    assert "kubectl -n physics create secret generic s3-secret" in table["Secret s3-secret"][0][1]
    assert "there is none in namespace physics" in table["ServiceAccount default"][0][1]


RUNNER = "system:serviceaccount:{}:pipeline-runner"


@pytest.mark.parametrize(
    ("namespace", "backend"), [("auto", "physics"), ("physics", "physics"), ("physics", "kubeflow")]
)
def test_single_user_mode_checks_the_account_pipeline_runner(fake, namespace, backend):
    """KFP 2.15.0 runs them as pipeline-runner of its own namespace, whatever --namespace says."""
    api = fake().api
    create_needs(api)
    grant_optional_reads(api)
    runner = RUNNER.format(backend)
    api.forbid_user(runner, "inferenceservices")
    api.forbid_user(runner, "events")
    if backend == "kubeflow":
        # the user may look into the server's namespace, and the account has its rights there
        for verb, resource in (
            ("get", "secrets"),
            ("get", "serviceaccounts"),
            ("get", "configmaps"),
            ("get", "workflows.argoproj.io"),
            ("create", "workflowtaskresults.argoproj.io"),
            ("patch", "workflowtaskresults.argoproj.io"),
        ):
            api.grant(verb, resource)
    with api.lock:
        api.create("serviceaccounts", {"metadata": {"name": "pipeline-runner"}}, backend)
    rows = check_cluster.check_cluster(
        config(namespace=namespace), account="auto", on_cluster=True, single_user=True
    )
    table = lines(rows)
    assert api.reviewed == {"", runner}
    assert "namespace physics" in table["cluster"][0][1]
    states = {}
    for state, finding in table["rights of the steps"]:
        states[finding.split(" (")[0].rsplit(" ", 1)[1]] = state
    assert states == {"inferenceservices.serving.kserve.io": "error", "events": "warning"}
    cure = f"--role jec-launcher --serviceaccount {backend}:pipeline-runner"
    assert cure in table["rights of the steps"][0][1]
    # the steps' pods take the keys from their own namespace
    assert ("Secret s3-secret of the steps" in table) == (backend == "kubeflow")


def test_a_servers_unknown_namespace_is_not_seen_and_no_error(fake):
    api = fake().api
    create_needs(api)
    grant_optional_reads(api)
    api.grant("get", "serviceaccounts")
    rows = check_cluster.check_cluster(config(), account="auto", on_cluster=True, single_user=True)
    ((state, finding),) = lines(rows)["rights of the steps"]
    assert state == "not seen"
    assert "pipeline-runner" in finding
    assert api.reviewed == {""}


def test_a_servers_unreadable_namespace_is_assumed_to_be_kubeflow(fake):
    api = fake().api
    grant_optional_reads(api)
    api.forbid("get", "serviceaccounts")
    rows = check_cluster.check_cluster(config(), account="auto", on_cluster=True, single_user=True)
    assert "namespace kubeflow" in next(iter(rows)).finding


def test_multi_user_mode_checks_default_editor_or_the_named_account(fake):
    backend = fake()
    api = backend.api
    create_needs(api)
    rows_of(backend)
    assert api.reviewed == {"", "system:serviceaccount:physics:default-editor"}
    list(check_cluster.check_cluster(config(), account="mine", on_cluster=True))
    assert "system:serviceaccount:physics:mine" in api.reviewed


# A trial asks for 2 CPUs and 12Gi with 50m and 10Mi of its collector; beside the trials run the
# algorithm (50m, 10Mi) and a step (510m, 1056Mi).
@pytest.mark.parametrize(
    ("hard", "in_use", "values", "state", "message"),
    [
        (
            {"requests.nvidia.com/gpu": "4"},
            {"requests.nvidia.com/gpu": "1"},
            {"num_gpus": 1},
            "warning",
            "3 of 5 parallel trials fit",
        ),
        (
            {"requests.nvidia.com/gpu": "4"},
            {"requests.nvidia.com/gpu": "4"},
            {"num_gpus": 1},
            "warning",
            "no trial fits now",
        ),
        (
            {"requests.nvidia.com/gpu": "1"},
            {},
            {"num_gpus": 2},
            "error",
            "a trial asks for requests.nvidia.com/gpu 2",
        ),
        ({"limits.memory": "100Gi", "requests.cpu": "20"}, {}, {}, "ok", "5 trials fit at once"),
        # 5 x 2.05 for the trials and their collectors, 0.05 for the algorithm, 0.51 for the step
        ({"requests.cpu": "10.81"}, {}, {}, "ok", "5 trials fit at once"),
        ({"requests.cpu": "10.8"}, {}, {}, "warning", "4 of 5 parallel trials fit"),
        (
            {"requests.cpu": "2.6"},
            {},
            {},
            "error",
            "requests.cpu 2.05, the algorithm needs 0.56 more",
        ),
        (
            {"memory": "30Gi"},
            {"memory": "1Gi"},
            {},
            "warning",
            "2 of 5 parallel trials fit (memory: 29Gi of 30Gi left in q",
        ),
        ({"pods": "8"}, {}, {"num_replicas": 3}, "warning", "2 of 5"),
        ({"pods": "8"}, {"pods": "1"}, {"num_replicas": 3}, "warning", "1 of 5"),
    ],
)
def test_the_quota_is_compared_with_the_parallel_trials(fake, hard, in_use, values, state, message):
    rows = with_quota(fake, hard, in_use, **values)
    assert rows[0][0] == state
    assert message in rows[0][1]


def with_quota(fake, hard, in_use, **values) -> list[tuple[str, str]]:
    """The lines on a namespace's quota."""
    backend = fake()
    with backend.api.lock:
        backend.api.create("resourcequotas", {"metadata": {"name": "q"}, "spec": {"hard": hard}})[
            "status"
        ] = {"hard": hard, "used": in_use}
    return rows_of(backend, **values)["quota"]


@pytest.mark.parametrize(
    ("hard", "in_use", "values", "state"),
    [
        ({"requests.memory": "200Gi"}, {}, {}, ""),
        ({"requests.memory": "200Gi"}, {"requests.memory": "195Gi"}, {}, "warning"),
        (
            {"requests.memory": "20Gi"},
            {},
            {"min_replicas": 5, "max_replicas": 5, "memory": "2Gi"},
            "error",
        ),
    ],
    ids=["fits", "does not fit now", "never fits"],
)
def test_the_quota_is_compared_with_the_service_after_the_trials(fake, hard, in_use, values, state):
    rows = [row for row in with_quota(fake, hard, in_use, **values) if "the service" in row[1]]
    assert [row_state for row_state, _ in rows] == ([state] if state else [])


@pytest.mark.parametrize(
    ("nodes", "values", "state", "message"),
    [
        ([{}], {}, "ok", "1 nodes"),
        ([{"cpu": "2"}], {}, "error", "a trial: it asks for cpu 2.05, the largest has 2"),
        ([{"memory": "8Gi"}], {}, "error", "a trial: it asks for memory 12.01Gi, the largest"),
        ([{"gpus": "2"}], {"num_gpus": 4}, "error", "nvidia.com/gpu 4, the largest has 2"),
        ([{"memory": "8Gi"}, {"cpu": "1"}], {}, "error", "no single node has all"),
        ([{"unschedulable": True}], {}, "error", "none of the 1 nodes takes pods"),
        ([{"labels": {"gpu": "a"}}], {"node_selector": "gpu=b"}, "error", "with gpu=b takes pods"),
        ([{"cpu": "1"}, {"labels": {"gpu": "b"}}], {"node_selector": "gpu=b"}, "ok", "1 nodes"),
    ],
)
def test_the_nodes_are_compared_with_the_pods_of_the_run(fake, nodes, values, state, message):
    backend = fake()
    with backend.api.lock:
        for node in nodes:
            add_node(backend.api, **node)
    rows = rows_of(backend, **values)["nodes"]
    assert rows[0][0] == state
    assert message in rows[0][1]


def test_nodes_that_may_not_be_listed_have_the_state_not_seen(fake):
    backend = fake()
    backend.api.forbid("list", "nodes")
    assert rows_of(backend)["nodes"][0][0] == "not seen"


@pytest.mark.parametrize(
    ("arguments", "state", "message"),
    [
        ([], "warning", "alpine:3.10 of a public registry"),
        (["--pytorch-init-container-image=harbor.example.org/alpine:3"], "ok", "harbor.example"),
        (None, "warning", "we may not read"),
    ],
)
def test_several_replicas_need_an_image_of_the_training_operator(fake, arguments, state, message):
    backend = fake()
    with backend.api.lock:
        container = {"name": "operator", "image": "op:v1", "args": arguments or []}
        spec = {"selector": {}, "template": {"spec": {"containers": [container]}}}
        operator = {"metadata": {"name": "training-operator"}, "spec": spec}
        if arguments is not None:
            backend.api.create("deployments", operator, "kubeflow")
    assert "init container" not in rows_of(backend)
    rows = rows_of(backend, num_replicas=2)["init container"]
    assert rows[0][0] == state
    assert message in rows[0][1]


@pytest.mark.parametrize(
    ("secret", "state"),
    [(None, "error"), ({"other": "Y2FuYXJ5"}, "error"), ({"url": "Y2FuYXJ5"}, "ok")],
)
def test_the_webhooks_secret_is_looked_for_and_its_value_not_shown(fake, secret, state):
    backend = fake()
    if secret is not None:
        with backend.api.lock:
            backend.api.create("secrets", {"metadata": {"name": "jec-webhook"}, "data": secret})
    rows = rows_of(backend, webhook_secret="jec-webhook/url")["webhook"]
    assert rows[0][0] == state
    assert "canary" not in rows[0][1]


def test_the_secrets_of_tracking_are_looked_for(fake):
    backend = fake()
    with backend.api.lock:
        value = base64.b64encode(b"canary").decode()
        data = {"token": value, "MLFLOW_TRACKING_TOKEN": value}
        backend.api.create("secrets", {"metadata": {"name": "logins"}, "data": data})
    rows = rows_of(backend, mlflow_secret="logins", model_registry_secret="logins/token")
    assert rows["model registry"][0][0] == "ok"
    assert rows["MLflow"][0][0] == "error", "the address is in neither place"
    assert "MLflow" not in rows_of(backend, mlflow_secret="logins", mlflow="https://mlflow.example")


# Pod Security
# ------------------------------------------------------------------------------------------------

SECURE = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def cluster_with_level(
    fake, level, *, inject=True, suggestion=SECURE, storage=SECURE, server=SECURE
):
    """A cluster whose namespace enforces a level; None for what has no security context."""
    backend = fake()
    create_needs(backend.api)
    with backend.api.lock:
        labels = {"pod-security.kubernetes.io/enforce": level} if level else {}
        backend.api.all("namespaces")[0]["metadata"]["labels"] = labels
        runtime = backend.api.all("clusterservingruntimes")[0]["spec"]
        runtime["containers"][0]["securityContext"] = server or {}
        container = {"name": "storage-initializer", "securityContext": storage or {}}
        backend.api.create(
            "clusterstoragecontainers",
            {"metadata": {"name": "default"}, "spec": {"container": container}},
        )
        algorithm = {"algorithmName": "random", "image": "i", "securityContext": suggestion or {}}
        katib = {
            "init": {"controller": {"injectSecurityContext": inject}},
            "runtime": {"suggestions": [algorithm]},
        }
        data = {"katib-config.yaml": yaml.safe_dump(katib)}
        backend.api.create(
            "configmaps", {"metadata": {"name": "katib-config"}, "data": data}, "kubeflow"
        )
    return backend


KFP_PODS = ("warning", "Kubeflow Pipelines")  # always said of `restricted`


@pytest.mark.parametrize(
    ("level", "cluster_options", "values", "expected"),
    [
        ("", {}, {"eos": "/var/eos"}, [("ok", "takes all pods")]),
        ("privileged", {}, {"eos": "/var/eos"}, [("ok", "takes all pods")]),
        ("baseline", {"inject": False, "suggestion": None}, {}, [("ok", "takes every pod")]),
        (
            "baseline",
            {},
            {"eos": "/var/eos"},
            [("error", "Experiment (search), PyTorchJob (export), PyTorchJob (evaluate): folders")],
        ),
        ("restricted", {}, {}, [KFP_PODS]),
        ("restricted", {"inject": False}, {}, [("error", "injectSecurityContext"), KFP_PODS]),
        (
            "restricted",
            {"suggestion": {"runAsNonRoot": True}},
            {},
            [("error", "suggestion: no allowPrivilegeEscalation: false, no cap"), KFP_PODS],
        ),
        ("restricted", {"storage": None}, {}, [("error", "ClusterStorageContainer"), KFP_PODS]),
        ("restricted", {}, {"early_stopping": "medianstop"}, [("error", "medianstop"), KFP_PODS]),
        ("restricted", {}, {"num_replicas": 2}, [("warning", "init-pytorch"), KFP_PODS]),
    ],
)
def test_a_violation_of_pod_security_names_who_can_change_it(
    fake, level, cluster_options, values, expected
):
    rows = rows_of(cluster_with_level(fake, level, **cluster_options), **values)["Pod Security"]
    assert [state for state, _ in rows] == [state for state, _ in expected]
    for (_, text), (_, message) in zip(rows, expected, strict=True):
        assert message in text


@pytest.mark.parametrize(
    ("verb", "resource", "message"),
    [
        ("get", "namespaces", "right to get namespaces"),
        ("get", "configmaps", "KatibConfig, which we may not read"),
        ("get", "clusterstoragecontainers", "storage initializer, which we may"),
    ],
)
def test_an_unreadable_namespace_is_reported_for_pod_security(fake, verb, resource, message):
    backend = cluster_with_level(fake, "restricted")
    backend.api.forbid(verb, resource)
    rows = rows_of(backend)["Pod Security"]
    assert any(state == "not seen" and message in text for state, text in rows)
    assert not any(state == "error" for state, _ in rows)


@pytest.mark.parametrize("level", ["baseline", "restricted"])
def test_violations_agree_with_the_rules_of_the_tests(level):
    """Two restatements of Kubernetes' rules, of every pod that a run makes."""
    for values in ({}, {"eos": "/var/eos"}, {"num_replicas": 2, "num_gpus": 1}):
        for manifest in objects(placeholder_run(config(**values))).values():
            for spec in check_pod_security.pods_of(manifest, None):
                if level == "restricted":
                    assert bool(violations(spec, level)) == bool(pod_security(spec))
                else:
                    assert bool(violations(spec, level)) == bool(values.get("eos")) * (
                        manifest["kind"] != "InferenceService"
                    )


def test_a_refusal_by_the_clusters_webhook_is_quoted(fake):
    survey = Survey(connect(), "physics") if fake() else None
    wrong_job = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": "x"},
        "spec": {},
    }
    assert "pytorchReplicaSpecs: Required value" in survey.dry_run_refusal(PYTORCHJOB, wrong_job)


def test_without_a_cluster_the_table_says_what_was_not_checked(monkeypatch):
    table = lines(check_cluster.check_cluster(config(), account="auto", on_cluster=True))
    assert table["cluster"][0][0] == "not seen"
    assert all(
        word in table["cluster"][0][1] for word in ("permissions", "quota", "Secret", "KUBECONFIG")
    )


def test_a_cluster_that_does_not_answer_is_an_error_for_a_run_on_it(fake, monkeypatch):
    backend = fake()
    monkeypatch.setattr(api_module, "FIRST_CONTACT_SECONDS", 0.1)
    backend.api.fail("*", ".", times=1000, cut_connection="before")
    monkeypatch.setattr("clusters.survey.SECONDS", 2.0)
    assert rows_of(backend)["cluster"][0][0] == "error"


def test_a_temporary_error_of_the_server_is_no_finding(fake):
    backend = fake()
    create_needs(backend.api)
    backend.api.fail("*", ".", times=2, code=503)
    assert {state for rows in rows_of(backend).values() for state, _ in rows} == {"ok"}


def test_only_needed_permissions_end_a_run_when_forbidden(fake):
    """Forbidden one by one, a needed permission ends a run, and the others only cost
    its reasons.
    """
    assert {permission.name for permission in permissions.PERMISSIONS if permission.is_needed} == {
        "experiments.kubeflow.org",
        "trials.kubeflow.org",
        "pytorchjobs.kubeflow.org",
        "inferenceservices.serving.kserve.io",
        # KFP's and Argo's own, in the pod of every step
        "configmaps",
        "workflowtaskresults.argoproj.io",
    }
    assert len(list(permissions.requests())) == sum(
        len(rule["verbs"]) for rule in permissions.rules()
    )


# Storage
# ------------------------------------------------------------------------------------------------


def test_storage_is_tested_with_the_keys_of_the_secret(fake, s3_bucket, s3_server):
    backend = fake()
    create_needs(backend.api)
    where = RunConfig(s3_bucket=f"{s3_bucket}/jec", s3_endpoint=s3_server)
    rows = lines(check_storage.check_storage(where, on_kubeflow=True))["storage"]
    assert rows[0][0] == "ok"
    assert "Secret s3-secret" in rows[0][1]
    assert storage.entries(s3_bucket) == [], "nothing stays"
    backend.api.forbid("get", "secrets")
    table = lines(check_storage.check_storage(where, on_kubeflow=True))
    assert table["storage as the pods"][0][0] == "not seen"
    assert "our own credentials" in table["storage"][0][1]


def test_a_missing_bucket_is_an_error(s3_server):
    rows = lines(
        check_storage.check_storage(config(s3_bucket="s3://no-such-bucket/x"), on_kubeflow=False)
    )["storage"]
    assert rows[0][0] == "error"
    assert "create the bucket" in rows[0][1]
    rows = lines(check_storage.check_storage(config(s3_bucket="/tmp/x"), on_kubeflow=True))[
        "storage"
    ]
    assert "give s3://bucket/prefix" in rows[0][1]


# Inputs
# ------------------------------------------------------------------------------------------------


def test_inputs_are_read_and_the_network_is_built():
    table = lines(check_inputs.check_inputs(RunConfig()))
    assert {state for rows in table.values() for state, _ in rows} == {"ok"}
    assert "with every extreme of the search space" in table["network"][0][1]


@pytest.mark.parametrize(
    ("data_config", "network_config"),
    [
        ("jec_particle_net_open", "particle_net_regressor_open"),
        ("jec_pfn_open", "pfn_regressor_open"),
    ],
)
def test_the_error_names_the_network_that_fits_the_data_config(data_config, network_config):
    right = f"networks/{network_config}.py"
    wrong = {
        "networks/pfn_regressor_open.py": "networks/particle_net_regressor_open.py",
        "networks/particle_net_regressor_open.py": "networks/pfn_regressor_open.py",
    }[right]
    config = RunConfig(data_config=f"data/{data_config}.yaml", network_config=wrong)
    ((state, text),) = lines(check_inputs.check_inputs(config))["network"]
    assert state == "error"
    assert f"--network-config {right}" in text


def test_a_network_of_the_users_own_is_not_replaced_by_one_of_the_project(tmp_path):
    own = tmp_path / "net.py"
    own.write_text(
        "def get_model(data_config, *, width=1):\n    return 1 / 0\n\n\ndef get_loss(data_config):"
        " ...\n"
    )
    table = lines(check_inputs.check_inputs(RunConfig(network_config=str(own))))
    ((state, text),) = table["network"]
    assert (state, "--network-config" in text) == ("error", False)
    ((state, text),) = table["search space"]
    assert state == "error"
    assert "--search-space" in text


def test_each_wrong_input_is_its_own_line(tmp_path):
    network_file = tmp_path / "net.py"
    network_file.write_text(
        "def get_model(data_config, **options):\n    return 1 / 0\n\n\ndef get_loss(data_config,"
        " **options): ...\n"
    )
    missing = {
        f"data_{split}": str(tmp_path / f"{split}*.root") for split in ("train", "val", "test")
    }
    table = lines(check_inputs.check_inputs(RunConfig(network_config=str(network_file), **missing)))
    assert "ZeroDivisionError" in table["network"][0][1]
    assert all(table[f"{split} data"][0][0] == "error" for split in ("train", "val", "test"))
    table = lines(
        check_inputs.check_inputs(
            RunConfig(data_config="data/no.yaml", search_space='{"parameters": []}')
        )
    )
    assert table["data configuration"][0][0] == "error"
    assert table["search space"][0][0] == "error"


def data(folder, **patterns) -> dict[str, str]:
    """RunConfig's fields for the files of each split."""
    defaults = {split: f"{folder / split}/*.root" for split in ("train", "val", "test")}
    return {f"data_{split}": str(files) for split, files in {**defaults, **patterns}.items()}


def test_generated_jets_are_counted_for_each_set():
    table = lines(check_inputs.check_inputs(RunConfig(sample_jets=4_000)))
    jets = [table[f"{split} data"][0][1] for split in ("train", "val", "test")]
    assert [" 4,000 jets" in jets[0], " 1,000 jets" in jets[1], " 1,000 jets" in jets[2]] == [
        True
    ] * 3


def test_data_files_are_opened_and_counted(jet_files):
    table = lines(check_inputs.check_inputs(RunConfig(**data(jet_files))))
    assert {state for entries in table.values() for state, _ in entries} == {"ok"}
    jets = [table[f"{split} data"][0][1] for split in ("train", "val", "test")]
    assert [" 600 jets" in jets[0], " 200 jets" in jets[1], " 200 jets" in jets[2]] == [True] * 3
    table = lines(check_inputs.check_inputs(config(**data(jet_files))))
    assert all(table[f"{split} data"][1][0] == "warning" for split in ("train", "val", "test"))


def test_a_damaged_file_that_is_left_out_is_a_warning(jet_files, tmp_path):
    damaged = tmp_path / "damaged.root"
    damaged.write_bytes(b"no ROOT file")
    values = data(jet_files, train=f"{jet_files}/train/*.root,{damaged}")
    table = lines(check_inputs.check_inputs(RunConfig(**values)))
    assert table["train data"][0][0] == "error"
    table = lines(check_inputs.check_inputs(RunConfig(**values, skip_bad_files=True)))
    assert [state for state, _ in table["train data"]] == ["ok", "warning"]
    assert str(damaged) in table["train data"][1][1]


def test_a_server_that_does_not_answer_leaves_the_other_lines(jet_files, no_pauses):
    values = data(jet_files, train="http://localhost:1/a.root")
    table = lines(check_inputs.check_inputs(RunConfig(**values)))
    ((state, text),) = table["train data"]
    assert state == "error"
    assert "http://localhost:1/a.root" in text
    assert table["val data"][0][0] == table["test data"][0][0] == "ok"
    assert "baseline" in table


def test_what_one_server_does_to_all_sets_is_said_once(jet_files, no_pauses):
    values = {f"data_{name}": f"http://localhost:1/{name}.root" for name in ("train", "val")}
    table = lines(check_inputs.check_inputs(RunConfig(**(data(jet_files) | values))))
    ((state, text),) = table["train and val data"]
    assert state == "error"
    assert "http://localhost:1/train.root" in text
    assert table["test data"][0][0] == "ok"
    assert "val data" not in table


def test_keys_that_are_not_set_are_said_once(jet_files, monkeypatch):
    # the session of other tests has keys already
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    values = {f"data_{name}": f"s3://bucket/{name}.root" for name in ("train", "val", "test")}
    storage.forget_client()
    table = lines(check_inputs.check_inputs(RunConfig(**values)))
    storage.forget_client()
    ((state, text),) = table["train, val and test data"]
    assert state == "error"
    assert "AWS_ACCESS_KEY_ID" in text


def test_different_mistakes_in_the_data_are_lines_of_their_own(jet_files):
    missing = {name: f"{jet_files}/nowhere/{name}.root" for name in ("train", "val")}
    table = lines(check_inputs.check_inputs(RunConfig(**data(jet_files, **missing))))
    assert "nowhere/train.root" in table["train data"][0][1]
    assert "nowhere/val.root" in table["val data"][0][1]


def test_a_check_gives_up_soon_on_servers_that_refuse_connections(monkeypatch, capsys):
    """Of an address that refuses connections, all sets and the storage are known in seconds."""
    pauses = []
    monkeypatch.setattr("common.storage.retries.sleep", pauses.append)
    values = [f"--data-{name}=http://localhost:1/{name}.root" for name in ("train", "val", "test")]
    assert pipeline.main(["--check", "--runner", "local", *values]) == 1
    assert len(pauses) == 3 * len(retries.QUICK_PAUSES)
    assert sum(retries.QUICK_PAUSES) <= 2
    assert "train, val and test data" in capsys.readouterr().out
    assert retries.s3_attempts() == 9


def test_an_earlier_run_that_is_not_there_is_an_error(jet_files, tmp_path):
    values = data(jet_files) | {"baseline": str(tmp_path)}
    ((state, text),) = lines(check_inputs.check_inputs(RunConfig(**values)))["baseline"]
    assert state == "error"
    assert str(tmp_path) in text
    storage.write_text(f"{tmp_path}/metrics.json", "{}")
    ((state, _),) = lines(check_inputs.check_inputs(RunConfig(**values)))["baseline"]
    assert state == "ok"


def test_a_file_in_two_sets_is_an_error(jet_files):
    values = data(jet_files, test=f"{jet_files}/val/*.root")
    ((state, text),) = lines(check_inputs.check_inputs(RunConfig(**values)))["sets"]
    assert state == "error"
    assert "--data-val" in text
    assert "--data-test" in text


@pytest.mark.parametrize(
    ("missing", "states"),
    [
        pytest.param("train", {"sets": "not seen", "raw model": "ok"}, id="train"),
        pytest.param("val", {"sets": "not seen", "raw model": "not seen"}, id="val"),
    ],
)
def test_checks_that_depend_on_unreadable_files_are_not_ok(jet_files, missing, states):
    values = data(jet_files, **{missing: f"{jet_files}/nowhere/*.root"})
    table = lines(check_inputs.check_inputs(RunConfig(**values)))
    assert table[f"{missing} data"][0][0] == "error"
    assert {name: table[name][0][0] for name in states} == states
    assert f"--data-{missing}" in table["sets"][0][1]


@pytest.mark.parametrize(
    ("raw_model", "states"),
    [("auto", ["ok", "warning"]), ("required", ["error"]), ("none", ["ok"])],
)
def test_check_reports_a_data_config_without_a_raw_model(jet_files, monkeypatch, raw_model, states):
    def refuse(*_):
        raise InputError("np.linalg.norm has no form in a graph")

    monkeypatch.setattr("weaver.onnx.raw_program.check_raw", refuse)
    values = RunConfig(**data(jet_files), raw_model=raw_model)
    table = lines(check_inputs.check_inputs(values))["raw model"]
    assert [state for state, _ in table] == states
    assert (raw_model == "none") != any("np.linalg.norm" in text for _, text in table)


# Images
# ------------------------------------------------------------------------------------------------


class Registry(http.server.BaseHTTPRequestHandler):
    """Enough of the registry API to ask for a manifest, behind a token."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._say(200, b'{"token": "pull"}')

    def do_HEAD(self):
        if self.path.startswith("/v2/closed/"):
            return self._say(403)
        if self.headers.get("Authorization") != "Bearer pull":
            realm = f"http://127.0.0.1:{self.server.server_port}/token"
            return self._say(
                401,
                headers={
                    "WWW-Authenticate": (
                        f'Bearer realm="{realm}",service="r",scope="repository:jec/steps:pull"'
                    )
                },
            )
        is_known = self.path in ("/v2/jec/steps/manifests/1", "/v2/jec/steps/manifests/sha256:abc")
        return self._say(200 if is_known else 404, headers={"Docker-Content-Digest": "sha256:abc"})

    def _say(self, code, content=b"", headers=()):
        self.send_response(code)
        for key, value in {**dict(headers), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def registry():
    with handling(Registry) as server:
        yield f"127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("image", "state", "message"),
    [
        ("REGISTRY/jec/steps@sha256:abc", "ok", "by its digest"),
        (
            "REGISTRY/jec/steps:1",
            "warning",
            "may name another image tomorrow REGISTRY/jec/steps@sha256:abc",
        ),
        ("REGISTRY/jec/steps:2", "error", "is not in its registry"),
        ("REGISTRY/closed/steps:1", "warning", "requires a login"),
        ("127.0.0.1:9/jec/steps:1", "not seen", "cannot be reached from here"),
        ("jec-steps:latest", "error", "names no registry"),
    ],
)
def test_the_registry_is_asked_for_each_image(registry, image, state, message):
    (row,) = check_images.check_images([image.replace("REGISTRY", registry)], on_cluster=True)
    assert row.state == state
    assert message.replace("REGISTRY", registry) in f"{row.finding} {row.cure}"


# The command
# ------------------------------------------------------------------------------------------------


def test_a_mistake_in_the_search_space_is_one_line(fake, tmp_path, capsys):
    """Objects, dry runs and the check of the inputs all read it."""
    grant_optional_reads(fake().api)
    space = tmp_path / "space.yaml"
    space.write_text("parameters:\n- {name: conv-dim, type: int, min: 5, max: 2}\n")
    flags = ["--check", "--runner", "kubeflow", "--search-space", str(space)]
    assert pipeline.main([*flags, "--output", str(tmp_path / "runs")]) == 1
    assert capsys.readouterr().out.count("min 5 is not below max 2") == 1


def test_the_command_prints_the_table_and_sets_its_exit_code(
    fake, kfp, s3_bucket, s3_server, registry, capsys, monkeypatch
):
    backend = fake()
    kfp.multi_user = True
    create_needs(backend.api, endpoint=s3_server.removeprefix("http://"))
    grant_optional_reads(backend.api)
    backend.api.find("secrets", "s3-secret")["metadata"]["annotations"][
        "serving.kserve.io/s3-usehttps"
    ] = "0"
    image = f"{registry}/jec/steps@sha256:abc"
    arguments = [
        "--check",
        "--host",
        kfp.url,
        "--namespace",
        "physics",
        "--s3-bucket",
        f"{s3_bucket}/jec",
        "--s3-endpoint",
        s3_server,
        "--steps-image",
        image,
        "--weaver-image",
        image,
    ]
    assert pipeline.main(arguments) == 0
    text = capsys.readouterr().out
    assert "all ok" in text
    assert "Kubeflow Pipelines" in text
    assert kfp.runs == []
    assert (
        pipeline.main(
            [
                *arguments,
                "--search-space",
                '{"parameters": [{"name": "nonsense", "type": "int", "min": 1, "max": 2}]}',
            ]
        )
        == 1
    )
    text = capsys.readouterr().out
    assert "error     search space" in text
    assert "this run would fail" in text


def server_lines(kfp, **values):
    return lines(check.check_server(config(**values), kfp.url, "none", []))


@pytest.mark.parametrize(
    ("many", "namespace", "state", "message"),
    [
        (True, "auto", "error", "--namespace"),
        (True, "physics", "ok", "physics: runs can be listed"),
        (False, "auto", "ok", "one for all"),
        (False, "physics", "warning", "whatever --namespace says"),
    ],
)
def test_the_server_says_whose_namespace_a_run_gets(kfp, many, namespace, state, message):
    kfp.multi_user = many
    (line,) = server_lines(kfp, namespace=namespace)["its namespace"]
    assert line[0] == state
    assert message in line[1]


@pytest.mark.parametrize(
    ("version", "states"),
    [
        ("2.4.1", ["error"]),
        ("2.5.0", ["ok", "warning", "warning", "warning"]),
        ("2.14.4", ["ok", "warning"]),
        ("2.15.0", ["ok"]),
    ],
)
def test_the_consequences_of_the_servers_version_are_listed(kfp, version, states):
    kfp.version = version
    assert [state for state, _ in server_lines(kfp)["its version"]] == states


def test_parameters_that_are_too_long_are_an_error(kfp):
    entry = {"name": "start-lr", "type": "discrete", "list": list(range(1, 20_001))}
    (line,) = server_lines(kfp, search_space=json.dumps([entry]))["parameters"]
    assert line[0] == "error"
    assert "--search-space" in line[1]
    (line,) = server_lines(kfp)["parameters"]
    assert line[0] == "ok"


@pytest.mark.parametrize("host", ["none", "kubeflow"])
def test_an_invalid_host_is_an_error_of_one_line(monkeypatch, capsys, host):
    monkeypatch.setenv("KFP_ENDPOINT", "http://127.0.0.1:1")
    code = pipeline.main(["--check", "--host", host])
    answer = capsys.readouterr()
    if host == "none":
        assert "for a run on this machine" in answer.out
        assert "no endpoint" in answer.out
    else:
        assert code == 2
        assert "--host: 'kubeflow' is not a URL" in answer.err


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), ("12Gi", 12 * 2**30), ("2", 2.0), ("1e3", 1000.0), ("1.5k", 1500.0)],
)
def test_quantities_are_parsed(text, number):
    assert amount(text) == number


def test_quantities_are_shown_short():
    assert [quantity_text(value) for value in (0.5, 2, 12 * 2**30)] == ["0.5", "2", "12Gi"]
