"""The Kubernetes backend before a fake API server: configuration, requests, submission, removal."""

from __future__ import annotations

import math
import re
import signal
import threading
import time

import pytest
from kubernetes import config

from clusters import api as api_module
from clusters import kubernetes_objects
from clusters.api import PYTORCHJOB
from clusters.kubernetes import KubernetesCluster
from clusters.protocol import RUN_LABEL, STEP_LABEL
from clusters.waiting import Wait
from common.errors import ClusterError, DeadlineError, InputError, UnreachableError
from tests.clusters.contract import RUN_ID, experiment, job, service
from tests.clusters.controllers import Play
from tests.clusters.scripts import EXPORT, SEARCH, UP, later, loss, node_of

# Configuration
# ------------------------------------------------------------------------------------------------


def test_no_configuration_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"KUBECONFIG.*--runner local"):
        KubernetesCluster()


def test_the_namespace_is_the_contexts_or_the_configured_one(fake):
    assert fake().cluster.namespace == "physics"
    assert fake(namespace="auto").cluster.namespace == "physics"
    assert fake(namespace="other").cluster.namespace == "other"


def test_no_namespace_says_what_to_type(fake, tmp_path):
    fake().api.write_kubeconfig(tmp_path / "kubeconfig", namespace=None)
    with pytest.raises(InputError, match=r"'fake'.*--namespace"):
        KubernetesCluster()
    assert KubernetesCluster("physics").namespace == "physics"


