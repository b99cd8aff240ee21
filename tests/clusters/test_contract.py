"""What every backend of manifests promises: the same small manifests, run for real on both."""

from __future__ import annotations

import re
import time

import pytest

from clusters import katib
from clusters.protocol import RUN_LABEL
from common.errors import ClusterError, DeadlineError, InputError
from tests.clusters.contract import RUN_ID, experiment, job


def by_losses(result) -> dict[str, object]:
    """The first trial of each value.

    Katib may make one more where a trial has no metrics (katib v0.19.0
    pkg/controller.v1beta1/experiment/experiment_controller.go:292); the fake begins anew with the
    values then.
    """
    return {trial.parameters["losses"]: trial for trial in reversed(result.trials)}


def test_the_manifests_pass_katibs_rules():
    katib.check_experiment(experiment(["0.2", "0.1"]))


def test_experiment_finds_the_optimum_over_all_lines_and_may_be_repeated(backend):
    manifest = experiment(["0.3/0.1/0.2", "0.5/0.4", "0.25"])
    result = backend.run_experiment(manifest)
    trials = by_losses(result)
    assert result.optimal == trials["0.3/0.1/0.2"].name
    assert len({trial.name for trial in result.trials}) == 3
    observed = trials["0.3/0.1/0.2"].metrics["AvgLoss"]
    assert (observed.min, observed.max, observed.latest) == (0.1, 0.3, 0.2)
    assert {trial.status for trial in result.trials} == {"Succeeded"}
    assert all(trial.reason == "" and trial.started and trial.finished for trial in result.trials)
    assert "3/3 trials" in backend.text
    assert f"by {result.optimal}" in backend.text
    again = backend.run_experiment(manifest)
    assert again.optimal == result.optimal
    assert {trial.name for trial in again.trials} == {trial.name for trial in result.trials}


def test_experiment_finds_the_maximum(backend):
    result = backend.run_experiment(experiment(["0.3", "0.5/0.4"], objective="maximize"))
    assert result.optimal == by_losses(result)["0.5/0.4"].name


def test_experiment_survives_fewer_failures_than_the_limit(backend):
    """One trial at a time, so that Katib makes none more for the one without metrics.

    Such a trial could end before "broken", whose pod starts several times; the experiment would
    end with its fourth trial, and "broken" would be removed while it runs.
    """
    losses = ["broken", "1.5e-1/.14", "silent", "7.5E-02"]
    result = backend.run_experiment(experiment(losses, parallel=1))
    trials = by_losses(result)
    assert len(result.trials) == len(losses)
    assert result.optimal == trials["7.5E-02"].name
    assert trials["7.5E-02"].metrics["AvgLoss"].latest == 0.075
    assert trials["1.5e-1/.14"].metrics["AvgLoss"].max == 0.15
    assert trials["broken"].status == "Failed"
    assert "loss is not finite" in trials["broken"].reason
    assert "exit code 1" in trials["broken"].reason
    assert trials["silent"].status == "MetricsUnavailable"
    assert "AvgLoss" in trials["silent"].reason


def test_experiment_fails_when_the_limit_is_reached_not_only_above_it(backend):
    with pytest.raises(ClusterError, match=r"experiment .*\n  2 x .*not finite"):
        backend.run_experiment(
            experiment(["broken", "broken too", "0.1", "0.2"], failure_limit=2, parallel=1)
        )


def test_a_loss_that_ends_as_nan_is_never_optimal(backend):
    result = backend.run_experiment(experiment(["0.05/nan", "0.3"]))
    trials = by_losses(result)
    assert result.optimal == trials["0.3"].name
    assert "finite" in trials["0.05/nan"].reason


# what a trial writes -> its status, and the AvgLoss that is observed of it: min, max, latest
EDGES = {
    "nan/0.2": ("Succeeded", (0.2, 0.2, 0.2)),
    "0.2/nan": (None, None),
    "inf/0.3": ("Succeeded", (0.3, 0.3, 0.3)),
    "7.5e-2/1E+0/+.5": ("Succeeded", (0.075, 1.0, 0.5)),
    "-2.5e-3": ("Succeeded", (-0.0025, -0.0025, -0.0025)),
    "888.000000000001": ("Succeeded", (888.000000000001,) * 3),
    "silent": ("MetricsUnavailable", None),
    "broken": ("Failed", None),
    "endless": ("Failed", None),
}


def test_both_backends_observe_edge_cases_alike(backend):
    """Also a deadline of a trial's own: it fails, and the others are counted.

    One trial at a time: so Katib makes none more for the one without metrics.
    """
    result = backend.run_experiment(
        experiment(list(EDGES), parallel=1, failure_limit=9, deadline=3)
    )
    for losses, trial in by_losses(result).items():
        status, expected = EDGES[losses]
        observation = trial.metrics.get("AvgLoss")
        assert (
            observation and (observation.min, observation.max, observation.latest)
        ) == expected, losses
        # Katib calls a trial succeeded whose last value is no number. It never counts, here or
        # there.
        assert trial.status == status or (
            status is None and trial.status in ("Succeeded", "MetricsUnavailable")
        ), losses
        assert bool(trial.reason) == (status != "Succeeded"), losses
    assert result.optimal == by_losses(result)["-2.5e-3"].name
    assert "deadline" in by_losses(result)["endless"].reason


