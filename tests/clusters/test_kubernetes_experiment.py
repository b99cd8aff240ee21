"""Experiments on the Kubernetes backend before a fake API server: each ends, with a reason."""

from __future__ import annotations

import math
import re
import time

import pytest

from clusters import kubernetes_experiment, kubernetes_objects
from clusters.manifests import RESTARTS
from common.errors import ClusterError, DeadlineError
from tests.clusters.contract import experiment
from tests.clusters.controllers import Katib, Play
from tests.clusters.fake_api import has_condition
from tests.clusters.scripts import SEARCH, later, loss, node_of


def test_progress_is_reported_once_for_each_change(fake):
    backend = fake(node_of(loss(0.3, seconds=0.2)))
    result = backend.run_experiment(experiment(["0.3", "0.3 "]))
    assert re.search(f"2/2 trials.* 0.3 by {result.optimal}", backend.text)
    assert len(backend.lines) == len(set(backend.lines))


@pytest.mark.parametrize(
    ("pending", "facts"),
    [
        ("unschedulable", "3 Insufficient nvidia.com/gpu"),
        ("image", "image weaver:test cannot be pulled .*no such host"),
        ("config", 'CreateContainerConfigError: secret "s3-keys"'),
        ("mount", 'FailedMount: .* volume "eos"'),
        ("quota", "kf-resource-quota, .* requests.nvidia.com/gpu=1"),
    ],
)
def test_waiting_pods_are_explained_until_they_run(fake, pending, facts):
    play = loss(0.1, pending="" if pending == "quota" else pending)
    backend = fake(node_of(play))
    backend.operator.quota = pending == "quota"

    def release() -> None:
        play.pending, backend.operator.quota = "", False

    def explained() -> bool:
        return bool(re.search(f"{SEARCH}-00xk0000: .*{facts}", backend.text))

    released = later(release, lambda: explained() and "1 pending" in backend.text, backend.api)
    backend.run_experiment(experiment(["0.1"]))
    released.join()
    assert explained()


def test_the_error_of_a_deadline_names_the_pods_that_wait(fake):
    backend = fake(node_of(loss(0.1), Play(pending="unschedulable")))
    with pytest.raises(
        DeadlineError, match=r" 1 s; .* 1/2 trials, 1 pending, .* 0.1"
    ) as error_info:
        backend.run_experiment(experiment(["0.1", "0.2"]), deadline=0.8)
    assert "3 Insufficient nvidia.com/gpu" in str(error_info.value)


def test_a_missing_image_fails_the_search_before_the_deadline(fake):
    backend = fake(node_of(Play(pending="image")), patience=0.3)
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=f"experiment {SEARCH} .*image weaver:test"):
        backend.run_experiment(experiment(["0.1"]), deadline=60)
    assert time.monotonic() - start < 30


def test_a_missing_image_is_reported_once_and_the_collectors_end_never(fake):
    """The two reasons of the image alternate every 0.05 s, and the collector ends as often."""
    backend = fake(node_of(Play(pending="image")))
    with pytest.raises(DeadlineError) as error_info:
        backend.run_experiment(experiment(["0.1"]), deadline=1)
    lines = [line for line in [*backend.lines, str(error_info.value)] if "weaver:test" in line]
    assert len(lines) == 2  # while it waited, and in its error
    assert "main pid" not in backend.text + str(error_info.value)
    assert "255" not in backend.text + str(error_info.value)


PRIVILEGED = 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'


def test_an_algorithm_whose_pod_may_never_be_created_ends_the_search_with_the_reason(fake):
    """The reason is an event of a ReplicaSet; each attempt has a pod of another name."""
    refusal = f'pods "{{name}}" is forbidden: {PRIVILEGED}'
    node = node_of(loss(0.1))
    backend = fake(node, katib=Katib(node, suggestion_refusal=refusal), poll=0.1)
    backend.api.create(
        "events",
        {
            "metadata": {"name": "another"},
            "involvedObject": {"kind": "ReplicaSet", "name": f"{SEARCH}-grid-grid-6797bffc9c"},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": "of another experiment",
            "lastTimestamp": "2126-01-01T00:00:00Z",
        },
    )
    start = time.monotonic()
    with pytest.raises(ClusterError, match=PRIVILEGED) as error_info:
        backend.run_experiment(experiment(["0.1"]), deadline=60)
    assert not isinstance(error_info.value, DeadlineError)
    assert time.monotonic() - start < 20
    assert backend.text.count(PRIVILEGED) == 1


