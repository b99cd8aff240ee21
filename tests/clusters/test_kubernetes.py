"""The Kubernetes backend before a fake API server: every wait ends, with a reason, also on the ugly
paths.
"""

from __future__ import annotations

import math
import signal
import threading
import time

import pytest
from kubernetes import config

from clusters import api as api_module
from clusters import kubernetes_objects
from clusters.kubernetes import KubernetesCluster
from clusters.protocol import RUN_LABEL
from common.errors import ClusterError, DeadlineError, InputError
from tests.clusters.contract import RUN_ID, experiment, job, service
from tests.clusters.controllers import Katib, KServe, Node, Play
from tests.clusters.fake_api import has_condition, set_condition

SEARCH, EXPORT = "pfn-0a1b2c3d-search", "pfn-0a1b2c3d-export"


def node_of(*scripts: Play | list[Play]) -> Node:
    """A node that gives these to the pods by the order of their names' first appearance, the last
    one to all that follow.

    A list is for a pod's attempts, its last for all that follow.
    """
    left, given = list(scripts), {}

    def play(pod: dict) -> Play:
        name = pod["metadata"]["name"]
        if name not in given:
            script = left.pop(0) if len(left) > 1 else left[0]
            given[name] = list(script) if isinstance(script, list) else [script]
        return given[name].pop(0) if len(given[name]) > 1 else given[name][0]

    return Node(play)


def loss(value: float | str, **how) -> Play:
    return Play(metrics=f"2026-01-01T00:00:00Z AvgLoss={value}\n", **how)


def later(action, when, api) -> threading.Thread:
    """Do something to the fake once a condition holds there, while the test's main thread waits in
    the product.
    """

    def act() -> None:
        api.wait_for(when)
        with api.lock:
            action()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


# Configuration
# ------------------------------------------------------------------------------------------------


def test_no_configuration_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nothing"))
    with pytest.raises(
        InputError,
        match=r"Set KUBECONFIG to a kubeconfig file, or run on this machine with --runner local",
    ):
        KubernetesCluster()


def test_namespace_is_the_contexts_or_the_one_asked_for(fake):
    assert fake().cluster.namespace == "physics"
    assert fake(namespace="auto").cluster.namespace == "physics"
    assert fake(namespace="other").cluster.namespace == "other"


def test_no_namespace_says_what_to_type(fake, tmp_path):
    fake().api.write_kubeconfig(tmp_path / "kubeconfig", namespace=None)
    with pytest.raises(
        InputError, match=r"kubeconfig context 'fake' names no namespace; pass --namespace NAME"
    ):
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
    monkeypatch.setattr(api_module, "_client", lambda settings: _Settings(settings))
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
    assert "of this run exists" in backend.text


def test_an_experiment_of_this_run_that_failed_is_run_again(fake):
    backend = fake(node_of(Play(exit_code=1, log="out of luck\n")))
    with pytest.raises(ClusterError):
        backend.run_experiment(experiment(["0.1"]))
    backend.node.play = lambda pod: loss(0.1)
    assert backend.run_experiment(experiment(["0.1"])).trials[0].metrics["AvgLoss"].min == 0.1
    assert "failed before; it is removed and run again" in backend.text


@pytest.mark.parametrize(
    "labels", [{RUN_LABEL: "other-00000000"}, {}], ids=["another run's", "nobody's"]
)
def test_an_object_of_another_run_is_left_alone(fake, labels):
    backend = fake()
    theirs = job("pass")
    theirs["metadata"]["labels"] = labels
    backend.api.create("pytorchjobs", theirs)
    with pytest.raises(ClusterError, match=f"not to run '{RUN_ID}'; it is left alone"):
        backend.run_job(job("pass"))
    assert backend.api.find("pytorchjobs", EXPORT)["metadata"].get("labels") == labels


def test_an_object_that_is_being_deleted_is_waited_for_and_then_made_anew(fake):
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
    with pytest.raises(
        InputError, match=r"kubeflow.org/v1 PyTorchJob, and not a kubeflow.org/v1beta1 Experiment"
    ):
        backend.run_experiment(job("pass"))
    manifest = job("pass")
    manifest["metadata"]["namespace"] = "elsewhere"
    with pytest.raises(InputError, match="namespace 'elsewhere'"):
        backend.run_job(manifest)
    assert backend.api.requests == []