MEDIANSTOP = {
    "algorithmName": "medianstop",
    "algorithmSettings": [
        {"name": "min_trials_required", "value": "2"},
        {"name": "start_step", "value": "2"},
    ],
}


def test_median_stopping_stops_the_same_trials(backend):
    """The limit is the mean of (0.3 + 0.2)/2 and (0.5 + 0.1)/2 = 0.275.

    It is held against the best of the first two values, once.
    """
    losses = [
        "0.3/0.2/0.19",
        "0.5/0.1",
        "slow:0.9/0.8/0.01",
        "slow:0.9/0.27/0.26",
        "slow:0.2/0.9/0.8",
    ]
    result = backend.run_experiment(experiment(losses, parallel=1, earlyStopping=MEDIANSTOP))
    trials = by_losses(result)
    assert [trials[text].status for text in losses] == [
        "Succeeded",
        "Succeeded",
        "EarlyStopped",
        "Succeeded",
        "Succeeded",
    ]
    early_trial = trials["slow:0.9/0.8/0.01"]
    assert (early_trial.metrics["AvgLoss"].min, early_trial.metrics["AvgLoss"].latest) == (
        0.8,
        0.8,
    ), "what it would have reached is not known"
    assert early_trial.reason
    assert result.optimal == trials["0.5/0.1"].name
    assert "1 stopped early" in backend.text


def test_a_finished_search_resumes_with_more_trials(backend):
    losses = ["0.3", "0.2", "0.1"]
    first = backend.run_experiment(
        experiment(losses, maxTrialCount=2, maxFailedTrialCount=2, resumePolicy="LongRunning")
    )
    assert len(first.trials) == 2
    assert backend.cluster.can_continue(first.name)
    result = backend.run_experiment(experiment(losses, resumePolicy="LongRunning"))
    assert [trial.name for trial in result.trials][:2] == [trial.name for trial in first.trials]
    assert result.optimal == by_losses(result)["0.1"].name
    assert not backend.cluster.can_continue("another")


def test_the_goal_ends_the_search_and_its_running_trials(backend):
    manifest = experiment(["endless", "0.1"], parallel=2)
    manifest["spec"]["objective"]["goal"] = 0.1
    trials = by_losses(backend.run_experiment(manifest))
    assert trials["0.1"].status == "Succeeded"
    assert (trials["endless"].status, trials["endless"].reason) == (
        "Killed",
        "the goal was reached",
    )


def test_a_failed_trial_and_the_best_one_are_reported(backend):
    backend.run_experiment(experiment(["broken", "0.1"], parallel=1))
    assert re.search(
        r"Failed: .*the loss is not finite|exit code 1: error: the loss is not finite",
        backend.text,
        re.DOTALL,
    )
    assert "losses 0.1" in backend.text


def test_an_experiment_fails_at_its_deadline(backend):
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="experiment pfn-0a1b2c3d-search"):
        backend.run_experiment(experiment(["endless"]), deadline=1.5)
    assert time.monotonic() - start < 20


def test_job_succeeds_with_the_environment_of_the_training_operator(backend, tmp_path):
    # The job is over when its Master is, so that one waits for its Worker.
    code = """if True:
        import os, sys, time
        with open(sys.argv[1] + os.environ["RANK"], "w") as file:
            file.write(os.environ["WORLD_SIZE"] + os.environ["MASTER_ADDR"])
        other = sys.argv[1] + "1"
        while os.environ["RANK"] == "0" and not (os.path.exists(other) and os.path.getsize(other)):
            time.sleep(0.02)
        """
    backend.run_job(job(code, f"{tmp_path}/rank", replicas=2))
    contents = {path.name: path.read_text() for path in tmp_path.glob("rank*")}
    assert contents == {"rank0": "2127.0.0.1", "rank1": "2127.0.0.1"}


@pytest.mark.parametrize("restart", ["Never", "OnFailure"])
def test_job_fails_with_its_last_lines(backend, restart):
    with pytest.raises(ClusterError, match="exit code 3") as error_info:
        backend.run_job(
            job(
                "print('reading the checkpoint', flush=True); print('no such trial: abc',"
                " flush=True); raise SystemExit(3)",
                restart=restart,
            )
        )
    assert "job pfn-0a1b2c3d-export failed" in str(error_info.value)
    assert re.search(r"reading the checkpoint\n.*no such trial: abc", str(error_info.value))


def test_a_job_with_a_failed_worker_ends(backend):
    code = (
        "import os, time, sys\nif os.environ['RANK'] == '1': sys.exit('worker: out of"
        " memory')\ntime.sleep(3)\nsys.exit(1)"
    )
    with pytest.raises(ClusterError, match="out of memory"):
        backend.run_job(job(code, replicas=2))