def test_a_pod_uses_its_service_account(monkeypatch, tmp_path):
    for name, text in {
        "token": "abc",
        "ca.crt": "-----BEGIN CERTIFICATE-----",
        "namespace": "jec\n",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(api_module, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(config.incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(config.incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(api_module, "_client", _Settings)
    connection = api_module.connect()
    assert (connection.inside, connection.namespace) == (True, "jec")
    assert connection.client.configuration.host == "https://10.0.0.1:443"
    assert connection.client.configuration.api_key["authorization"] == "bearer abc"


class _Settings:
    """Stands for an ApiClient, whose construction would read the certificate."""

    def __init__(self, settings) -> None:
        self.configuration = settings


# Submitting
# ------------------------------------------------------------------------------------------------


def test_an_object_of_this_run_is_adopted(fake):
    backend = fake(node_of(loss(0.1)))
    backend.run_experiment(experiment(["0.1"]))
    uid = backend.api.find("experiments", SEARCH)["metadata"]["uid"]
    backend.run_experiment(experiment(["0.1"]))
    assert backend.api.find("experiments", SEARCH)["metadata"]["uid"] == uid
    assert re.search(f"Experiment {SEARCH} .*exists", backend.text)


def test_an_experiment_of_this_run_that_failed_is_run_again(fake):
    backend = fake(node_of(Play(exit_code=1, log="out of luck\n")))
    with pytest.raises(ClusterError):
        backend.run_experiment(experiment(["0.1"]))
    backend.node.play = lambda pod: loss(0.1)
    assert backend.run_experiment(experiment(["0.1"])).trials[0].metrics["AvgLoss"].min == 0.1
    assert "failed before" in backend.text


@pytest.mark.parametrize(
    "labels", [{RUN_LABEL: "other-00000000"}, {}], ids=["another run's", "nobody's"]
)
def test_an_object_of_another_run_is_not_changed(fake, labels):
    backend = fake()
    theirs = job("pass")
    theirs["metadata"]["labels"] = labels
    backend.api.create("pytorchjobs", theirs)
    with pytest.raises(ClusterError, match=f"{EXPORT}.*'{RUN_ID}'"):
        backend.run_job(job("pass"))
    assert backend.api.find("pytorchjobs", EXPORT)["metadata"].get("labels") == labels


def test_an_object_under_deletion_is_waited_for_and_created_again(fake):
    backend = fake()
    old = job("pass")
    old["metadata"]["finalizers"] = ["example.org/slow"]
    old = backend.api.create("pytorchjobs", old)
    backend.api.delete("pytorchjobs", old)
    release = later(
        lambda: backend.api.replace(
            "pytorchjobs", old, {**old, "metadata": {**old["metadata"], "finalizers": []}}
        ),
        lambda: any("still being deleted" in line for line in backend.lines),
        backend.api,
    )
    backend.run_job(job("pass"))
    release.join()
    assert backend.api.find("pytorchjobs", EXPORT)["metadata"]["uid"] != old["metadata"]["uid"]


def test_another_kind_or_namespace_is_refused_before_anything_is_sent(fake):
    backend = fake()
    with pytest.raises(InputError, match=r"PyTorchJob.*Experiment"):
        backend.run_experiment(job("pass"))
    manifest = job("pass")
    manifest["metadata"]["namespace"] = "elsewhere"
    with pytest.raises(InputError, match="namespace 'elsewhere'"):
        backend.run_job(manifest)
    assert backend.api.requests == []


def test_a_refusal_by_admission_is_an_error_with_its_message(fake):
    backend = fake()
    wrong = experiment(["0.1"])
    wrong["spec"]["objective"]["type"] = "smallest"
    with pytest.raises(ClusterError, match=r"Experiment .*spec\.objective\.type"):
        backend.run_experiment(wrong)
    wrong = job("pass")
    wrong["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["name"] = (
        "main"
    )
    with pytest.raises(ClusterError, match=r"PyTorchJob .*named pytorch"):
        backend.run_job(wrong)
    with pytest.raises(ClusterError, match=r"InferenceService .*422 .*spec\.predictor"):
        backend.deploy({**service(), "spec": {}})


def test_forbidden_missing_and_expired_access_have_their_own_errors(fake):
    backend = fake()
    backend.api.fail(
        "POST", "pytorchjobs", code=403, message='User "me" cannot create resource "pytorchjobs"'
    )
    with pytest.raises(ClusterError, match=r"create pytorchjobs\..* 'physics': .*\"me\""):
        backend.run_job(job("pass"))
    backend.api.fail("POST", "pytorchjobs", code=401, message="Unauthorized")
    with pytest.raises(ClusterError, match=r"credentials .*token"):
        backend.run_job(job("pass"))
    del backend.api.kinds["pytorchjobs"]
    with pytest.raises(ClusterError, match=r"training operator .*kubeflow.org/v1"):
        backend.run_job(job("pass"))


# A server that misbehaves
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"code": 429, "headers": {"Retry-After": "0"}}, id="429"),
        pytest.param({"code": 500}, id="500"),
        pytest.param({"code": 503}, id="503"),
        pytest.param({"cut_connection": "before"}, id="cut"),
        pytest.param({"cut_connection": "after"}, id="cut after the work was done"),
    ],
)
def test_every_request_is_repeated_after_a_temporary_error(fake, fault):
    backend = fake(node_of(loss(0.1)))
    for method, path in (
        ("POST", "experiments"),
        ("GET", "experiments"),
        ("GET", "trials"),
        ("GET", "pods"),
    ):
        backend.api.fail(method, path, times=2, **fault)
    assert backend.run_experiment(experiment(["0.1"])).trials[0].status == "Succeeded"
    assert len(backend.api.all("experiments")) == 1
    assert "API server: " in backend.text