def test_what_admission_refuses_is_told_in_its_words(fake):
    backend = fake()
    wrong = experiment(["0.1"])
    wrong["spec"]["objective"]["type"] = "smallest"
    with pytest.raises(
        ClusterError,
        match=r"refused to create Experiment .*spec.objective.type must be minimize or maximize",
    ):
        backend.run_experiment(wrong)
    wrong = job("pass")
    wrong["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]["name"] = (
        "main"
    )
    with pytest.raises(
        ClusterError, match=r"refused to create PyTorchJob .*container named pytorch"
    ):
        backend.run_job(wrong)
    with pytest.raises(
        ClusterError,
        match=r"refused to create InferenceService .*422 .*spec.predictor: Required value",
    ):
        backend.deploy({**service(), "spec": {}})


def test_what_is_forbidden_missing_or_expired_says_so(fake):
    backend = fake()
    backend.api.fail(
        "POST", "pytorchjobs", code=403, message='User "me" cannot create resource "pytorchjobs"'
    )
    with pytest.raises(
        ClusterError,
        match=r"not allowed to create pytorchjobs.kubeflow.org in namespace 'physics': .*User",
    ):
        backend.run_job(job("pass"))
    backend.api.fail("POST", "pytorchjobs", code=401, message="Unauthorized")
    with pytest.raises(ClusterError, match=r"does not accept our credentials .*renew the token"):
        backend.run_job(job("pass"))
    del backend.api.served["pytorchjobs"]
    with pytest.raises(
        ClusterError, match=r"is the training operator installed \(kubeflow.org/v1\)"
    ):
        backend.run_job(job("pass"))


# A server that misbehaves
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"code": 429, "headers": {"Retry-After": "0"}}, id="429"),
        pytest.param({"code": 500}, id="500"),
        pytest.param({"code": 503}, id="503"),
        pytest.param({"cut": "before"}, id="cut"),
        pytest.param({"cut": "after"}, id="cut after the work was done"),
    ],
)
def test_a_bad_moment_is_outlived_at_every_request(fake, fault):
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


def test_a_server_that_stays_away_ends_at_the_deadline_and_is_named(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    later(
        lambda: backend.api.fail(
            "*", "pytorchjobs", times=math.inf, code=503, message="etcd is gone"
        ),
        lambda: backend.api.all("pods"),
        backend.api,
    )
    with pytest.raises(
        DeadlineError, match=r"(?s)job .* did not end within 1 s.*\n  API server: 503 etcd is gone"
    ):
        backend.run_job(job("pass"), deadline=0.8)


def test_a_server_that_was_never_there_is_not_waited_for_until_the_deadline(fake, monkeypatch):
    backend = fake()
    monkeypatch.setattr(api_module, "FIRST_CONTACT_SECONDS", 0.3)
    backend.api.fail("*", ".", times=math.inf, cut="before")
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"API server at http://127.0.0.1:\d+ cannot be reached"):
        backend.run_job(job("pass"), deadline=600)
    assert time.monotonic() - started < 5


def test_retry_after_is_obeyed(fake):
    backend = fake()
    backend.api.fail("POST", "pytorchjobs", code=429, headers={"Retry-After": "1"})
    started = time.monotonic()
    backend.run_job(job("pass"))
    assert time.monotonic() - started > 1


def test_ctrl_c_goes_through_at_once(fake):
    backend = fake(node_of(Play(seconds=math.inf)), poll=30)

    def interrupt() -> None:
        # the main thread has to be in its sleep: Python loses a signal's haste between two system
        # calls
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    manifest = job("pass")
    later(interrupt, lambda: f"job {manifest['metadata']['name']}: " in backend.text, backend.api)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        backend.run_job(manifest, deadline=600)
    assert time.monotonic() - started < 5