@pytest.mark.parametrize("whose", ["the caller's", "the manifest's"])
def test_a_job_fails_at_its_deadline(backend, whose):
    ours, theirs = (1, 600) if whose == "the caller's" else (30, 1)
    start = time.monotonic()
    with pytest.raises(DeadlineError, match="pfn-0a1b2c3d-export"):
        backend.run_job(job("import time; time.sleep(60)", deadline=theirs), deadline=ours)
    assert time.monotonic() - start < 20


def test_a_failed_job_is_run_again(backend, tmp_path):
    code = f"import pathlib; assert pathlib.Path('{tmp_path}/ready').exists(), 'not ready'"
    with pytest.raises(ClusterError, match="not ready"):
        backend.run_job(job(code))
    (tmp_path / "ready").touch()
    backend.run_job(job(code))


def test_a_job_with_another_command_is_run_again(backend, tmp_path):
    for word in ("one", "other", "other"):
        backend.run_job(
            job(
                "import pathlib, sys; pathlib.Path(sys.argv[1], sys.argv[2]).touch()",
                str(tmp_path),
                word,
            )
        )
    assert (tmp_path / "one").exists()
    assert (tmp_path / "other").exists()


SPAN = """
import pathlib, sys, time
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
code, at_once = int(sys.argv[3]), int(sys.argv[4])
began = time.time()
(folder / f"{name}.began").touch()
time.sleep(0.3)
# on a busy machine the other one may start later
while len(list(folder.glob("*.began"))) < at_once and time.time() < began + 20:
    time.sleep(0.05)
(folder / name).write_text(f"{began} {time.time()}")
sys.exit(f"error: {name} has no jets" if code else 0)
"""


@pytest.mark.parametrize("parallel", [1, 2])
def test_jobs_run_up_to_the_limit_at_a_time_and_a_failed_one_ends_no_other(
    backend, tmp_path, monkeypatch, parallel
):
    monkeypatch.setattr("clusters.local.cores", lambda: 2)
    names = ["a-job", "b-job", "c-job", "d-job"]
    jobs = []
    for name in names:
        code = "1" if name == "b-job" else "0"
        jobs.append(job(SPAN, str(tmp_path), name, code, str(parallel), name=name))
    ends = backend.run_jobs(jobs, parallel=parallel)
    assert sorted(ends) == names
    assert {name: bool(reason) for name, reason in ends.items()} == {
        name: name == "b-job" for name in names
    }
    assert "error: b-job has no jets" in ends["b-job"]
    assert "b-job failed" in backend.text
    spans = [tuple(map(float, (tmp_path / name).read_text().split())) for name in names]
    most = max(sum(start <= at < end for start, end in spans) for at, _ in spans)
    assert most == parallel


def test_jobs_that_do_not_end_are_a_deadline_error(backend):
    with pytest.raises(DeadlineError, match="endless"):
        backend.run_jobs([job("import time; time.sleep(60)", name="endless")], 1, deadline=1)


def test_one_of_several_jobs_that_takes_longer_than_its_own_deadline_has_failed(backend):
    jobs = [job("import time; time.sleep(60)", name="endless", deadline=1), job("", name="short")]
    ends = backend.run_jobs(jobs, parallel=1)
    assert list(ends) == ["endless", "short"]
    assert "deadline" in ends["endless"]
    assert ends["short"] == ""


def test_an_exception_of_on_end_is_passed_on(backend):
    class TooManyError(Exception):
        pass

    def raise_at_end(name: str, reason: str) -> None:
        raise TooManyError(name)

    jobs = [job("", name="short"), job("import time; time.sleep(60)", name="endless")]
    with pytest.raises(TooManyError, match="short"):
        backend.cluster.run_jobs(
            jobs, parallel=2, on_end=raise_at_end, deadline=30, report=backend.lines.append
        )
    backend.why_pods_remain = "the step removes the other job"


def test_delete_removes_a_runs_objects_and_may_be_repeated(backend):
    backend.run_experiment(experiment(["0.1"]))
    backend.run_job(job("pass"))
    backend.run_job(job("pass", name="other-export", run_id="other-00000000"))
    assert sorted(backend.cluster.delete(RUN_ID)) == [
        "Experiment/pfn-0a1b2c3d-search",
        "PyTorchJob/pfn-0a1b2c3d-export",
    ]
    assert backend.cluster.delete(RUN_ID) == []
    for _ in range(2):
        backend.cluster.delete_experiment("pfn-0a1b2c3d-search")
        backend.cluster.delete_job("other-export")
    assert backend.cluster.delete("other-00000000") == []


def test_a_manifest_without_a_run_id_is_an_internal_error(backend):
    manifest = job("pass")
    del manifest["metadata"]["labels"][RUN_LABEL]
    with pytest.raises(KeyError):
        backend.run_job(manifest)


def test_an_experiment_that_katib_would_refuse_is_refused(backend):
    manifest = experiment(["0.1", "0.2"])
    manifest["spec"]["parallelTrialCount"] = 3
    with pytest.raises((InputError, ClusterError), match=r"[pP]aral"):
        backend.run_experiment(manifest)