def test_an_unreachable_api_server_is_named_at_the_deadline(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    later(
        lambda: backend.api.fail(
            "*", "pytorchjobs", times=math.inf, code=503, message="etcd is gone"
        ),
        lambda: backend.api.all("pods"),
        backend.api,
    )
    with pytest.raises(DeadlineError, match=rf"(?s){EXPORT} .* 1 s.*503 etcd is gone"):
        backend.run_job(job("pass"), deadline=0.8)


def test_a_first_contact_with_an_unreachable_server_fails_before_the_deadline(fake, monkeypatch):
    backend = fake()
    monkeypatch.setattr(api_module, "FIRST_CONTACT_SECONDS", 0.3)
    backend.api.fail("*", ".", times=math.inf, cut_connection="before")
    start = time.monotonic()
    with pytest.raises(ClusterError, match=re.escape(backend.api.url)):
        backend.run_job(job("pass"), deadline=600)
    assert time.monotonic() - start < 5


WEBHOOK = (
    'Internal error occurred: failed calling webhook "w.example.org": failed to call webhook: Post'
    ' "https://w:443/x?timeout=10s": '
)
REFUSED = f"{WEBHOOK}dial tcp 10.0.0.9:443: connect: connection refused"
OVERDUE = f"{WEBHOOK}context deadline exceeded"


def requests_of(backend) -> dict:
    """One request of each verb that may reach a webhook, with a deadline of 0.5 s."""
    api, name = backend.cluster._api, "some-job"

    def wait() -> Wait:
        return Wait("a request", 0.5, backend.lines.append)

    manifest = job("pass", name=name)
    return {
        "create": lambda: api.create(PYTORCHJOB, manifest, wait()),
        "get": lambda: api.get(PYTORCHJOB, name, wait()),
        "list": lambda: api.list_objects(PYTORCHJOB, "", wait()),
        "update": lambda: api.replace(PYTORCHJOB, manifest, wait()),
        "delete": lambda: api.delete(PYTORCHJOB, name, wait()),
    }


@pytest.mark.parametrize("verb", ["create", "get", "list", "update", "delete"])
def test_an_unreachable_webhook_is_reported_once_and_named_at_the_deadline(fake, monkeypatch, verb):
    """Its name is reported at once, because the API server has answered before."""
    backend = fake()
    monkeypatch.setattr(api_module, "FIRST_CONTACT_SECONDS", 0.0)
    backend.api.fail("*", "pytorchjobs", times=math.inf, code=500, message=REFUSED)
    with pytest.raises(DeadlineError, match=r"\n  webhook w\.example\.org: .*connection refused"):
        requests_of(backend)[verb]()
    assert [line for line in backend.lines if "w.example.org" in line] == [backend.lines[0]]


def test_a_webhook_that_answers_again_is_no_longer_named(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    backend.api.fail("POST", "pytorchjobs", times=2, code=500, message=REFUSED)
    backend.api.fail("POST", "pytorchjobs", times=2, code=500, message=OVERDUE)
    with pytest.raises(DeadlineError) as error_info:
        backend.run_job(job("pass"), deadline=1)
    assert "running" in str(error_info.value)
    assert "w.example.org" not in str(error_info.value)
    lines = [line for line in backend.lines if line.startswith("webhook w.example.org: ")]
    assert len(lines) == 2
    assert "context deadline exceeded" in lines[1]


def test_an_unreachable_webhook_ends_a_wait_before_a_long_deadline(fake, monkeypatch):
    backend = fake()
    monkeypatch.setattr(api_module, "WEBHOOK_SECONDS", 0.3)
    backend.api.fail("POST", "pytorchjobs", times=math.inf, code=500, message=REFUSED)
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=r"w\.example\.org .*connection refused"):
        backend.run_job(job("pass"), deadline=600)
    assert time.monotonic() - start < 5


def test_a_request_that_the_deadline_interrupts_does_not_hide_the_reason(fake):
    """A webhook takes up to 30 s to time out; then our own last request ends without an answer."""
    backend = fake()
    backend.api.fail("POST", "pytorchjobs", code=500, message=REFUSED)
    backend.api.fail("POST", "pytorchjobs", times=math.inf, code=500, seconds=2)
    with pytest.raises(
        DeadlineError, match=r"\n  webhook w\.example\.org: .*refused"
    ) as error_info:
        backend.run_job(job("pass"), deadline=0.8)
    assert "imeout" not in str(error_info.value).replace("?timeout=10s", "")


@pytest.mark.parametrize("code", [500, 503])
@pytest.mark.parametrize("plain", [True, False], ids=["proxy", "Status"])
def test_only_an_answer_without_a_status_counts_as_unreachable(fake, monkeypatch, code, plain):
    backend = fake()
    monkeypatch.setattr(api_module, "FIRST_CONTACT_SECONDS", 0.1)
    backend.api.fail("*", ".", times=math.inf, code=code, plain=plain)
    with pytest.raises(UnreachableError if plain else DeadlineError):
        backend.run_job(job("pass"), deadline=0.8)


def test_pods_that_cannot_be_read_are_named_at_the_deadline(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    backend.api.fail("GET", "/pods", times=math.inf, code=500, message="etcd is gone")
    with pytest.raises(DeadlineError, match=r"reading pods: 500 etcd is gone"):
        backend.run_job(job("pass"), deadline=0.8)


def test_retry_after_is_obeyed(fake):
    backend = fake()
    backend.api.fail("POST", "pytorchjobs", code=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    backend.run_job(job("pass"))
    assert time.monotonic() - start > 1


def test_ctrl_c_ends_a_wait_at_once(fake):
    backend = fake(node_of(Play(seconds=math.inf)), poll=30)

    def interrupt() -> None:
        # the main thread has to be in its sleep: Python loses a signal's haste between two system
        # calls
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    manifest = job("pass")
    later(interrupt, lambda: f"job {manifest['metadata']['name']}: " in backend.text, backend.api)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        backend.run_job(manifest, deadline=600)
    assert time.monotonic() - start < 5


def test_a_search_without_the_right_to_read_pods_succeeds_without_reasons(fake):
    backend = fake(node_of(Play(exit_code=1, log="boom"), loss(0.1)))
    backend.api.fail("GET", "pods|events", times=math.inf, code=403, message="pods is forbidden")
    result = backend.run_experiment(experiment(["0.1", "0.2"], parallel=1))
    assert [trial.status for trial in result.trials] == ["Failed", "Succeeded"]
    assert "read pods" in backend.text


# Removal
# ------------------------------------------------------------------------------------------------


def test_delete_by_run_removes_all_kinds_but_the_trials_own_jobs(fake):
    backend = fake(node_of(loss(0.1), Play(), UP))
    backend.run_experiment(experiment(["0.1"]))
    backend.run_job(job("pass"))
    backend.deploy(service())
    backend.deploy(service(name="other", run_id="other-00000000"))
    assert backend.cluster.delete(RUN_ID) == [
        f"Experiment/{SEARCH}",
        f"PyTorchJob/{EXPORT}",
        "InferenceService/jec-pfn",
    ]
    assert not [
        path for method, path in backend.api.requests if method == "DELETE" and f"{SEARCH}-" in path
    ]
    assert (
        not backend.api.all("experiments")
        + backend.api.all("trials")
        + backend.api.all("pytorchjobs")
    )
    assert [pod["metadata"]["name"] for pod in backend.api.all("pods")] == ["other-predictor-00001"]
    assert backend.cluster.delete(RUN_ID) == []


def test_delete_works_without_kserve(fake):
    backend = fake()
    del backend.api.kinds["inferenceservices"]
    backend.run_job(job("pass"))
    assert backend.cluster.delete(RUN_ID) == [f"PyTorchJob/{EXPORT}"]


@pytest.mark.parametrize(
    ("labels", "limits", "going", "is_waited_for"),
    [
        ({kubernetes_objects.SUGGESTION_LABEL: SEARCH}, {"cpu": "1"}, True, False),
        ({kubernetes_objects.SUGGESTION_LABEL: SEARCH}, {"cpu": "1"}, False, True),
        ({kubernetes_objects.SUGGESTION_LABEL: SEARCH}, {"nvidia.com/gpu": "1"}, True, True),
        ({}, {"cpu": "1"}, True, True),
    ],
)
def test_a_removal_waits_for_all_pods_except_an_algorithms_that_is_ending(
    fake, monkeypatch, labels, limits, going, is_waited_for
):
    """The pod of a suggestion ignores SIGTERM, so that it takes its 30 s (seen, Katib 0.19.0)."""
    backend = fake(node_of(loss(0.1)))
    backend.run_experiment(experiment(["0.1"]))
    backend.why_pods_remain = "a finalizer that nobody takes off keeps the pod"
    monkeypatch.setattr(kubernetes_objects, "REMOVAL_SECONDS", 2.0)
    monkeypatch.setattr(kubernetes_objects, "QUIET_SECONDS", 0.0)
    # Katib gives the pod of an algorithm the label of the trials, too (seen).
    labels |= {kubernetes_objects.TRIALS_LABEL: SEARCH}
    labels |= {RUN_LABEL: RUN_ID, STEP_LABEL: "search"}
    metadata = {"name": "p", "labels": labels, "finalizers": ["example.org/kubelet"]}
    containers = [{"name": "c", "resources": {"limits": limits}}]
    with backend.api.lock:
        pod = backend.api.create("pods", {"metadata": metadata, "spec": {"containers": containers}})
        if going:
            backend.api.delete("pods", pod)
    lines = []
    if is_waited_for:
        with pytest.raises(DeadlineError):
            backend.cluster.delete(RUN_ID, lines.append)
        assert [line for line in lines if "still there: Pod p" in line]
    else:
        assert backend.cluster.delete(RUN_ID, lines.append) == [f"Experiment/{SEARCH}"]
        assert not [line for line in lines if "Pod p" in line]


def test_a_quick_removal_reports_nothing(fake):
    backend = fake()
    backend.run_job(job("pass"))
    lines = []
    backend.cluster.delete(RUN_ID, lines.append)
    assert lines == []


def test_a_removal_that_hangs_names_the_finalizers(fake, monkeypatch):
    backend = fake()
    monkeypatch.setattr(kubernetes_objects, "REMOVAL_SECONDS", 0.3)
    manifest = job("pass")
    manifest["metadata"]["finalizers"] = ["example.org/never"]
    backend.run_job(manifest)
    with pytest.raises(DeadlineError, match=rf"\n  PyTorchJob {EXPORT}: .*example\.org/never"):
        backend.cluster.delete_job(EXPORT)


# The fake is real enough for the published clients
# ------------------------------------------------------------------------------------------------


def test_the_published_clients_work_with_the_fake(fake, tmp_path):
    from kubeflow.katib import KatibClient
    from kubeflow.training import TrainingClient

    backend = fake(node_of(loss(0.2), loss(0.1), Play()))
    result = backend.run_experiment(experiment(["0.2", "0.1"], parallel=1))
    backend.run_job(job("pass"))
    katib = KatibClient(config_file=str(tmp_path / "kubeconfig"), namespace="physics")
    assert katib.is_experiment_succeeded(SEARCH)
    assert katib.get_optimal_hyperparameters(SEARCH).best_trial_name == result.optimal
    assert {trial["name"] for trial in katib.get_success_trial_details(SEARCH)} == {
        trial.name for trial in result.trials
    }
    training = TrainingClient(config_file=str(tmp_path / "kubeconfig"), namespace="physics")
    assert training.is_job_succeeded(EXPORT, job_kind="PyTorchJob")
    assert training.get_job_pod_names(EXPORT) == [f"{EXPORT}-master-0"]


def test_kserves_client_and_watches_work_with_the_fake(fake, tmp_path):
    from kserve import KServeClient
    from kubernetes import client, watch

    backend = fake(node_of(UP))
    backend.api.grant("watch", "inferenceservices.serving.kserve.io")  # we ourselves never watch
    backend.deploy(service())
    kserve = KServeClient(config_file=str(tmp_path / "kubeconfig"))
    assert kserve.is_isvc_ready("jec-pfn", namespace="physics")
    listing = client.CustomObjectsApi(backend.cluster._api._client)
    arguments = ("serving.kserve.io", "v1beta1", "physics", "inferenceservices")
    stream = watch.Watch().stream(
        listing.list_namespaced_custom_object, *arguments, resource_version="0", timeout_seconds=1
    )
    assert next(stream)["type"] == "ADDED"
    backend.api.compact()
    with pytest.raises(client.exceptions.ApiException) as error:
        list(
            watch.Watch().stream(
                listing.list_namespaced_custom_object,
                *arguments,
                resource_version="1",
                timeout_seconds=1,
            )
        )
    assert error.value.status == 410