def test_a_single_old_refusal_does_not_end_the_search(fake):
    """A ReplicaSet tries again up to 17 minutes later, so its last event may be an old one."""
    node = node_of(loss(0.1))
    katib = Katib(node, suggestion_refusal=f'pods "{{name}}" is forbidden: {PRIVILEGED}')
    backend = fake(node, katib=katib, poll=0.1)
    katib._refused_at = math.inf  # no further attempt

    def refuse() -> None:
        backend.api.event(
            {
                "kind": "ReplicaSet",
                "metadata": {"name": f"{SEARCH}-grid-6797bffc9c", "uid": "rs-1"},
            },
            "FailedCreate",
            f"Error creating: {PRIVILEGED}",
        )

    def cure() -> None:
        katib.suggestion_refusal = ""

    # Events are dated in whole seconds; those before the experiment do not count.
    refused = later(refuse, lambda: backend.api.find("experiments", SEARCH), backend.api)
    cured = later(cure, lambda: PRIVILEGED in backend.text, backend.api)
    result = backend.run_experiment(experiment(["0.1"]))
    refused.join()
    cured.join()
    assert len(result.trials) == 1


def test_an_algorithm_whose_pod_does_not_start_is_named(fake):
    algorithm = Play(pending="unschedulable", seconds=math.inf)
    node = node_of(algorithm, loss(0.1))
    backend = fake(node, katib=Katib(node, suggestion_pod=True))

    def release() -> None:
        algorithm.pending = ""

    def reports_algorithm() -> bool:
        return bool(re.search(f"algorithm of {SEARCH}: .* 3 Insufficient", backend.text))

    released = later(release, reports_algorithm, backend.api)
    backend.run_experiment(experiment(["0.1"]))
    released.join()
    assert reports_algorithm()


def test_a_collector_that_reports_nothing_is_named(fake):
    node = node_of(loss(0.1))
    backend = fake(node, katib=Katib(node, silent_collector=True))
    with pytest.raises(DeadlineError, match="pods have finished"):
        backend.run_experiment(experiment(["0.1"]), deadline=0.6)


def test_the_error_has_the_commonest_reasons_of_failed_trials_with_their_last_lines(fake):
    failing_play, memory = (
        Play(exit_code=1, log="Traceback ...\nerror: no file a.root\n"),
        Play(reason="OOMKilled", log="epoch 1\n"),
    )
    backend = fake(node_of(loss(0.5), failing_play, memory, failing_play))
    with pytest.raises(ClusterError) as error_info:
        backend.run_experiment(
            experiment(["1", "2", "3", "4", "5", "6"], failure_limit=3, parallel=1), deadline=60
        )
    text = str(error_info.value)
    assert re.search("3 of 4 trials .* 3", text)
    # The commonest reason first.
    assert re.search(r"\n  2 x exit code 1: .*a\.root\n  1 x OOMKilled .* epoch 1\n", text)
    assert "".join(f"  | {line}\n" for line in failing_play.log.splitlines()) in f"{text}\n"
    assert text.count("last lines of pod") == 2  # one for each reason, not one for each trial


def test_the_reason_is_kept_when_the_pods_are_gone(fake):
    manifest = experiment(["1", "2"], failure_limit=2, parallel=1)
    manifest["spec"]["trialTemplate"]["retain"] = False
    backend = fake(node_of(Play(exit_code=1, log="error: bad option k\n")))
    with pytest.raises(ClusterError, match=r"2 x exit code 1: .*option k"):
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
    assert (bad.status, bad.metrics) == ("Succeeded", {})
    assert "AvgLoss" in bad.reason


def test_a_trial_that_katib_adds_for_one_without_metrics_is_stopped(fake):
    """It is the third of two, and the experiment ends without it."""
    backend = fake(node_of(Play(), loss(0.2, seconds=0.3), loss(0.1, seconds=60)))
    result = backend.run_experiment(experiment(["silent", "0.2"], parallel=2))
    statuses = [trial.status for trial in result.trials]
    assert statuses[:2] == ["MetricsUnavailable", "Succeeded"]
    assert len(statuses) == 3
    assert result.optimal == result.trials[1].name


def test_a_trial_that_ends_after_the_one_that_katib_adds_is_removed_while_it_runs(fake):
    """The third trial of two counts as the second one, and ends the experiment."""
    crash = Play(seconds=60, exit_code=1)
    backend = fake(node_of(crash, Play(), loss(0.1)))
    result = backend.run_experiment(experiment(["broken", "silent"], parallel=2))
    statuses = [trial.status for trial in result.trials]
    assert statuses == ["Killed", "MetricsUnavailable", "Succeeded"]
    assert result.trials[0].reason
    assert backend.api.find("trials", result.trials[0].name) is None