def test_what_cannot_be_read_only_costs_the_reasons(fake):
    backend = fake(node_of(Play(exit_code=1, log="boom"), loss(0.1)))
    backend.api.fail("GET", "pods|events", times=math.inf, code=403, message="pods is forbidden")
    result = backend.run_experiment(experiment(["0.1", "0.2"], parallel=1))
    assert [trial.status for trial in result.trials] == ["Failed", "Succeeded"]
    assert "not allowed to read pods" in backend.text


# Experiment
# ------------------------------------------------------------------------------------------------


def test_progress_is_told_once_a_change(fake):
    backend = fake(node_of(loss(0.3, seconds=0.2)))
    result = backend.run_experiment(experiment(["0.3", "0.3 "]))
    assert f"2/2 trials, best AvgLoss 0.3 by {result.optimal}" in backend.text
    assert len(backend.lines) == len(set(backend.lines))


@pytest.mark.parametrize(
    ("pending", "said"),
    [
        (
            "unschedulable",
            "no node takes it: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        ),
        (
            "image",
            'its image cannot be pulled: ImagePullBackOff: Back-off pulling image "weaver:test"',
        ),
        (
            "config",
            (
                'its container cannot be created: CreateContainerConfigError: secret "s3-keys" not'
                " found"
            ),
        ),
        ("mount", "FailedMount: MountVolume.SetUp failed for volume"),
        (
            "quota",
            "quota: exceeded quota: kf-resource-quota, requested: requests.nvidia.com/gpu=1, used",
        ),
    ],
)
def test_pods_that_wait_are_explained_and_go_on_when_they_can(fake, pending, said):
    play = loss(0.1, pending="" if pending == "quota" else pending)
    backend = fake(node_of(play))
    backend.operator.quota = pending == "quota"

    def release() -> None:
        play.pending, backend.operator.quota = "", False

    released = later(
        release, lambda: said in backend.text and "1 pending" in backend.text, backend.api
    )
    backend.run_experiment(experiment(["0.1"]))
    released.join()
    assert f"{SEARCH}-00xk0000: {said}" in backend.text


def test_the_deadline_names_what_was_waited_for(fake):
    backend = fake(node_of(loss(0.1), Play(pending="unschedulable")))
    with pytest.raises(
        DeadlineError,
        match=(
            r"did not end within 1 s; last seen: 1/2 trials, 1 pending, best AvgLoss"
            r" 0.1.*\n.*Insufficient nvidia"
        ),
    ):
        backend.run_experiment(experiment(["0.1", "0.2"]), deadline=0.8)


def test_an_image_that_does_not_come_is_given_up_before_the_deadline(fake):
    backend = fake(node_of(Play(pending="image")), patience=0.3)
    started = time.monotonic()
    with pytest.raises(
        DeadlineError, match=f"experiment {SEARCH} cannot start: pod .*ImagePullBackOff"
    ):
        backend.run_experiment(experiment(["0.1"]), deadline=60)
    assert time.monotonic() - started < 30


def test_an_algorithm_whose_pod_does_not_start_is_named(fake):
    algorithm = Play(pending="unschedulable", seconds=math.inf)
    node = node_of(algorithm, loss(0.1))
    backend = fake(node, katib=Katib(node, pod=True))
    said = f"the algorithm of {SEARCH}: no node takes it: 0/3 nodes are available"

    def release() -> None:
        algorithm.pending = ""

    released = later(release, lambda: said in backend.text, backend.api)
    backend.run_experiment(experiment(["0.1"]))
    released.join()


def test_a_collector_that_reports_nothing_is_named(fake):
    node = node_of(loss(0.1))
    backend = fake(node, katib=Katib(node, deaf=True))
    with pytest.raises(
        DeadlineError, match="its pods have finished, the controller has not said so yet"
    ):
        backend.run_experiment(experiment(["0.1"]), deadline=0.6)


def test_failed_trials_give_the_commonest_reasons_and_their_last_lines(fake):
    broken, memory = (
        Play(exit_code=1, log="Traceback ...\nerror: no file a.root\n"),
        Play(reason="OOMKilled", log="epoch 1\n"),
    )
    backend = fake(node_of(loss(0.5), broken, memory, broken))
    with pytest.raises(ClusterError) as raised:
        backend.run_experiment(
            experiment(["1", "2", "3", "4", "5", "6"], max_failed=3, parallel=1), deadline=60
        )
    text = str(raised.value)
    assert "max failed count has reached (3 of 4 trials failed, the limit is 3)" in text
    assert (
        "  2 x exit code 1: error: no file a.root\n  1 x OOMKilled (exit code 137): it used more"
        " memory than its limit: epoch 1\n" in text
    )
    assert "  | Traceback ...\n  | error: no file a.root" in text
    assert text.count("last lines of pod") == 2  # one for each reason, not one for each trial


def test_the_reason_is_kept_when_the_pods_are_gone(fake):
    manifest = experiment(["1", "2"], max_failed=2, parallel=1)
    manifest["spec"]["trialTemplate"]["retain"] = False
    backend = fake(node_of(Play(exit_code=1, log="error: bad option k\n")))
    with pytest.raises(ClusterError, match="2 x exit code 1: error: bad option k"):
        backend.run_experiment(manifest)
    assert backend.api.all("pods") == []


def test_a_trial_whose_loss_is_nan_is_not_optimal_although_katib_says_so(fake):
    backend = fake(node_of(loss(0.2), loss("nan")))
    result = backend.run_experiment(experiment(["0.2", "nan"], parallel=1))
    good, bad = result.trials
    assert (
        backend.api.find("experiments", SEARCH)["status"]["currentOptimalTrial"]["bestTrialName"]
        == bad.name
    )
    assert result.optimal == good.name
    assert (bad.status, bad.metrics, bad.reason) == (
        "Succeeded",
        {},
        "AvgLoss is not a finite number",
    )


def test_a_search_without_one_number_fails_with_the_reasons(fake):
    backend = fake(node_of(loss("nan")))
    with pytest.raises(
        ClusterError,
        match=r"ended without one successful trial \(of 2\)\n  2 x AvgLoss is not a finite number",
    ):
        backend.run_experiment(experiment(["nan", "nan too"]))


def test_an_early_stopped_trial_counts_and_is_marked(fake):
    backend = fake(node_of(loss(0.2), loss(0.1, seconds=math.inf, early_stopped=True)))
    result = backend.run_experiment(experiment(["0.2", "0.1"], parallel=1))
    assert [trial.status for trial in result.trials] == ["Succeeded", "EarlyStopped"]
    assert result.optimal == result.trials[1].name
    assert result.trials[1].reason == "Trial is early stopped"


def test_a_goal_that_is_met_ends_the_search(fake):
    manifest = experiment(["1", "2", "3", "4"], parallel=1)
    manifest["spec"]["objective"]["goal"] = 0.25
    backend = fake(node_of(loss(0.5), loss(0.2)))
    result = backend.run_experiment(manifest)
    assert len(result.trials) == 2
    assert result.optimal == result.trials[1].name


def test_trials_that_begin_between_two_reads_do_not_end_a_search_that_goes_on(fake, monkeypatch):
    """The experiment is read while it still says that it has succeeded, its trials when Katib has
    begun the one that was added.
    """
    backend = fake(node_of(loss(0.3), loss(0.2), loss(0.1)))
    losses = ["1", "2", "3"]
    backend.run_experiment(
        experiment(losses, max_failed=2, maxTrialCount=2, resumePolicy="LongRunning")
    )
    read = kubernetes_objects.Objects.existing

    def slow_read(objects, kind, name, wait):
        thing = read(objects, kind, name, wait)
        if has_condition(thing, "Succeeded") and thing["spec"]["maxTrialCount"] == 3:
            backend.api.wait_for(lambda: len(backend.api.all("trials")) == 3)
        return thing

    monkeypatch.setattr(kubernetes_objects.Objects, "existing", slow_read)
    result = backend.run_experiment(experiment(losses, resumePolicy="LongRunning"))
    assert [trial.status for trial in result.trials] == ["Succeeded"] * 3
    assert result.optimal == result.trials[2].name


def test_an_experiment_that_somebody_deletes_is_missed(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    later(
        lambda: backend.api.delete("experiments", backend.api.find("experiments", SEARCH)),
        lambda: backend.api.all("pods"),
        backend.api,
    )
    with pytest.raises(ClusterError, match=f"Experiment {SEARCH} was deleted by somebody"):
        backend.run_experiment(experiment(["0.1"]), deadline=60)


# Job
# ------------------------------------------------------------------------------------------------


def test_an_evicted_job_says_so(fake):
    backend = fake(node_of(Play(reason="Evicted", log="epoch 3\n")))
    with pytest.raises(
        ClusterError,
        match=r"job .* failed: Evicted: The node was low on resource: memory.: epoch 3",
    ):
        backend.run_job(job("pass"))


def test_an_evicted_job_that_is_restarted_succeeds(fake):
    backend = fake(node_of([Play(reason="Evicted", seconds=0.1), Play()]))
    backend.run_job(job("pass", restart="OnFailure"))
    assert backend.lines[-1] == f"job {EXPORT}: succeeded"


def test_a_restart_is_told_with_its_reason_while_the_job_goes_on(fake):
    backend = fake(
        node_of([Play(exit_code=1, log="connection to the storage lost\n"), Play(seconds=0.3)])
    )
    backend.run_job(job("pass", restart="OnFailure"))
    assert (
        f"pod {EXPORT}-master-0 ended: exit code 1: connection to the storage lost" in backend.text
    )


def test_the_last_lines_are_kept_when_the_last_crash_could_not_be_read(fake):
    backend = fake(node_of(Play(exit_code=1, log="error: no space left\n", seconds=0.1)))
    later(
        lambda: backend.api.fail("GET", "/log", times=math.inf, code=404),
        lambda: "no space left" in backend.text,
        backend.api,
    )
    with pytest.raises(ClusterError, match="exit code 1: error: no space left") as raised:
        backend.run_job(job("pass", restart="OnFailure"))
    assert "  | error: no space left" in str(raised.value)


def test_a_failed_job_whose_pods_are_gone_still_ends(fake):
    backend = fake(node_of(Play(exit_code=1)))
    manifest = job("pass")
    manifest["spec"]["runPolicy"]["cleanPodPolicy"] = "All"
    backend.api.fail("GET", "/pods", times=math.inf, code=403)
    with pytest.raises(ClusterError, match=r"is failed because 1 replica.*its pods are gone"):
        backend.run_job(manifest)


def test_a_job_in_a_full_namespace_says_which_quota(fake):
    backend = fake()
    backend.operator.quota = True
    with pytest.raises(DeadlineError, match="quota: exceeded quota: kf-resource-quota"):
        backend.run_job(job("pass"), deadline=0.5)


def test_a_job_in_a_queue_says_so(fake):
    backend = fake(node_of(Play(seconds=0.3)))
    later(
        lambda: set_condition(backend.api.find("pytorchjobs", EXPORT), "Suspended"),
        lambda: backend.api.all("pods"),
        backend.api,
    )
    backend.run_job(job("pass"))
    assert f"job {EXPORT}: suspended, until a queue lets it start" in backend.lines


def test_replicas_are_counted(fake):
    backend = fake(node_of(Play(seconds=0.3)))
    backend.run_job(job("pass", replicas=3))
    assert f"job {EXPORT}: Master: 1 running; Worker: 2 running" in backend.text


# Service
# ------------------------------------------------------------------------------------------------

UP = Play(seconds=math.inf)
CRASH = Play(
    exit_code=1,
    log=(
        "I0101 loading: jec-pfn:1\nfailed to load 'jec-pfn': unexpected shape for input"
        " 'pf_features'\n"
    ),
)


def test_a_service_is_deployed_with_the_address_that_answers_from_here(fake):
    backend = fake(node_of(UP))
    deployed = backend.deploy(service())
    assert (deployed.name, deployed.kind, deployed.url) == (
        "jec-pfn",
        "kserve",
        "https://jec-pfn.physics.example.org",
    )
    backend.cluster._inside = True
    assert backend.deploy(service()).url == "http://jec-pfn.physics.svc.cluster.local"
    assert backend.lines[-1] == "service jec-pfn: ready"


@pytest.mark.parametrize("copies_labels", [True, False])
def test_an_update_is_not_ready_before_its_own_pods_are(fake, copies_labels):
    backend = fake(
        node_of(UP, Play(pending="unschedulable")),
        kserve=KServe(lag=0.3, copies_labels=copies_labels),
    )
    backend.deploy(service())
    backend.deploy(service())
    with pytest.raises(DeadlineError, match="service jec-pfn did not end within 1 s"):
        backend.deploy(service(uri="s3://models/other/model"), deadline=0.8)
    old, new = backend.api.all("pods")
    assert has_condition(old, "Ready")
    assert not has_condition(new, "Ready")


def test_an_update_keeps_what_others_wrote_and_goes_on_when_its_pods_are_ready(fake):
    backend = fake(node_of(UP), kserve=KServe(lag=0.2))
    backend.deploy(service())
    stored = backend.api.find("inferenceservices", "jec-pfn")
    stored["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    first = backend.api.all("pods")[0]["metadata"]["uid"]
    backend.deploy(service(uri="s3://models/other/model", run_id="other-00000000"))
    assert stored["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "RawDeployment"
    }
    assert stored["metadata"]["labels"][RUN_LABEL] == "other-00000000"
    assert stored["spec"]["predictor"]["model"]["storageUri"] == "s3://models/other/model"
    assert backend.api.all("pods")[0]["metadata"]["uid"] != first


def test_an_update_that_crosses_somebody_elses_is_made_again(fake):
    backend = fake(node_of(UP))
    backend.deploy(service())
    backend.api.fail("PUT", "inferenceservices", code=409, message="the object has been modified")
    backend.deploy(service(uri="s3://models/other/model"))
    assert (
        backend.api.find("inferenceservices", "jec-pfn")["spec"]["predictor"]["model"]["storageUri"]
        == "s3://models/other/model"
    )


def test_a_predictor_that_crashes_again_and_again_fails_with_its_last_lines_and_conditions(fake):
    backend = fake(node_of(CRASH))
    with pytest.raises(
        ClusterError,
        match="service jec-pfn failed: exit code 1: failed to load 'jec-pfn': unexpected shape",
    ) as raised:
        backend.deploy(service(), deadline=60)
    assert "  | I0101 loading: jec-pfn:1" in str(raised.value)
    assert "PredictorReady: MinimumReplicasUnavailable" in str(raised.value)


def test_a_predictor_that_is_ready_for_a_while_between_crashes_fails(fake):
    backend = fake(node_of(Play(exit_code=1, seconds=0.1, log=CRASH.log)), poll=0.15)
    with pytest.raises(ClusterError, match="unexpected shape"):
        backend.deploy(service(), deadline=60)


def test_ready_once_is_not_enough(fake):
    backend = fake(node_of([Play(seconds=math.inf, exit_code=1), CRASH]), poll=0.3)
    marks: list[int] = []

    def looked_at_once_while_ready() -> bool:
        found = backend.api.find("inferenceservices", "jec-pfn")
        if not found or not has_condition(found, "Ready"):
            return False
        marks.append(len(backend.api.requests))
        return any("/pods" in path for _, path in backend.api.requests[marks[0] :])

    def crash() -> None:
        next(iter(backend.node.plays.values())).seconds = 0

    later(crash, looked_at_once_while_ready, backend.api)
    with pytest.raises(ClusterError, match="unexpected shape"):
        backend.deploy(service(), deadline=60)


def test_a_model_that_cannot_be_fetched_fails_with_the_initializers_words(fake):
    backend = fake(
        node_of(
            Play(
                exit_code=1,
                container="storage-initializer",
                log="botocore: Access Denied to s3://models\n",
            )
        )
    )
    with pytest.raises(
        ClusterError, match="exit code 1: botocore: Access Denied to s3://models"
    ) as raised:
        backend.deploy(service(), deadline=60)
    assert "container storage-initializer" in str(raised.value)


def test_a_broken_predictor_of_the_spec_before_does_not_fail_its_repair(fake):
    backend = fake(node_of(CRASH))
    with pytest.raises(ClusterError):
        backend.deploy(service())
    backend.node.play = lambda pod: UP if pod["metadata"]["name"].endswith("2") else CRASH
    assert backend.deploy(service(uri="s3://models/repaired/model")).name == "jec-pfn"


def test_the_error_of_an_update_is_its_own_and_not_that_of_the_pods_before(fake):
    backend = fake(node_of(CRASH, Play(exit_code=2, log="no such model: jec-pfn\n")))
    with pytest.raises(ClusterError, match="unexpected shape"):
        backend.deploy(service())
    with pytest.raises(ClusterError, match="exit code 2: no such model"):
        backend.deploy(service(uri="s3://models/other/model"))


def test_a_spec_that_kserve_cannot_serve_fails_in_its_words(fake):
    backend = fake(kserve=KServe(invalid="No runtime found to support specified framework/version"))
    with pytest.raises(ClusterError, match="InvalidSpec: NoSupportingRuntime: No runtime found"):
        backend.deploy(service(), deadline=60)


def test_a_service_that_never_comes_up_ends_at_the_deadline_with_its_conditions(fake):
    backend = fake(node_of(Play(pending="image")))
    with pytest.raises(
        DeadlineError,
        match=(
            r"not ready: .*PredictorReady: MinimumReplicasUnavailable.*\n  jec-pfn: its image"
            r" cannot be pulled"
        ),
    ):
        backend.deploy(service(), deadline=0.8)
    backend = fake(node_of(Play(pending="image")), patience=0.2)
    with pytest.raises(
        ClusterError, match="cannot start: pod jec-pfn-predictor-00001: its image cannot be pulled"
    ):
        backend.deploy(service(), deadline=60)


def test_a_service_scaled_to_zero_is_ready_without_pods(fake):
    backend = fake(node_of(UP))
    backend.deploy(service(minReplicas=0))
    with backend.api.lock:
        backend.api.controllers.remove(backend.kserve)
        backend.api.delete("pods", backend.api.all("pods")[0])
    assert backend.deploy(service(minReplicas=0)).name == "jec-pfn"


# Removal
# ------------------------------------------------------------------------------------------------


def test_delete_by_run_takes_all_kinds_and_leaves_the_trials_jobs_to_their_trials(fake):
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


def test_delete_where_kserve_is_not_installed(fake):
    backend = fake()
    del backend.api.served["inferenceservices"]
    backend.run_job(job("pass"))
    assert backend.cluster.delete(RUN_ID) == [f"PyTorchJob/{EXPORT}"]


def test_a_removal_that_hangs_names_the_finalizers(fake, monkeypatch):
    backend = fake()
    monkeypatch.setattr(kubernetes_objects, "REMOVAL_SECONDS", 0.3)
    manifest = job("pass")
    manifest["metadata"]["finalizers"] = ["example.org/never"]
    backend.run_job(manifest)
    with pytest.raises(
        DeadlineError,
        match=(
            rf"removal of .*\n  PyTorchJob {EXPORT}: still there, waiting for its finalizers:"
            r" example.org/never"
        ),
    ):
        backend.cluster.delete_job(EXPORT)


# The fake is real enough for the published clients
# ----------------------------------------------------------------------


def test_the_published_clients_understand_the_fake(fake, tmp_path):
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


def test_kserves_client_and_watches_understand_the_fake(fake, tmp_path):
    from kserve import KServeClient
    from kubernetes import client, watch

    backend = fake(node_of(UP))
    backend.deploy(service())
    kserve = KServeClient(config_file=str(tmp_path / "kubeconfig"))
    assert kserve.is_isvc_ready("jec-pfn", namespace="physics")
    listing = client.CustomObjectsApi(backend.cluster._api._client)
    arguments = ("serving.kserve.io", "v1beta1", "physics", "inferenceservices")
    seen = watch.Watch().stream(
        listing.list_namespaced_custom_object, *arguments, resource_version="0", timeout_seconds=1
    )
    assert next(seen)["type"] == "ADDED"
    backend.api.compact()
    with pytest.raises(client.exceptions.ApiException) as gone:
        list(
            watch.Watch().stream(
                listing.list_namespaced_custom_object,
                *arguments,
                resource_version="1",
                timeout_seconds=1,
            )
        )
    assert gone.value.status == 410