def test_katib_keeps_a_nan_as_its_optimum_but_our_optimum_is_a_number(fake):
    backend = fake(node_of(loss("nan"), loss(0.2)))
    result = backend.run_experiment(experiment(["nan", "0.2"], parallel=1))
    status = backend.api.find("experiments", SEARCH)["status"]
    assert status["currentOptimalTrial"]["bestTrialName"] == result.trials[0].name
    assert result.optimal == result.trials[1].name


def test_a_search_without_any_finite_loss_fails_with_the_reasons(fake):
    backend = fake(node_of(loss("nan")))
    with pytest.raises(ClusterError, match=r"of 2\)\n  2 x AvgLoss .*finite"):
        backend.run_experiment(experiment(["nan", "nan too"]))


def test_an_early_stopped_trial_counts_and_is_marked(fake):
    early_play = loss(0.1, seconds=math.inf, stops_early=True)
    backend = fake(node_of(loss(0.2), early_play, loss(0.3)))
    result = backend.run_experiment(experiment(["0.2", "0.1", "0.3"], parallel=1))
    statuses = [trial.status for trial in result.trials]
    assert statuses == ["Succeeded", "EarlyStopped", "Succeeded"]
    assert result.optimal == result.trials[1].name
    assert "early stopped" in result.trials[1].reason


def test_the_metrics_of_a_last_trial_that_was_stopped_early_are_waited_for(fake):
    """Katib ends the experiment before it has them (seen with 0.19.0)."""
    early_play = loss(0.3, seconds=math.inf, stops_early=True)
    backend = fake(node_of(loss(0.2), early_play))
    backend.katib.observation_rounds = 100
    result = backend.run_experiment(experiment(["0.2", "0.3"], parallel=1))
    assert result.trials[1].metrics["AvgLoss"].min == 0.3


def test_an_ended_search_waits_only_briefly_for_missing_metrics(fake, monkeypatch):
    monkeypatch.setattr(kubernetes_experiment, "OBSERVATION_SECONDS", 0.2)
    early_play = loss(0.3, seconds=math.inf, stops_early=True)
    backend = fake(node_of(loss(0.2), early_play))
    backend.katib.observation_rounds = math.inf
    result = backend.run_experiment(experiment(["0.2", "0.3"], parallel=1))
    assert result.trials[1].metrics == {}
    assert result.optimal == result.trials[0].name


def test_a_search_hangs_if_its_pods_run_as_another_user_than_katibs_collector(fake):
    """Why our pods run as one user: without it the fake, as Katib, makes no further trial."""
    manifest = experiment(["0.2", "0.1", "0.3"], parallel=1)
    job = manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]
    del job["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["securityContext"]
    early_play = loss(0.1, seconds=math.inf, stops_early=True)
    backend = fake(node_of(loss(0.2), early_play, loss(0.3)))
    with pytest.raises(DeadlineError, match="2/3 trials"):
        backend.run_experiment(manifest, deadline=1.5)


def test_an_algorithm_ends_with_its_search(fake):
    backend = fake(node_of(loss(0.2)))
    backend.run_experiment(experiment(["0.2"], resumePolicy="Never"))
    backend.api.wait_for(lambda: not backend.api.all("deployments"))
    backend.run_experiment(experiment(["0.2"], name="kept", resumePolicy="LongRunning"))
    assert [deployment["metadata"]["name"] for deployment in backend.api.all("deployments")] == [
        "kept-grid"
    ]


def test_the_error_for_an_experiment_that_never_resumes_says_what_to_do(fake):
    losses = ["0.3", "0.2"]
    backend = fake(node_of(loss(0.3), loss(0.2)))
    backend.run_experiment(
        experiment(losses, maxTrialCount=1, parallel=1, failure_limit=1, resumePolicy="Never")
    )
    assert not backend.cluster.can_continue(SEARCH)
    with pytest.raises(ClusterError) as error_info:
        backend.run_experiment(experiment(losses, parallel=1, resumePolicy="Never"))
    for fact in (SEARCH, "--max-trials 1,", "--more-trials"):
        assert fact in str(error_info.value)


def test_a_running_experiment_gets_the_new_numbers_of_trials(fake):
    """Also where the number of all trials stays; a lower one as far as Katib goes down."""
    losses = ["0.4", "0.3", "0.2", "0.1"]
    backend = fake(node_of(*[loss(float(loss_text), seconds=math.inf) for loss_text in losses]))
    with pytest.raises(DeadlineError):
        backend.run_experiment(experiment(losses, parallel=1, failure_limit=1), deadline=0.6)

    def spec():
        stored_spec = backend.api.find("experiments", SEARCH)["spec"]
        return [stored_spec[key] for key in kubernetes_experiment.EDITABLE]

    assert spec() == [1, 4, 1]
    for counts, expected in (([2, 4, 3], [2, 4, 3]), ([1, 1, 1], [1, 3, 1])):
        parallel, most, failure_limit = counts
        manifest = experiment(
            losses, parallel=parallel, failure_limit=failure_limit, maxTrialCount=most
        )
        with pytest.raises(DeadlineError):
            backend.run_experiment(manifest, deadline=0.6)
        assert spec() == expected


def test_a_trial_is_restarted_as_often_as_its_job_says(fake):
    """Katib's collector is restarted with the program, and the operator counts both."""
    crash = Play(exit_code=137, log="killed\n")
    attempts = [*[crash] * RESTARTS, loss(0.2)]
    backend = fake(node_of(attempts))
    result = backend.run_experiment(experiment(["0.2"]))
    assert [trial.status for trial in result.trials] == ["Succeeded"]
    pods = backend.api.all("pods", "training.kubeflow.org/job-role=master")
    counts = [status["restartCount"] for status in pods[0]["status"]["containerStatuses"]]
    assert counts == [RESTARTS, RESTARTS]
    backend = fake(node_of([crash, *attempts]))
    with pytest.raises(ClusterError, match="exit code 137"):
        backend.run_experiment(experiment(["0.2"], failure_limit=1))


def test_a_goal_that_is_met_ends_the_search(fake):
    manifest = experiment(["1", "2", "3", "4"], parallel=1)
    manifest["spec"]["objective"]["goal"] = 0.25
    backend = fake(node_of(loss(0.5), loss(0.2)))
    result = backend.run_experiment(manifest)
    assert len(result.trials) == 2
    assert result.optimal == result.trials[1].name


def test_a_search_that_fails_leaves_no_trial_running(fake):
    """Katib lets the other trials of a failed experiment run on (seen with 0.19.0)."""
    backend = fake(node_of(Play(exit_code=1), Play(seconds=math.inf)))
    with pytest.raises(ClusterError, match="failed"):
        backend.run_experiment(experiment(["1", "2"], parallel=2, failure_limit=1))
    backend.api.wait_for(
        lambda: (
            not [pod for pod in backend.api.all("pods") if pod["status"].get("phase") == "Running"]
        )
    )
    assert len(backend.api.all("trials")) == 1


def test_an_experiment_is_deleted_in_the_background_and_waited_for(fake):
    """Nothing of the same name is made before its trials, jobs and pods are gone."""
    backend = fake(node_of(Play(exit_code=1), loss(0.1)))
    with pytest.raises(ClusterError):
        backend.run_experiment(experiment(["1"], failure_limit=1))
    start = time.monotonic()
    backend.cluster.delete_experiment(SEARCH)
    assert time.monotonic() - start < 10
    assert backend.api.deletions == [("experiments", SEARCH, "Background")]
    kinds = ("experiments", "trials", "pytorchjobs", "pods")
    assert [kind for kind in kinds if backend.api.all(kind)] == []


def test_trials_that_begin_between_two_reads_do_not_end_a_resumed_search(fake, monkeypatch):
    """The experiment is read before its trials.

    It still says that it has succeeded, when Katib has begun the trial that was added.
    """
    backend = fake(node_of(loss(0.3), loss(0.2), loss(0.1)))
    losses = ["1", "2", "3"]
    backend.run_experiment(
        experiment(losses, failure_limit=2, maxTrialCount=2, resumePolicy="LongRunning")
    )
    original = kubernetes_objects.Objects.existing

    def read_late(objects, kind, name, wait):
        thing = original(objects, kind, name, wait)
        if has_condition(thing, "Succeeded") and thing["spec"]["maxTrialCount"] == 3:
            backend.api.wait_for(lambda: len(backend.api.all("trials")) == 3)
        return thing

    monkeypatch.setattr(kubernetes_objects.Objects, "existing", read_late)
    result = backend.run_experiment(experiment(losses, resumePolicy="LongRunning"))
    assert [trial.status for trial in result.trials] == ["Succeeded"] * 3
    assert result.optimal == result.trials[2].name


def test_an_experiment_that_somebody_deletes_is_an_error(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    later(
        lambda: backend.api.delete("experiments", backend.api.find("experiments", SEARCH)),
        lambda: backend.api.all("pods"),
        backend.api,
    )
    with pytest.raises(ClusterError, match=f"Experiment {SEARCH} .*deleted"):
        backend.run_experiment(experiment(["0.1"]), deadline=60)
