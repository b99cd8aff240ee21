"""What every home of manifests promises: the same small manifests, run for real on both."""

from __future__ import annotations

import re
import time

import pytest

from clusters import katib
from clusters.protocol import RUN_LABEL
from common.errors import ClusterError, DeadlineError, InputError
from tests.clusters.contract import RUN_ID, experiment, job


def by_losses(result) -> dict[str, object]:
    return {trial.parameters["losses"]: trial for trial in result.trials}


def test_the_manifests_pass_katibs_rules():
    katib.check_experiment(experiment(["0.2", "0.1"]))


def test_experiment_finds_the_optimum_over_all_lines_and_is_taken_up_again(home):
    manifest = experiment(["0.3/0.1/0.2", "0.5/0.4", "0.25"])
    result = home.run_experiment(manifest)
    trials = by_losses(result)
    assert result.optimal == trials["0.3/0.1/0.2"].name
    assert len({trial.name for trial in result.trials}) == 3
    observed = trials["0.3/0.1/0.2"].metrics["AvgLoss"]
    assert (observed.min, observed.max, observed.latest) == (0.1, 0.3, 0.2)
    assert {trial.status for trial in result.trials} == {"Succeeded"}
    assert all(trial.reason == "" and trial.started and trial.finished for trial in result.trials)
    assert "3/3 trials" in home.text
    assert f"by {result.optimal}" in home.text
    again = home.run_experiment(manifest)
    assert again.optimal == result.optimal
    assert {trial.name for trial in again.trials} == {trial.name for trial in result.trials}


def test_experiment_finds_the_maximum(home):
    result = home.run_experiment(experiment(["0.3", "0.5/0.4"], objective="maximize"))
    assert result.optimal == by_losses(result)["0.5/0.4"].name


def test_experiment_survives_fewer_failures_than_the_limit(home):
    result = home.run_experiment(experiment(["broken", "1.5e-1/.14", "silent", "7.5E-02"]))
    trials = by_losses(result)
    assert result.optimal == trials["7.5E-02"].name
    assert trials["7.5E-02"].metrics["AvgLoss"].latest == 0.075
    assert trials["1.5e-1/.14"].metrics["AvgLoss"].max == 0.15
    assert trials["broken"].status == "Failed"
    assert "the loss is not finite" in trials["broken"].reason
    assert "exit code 1" in trials["broken"].reason
    assert trials["silent"].status == "MetricsUnavailable"
    assert "AvgLoss" in trials["silent"].reason


def test_experiment_fails_when_the_limit_is_reached_not_only_above_it(home):
    with pytest.raises(ClusterError, match=r"experiment .* failed: .*\n  2 x .*the loss is not finite"):
        home.run_experiment(experiment(["broken", "broken too", "0.1", "0.2"], max_failed=2, parallel=1))


def test_a_loss_that_ends_as_nan_is_never_optimal(home):
    result = home.run_experiment(experiment(["0.05/nan", "0.3"]))
    trials = by_losses(result)
    assert result.optimal == trials["0.3"].name
    assert "finite" in trials["0.05/nan"].reason


def test_experiment_runs_out_of_time(home):
    started = time.monotonic()
    with pytest.raises(DeadlineError, match="experiment pfn-0a1b2c3d-search"):
        home.run_experiment(experiment(["endless"]), deadline=1.5)
    assert time.monotonic() - started < 20


def test_job_succeeds_with_the_environment_of_the_training_operator(home, tmp_path):
    # The job is over when its Master is, so that one waits for its Worker.
    code = """if True:
        import os, sys, time
        with open(sys.argv[1] + os.environ["RANK"], "w") as file:
            file.write(os.environ["WORLD_SIZE"] + os.environ["MASTER_ADDR"])
        while os.environ["RANK"] == "0" and not (os.path.exists(sys.argv[1] + "1") and os.path.getsize(sys.argv[1] + "1")):
            time.sleep(0.02)
        """
    home.run_job(job(code, f"{tmp_path}/rank", replicas=2))
    written = {path.name: path.read_text() for path in tmp_path.glob("rank*")}
    assert written == {"rank0": "2127.0.0.1", "rank1": "2127.0.0.1"}


@pytest.mark.parametrize("restart", ["Never", "OnFailure"])
def test_job_fails_with_its_last_lines(home, restart):
    with pytest.raises(ClusterError, match="exit code 3") as raised:
        home.run_job(job("print('reading the checkpoint', flush=True); print('no such trial: abc', flush=True); raise SystemExit(3)",
                         restart=restart))  # fmt: skip
    assert "job pfn-0a1b2c3d-export failed" in str(raised.value)
    assert re.search(r"reading the checkpoint\n.*no such trial: abc", str(raised.value))


def test_job_of_which_a_worker_fails_ends(home):
    code = "import os, time, sys\nif os.environ['RANK'] == '1': sys.exit('worker: out of memory')\ntime.sleep(3)\nsys.exit(1)"
    with pytest.raises(ClusterError, match="worker: out of memory"):
        home.run_job(job(code, replicas=2))


@pytest.mark.parametrize("whose", ["the caller's", "the manifest's"])
def test_job_runs_out_of_time(home, whose):
    ours, theirs = (1, 600) if whose == "the caller's" else (30, 1)
    started = time.monotonic()
    with pytest.raises(DeadlineError, match="pfn-0a1b2c3d-export"):
        home.run_job(job("import time; time.sleep(60)", deadline=theirs), deadline=ours)
    assert time.monotonic() - started < 20


def test_job_that_failed_is_run_again_when_asked_for_again(home, tmp_path):
    code = f"import pathlib; assert pathlib.Path('{tmp_path}/ready').exists(), 'not ready'"
    with pytest.raises(ClusterError, match="not ready"):
        home.run_job(job(code))
    (tmp_path / "ready").touch()
    home.run_job(job(code))


def test_delete_finds_what_a_run_made_and_works_twice(home):
    home.run_experiment(experiment(["0.1"]))
    home.run_job(job("pass"))
    home.run_job(job("pass", name="other-export", run_id="other-00000000"))
    assert sorted(home.cluster.delete(RUN_ID)) == ["Experiment/pfn-0a1b2c3d-search", "PyTorchJob/pfn-0a1b2c3d-export"]
    assert home.cluster.delete(RUN_ID) == []
    for _ in range(2):
        home.cluster.delete_experiment("pfn-0a1b2c3d-search")
        home.cluster.delete_job("other-export")
    assert home.cluster.delete("other-00000000") == []


def test_a_manifest_without_a_run_id_is_a_bug_of_its_maker(home):
    manifest = job("pass")
    del manifest["metadata"]["labels"][RUN_LABEL]
    with pytest.raises(KeyError):
        home.run_job(manifest)


def test_an_experiment_that_katib_would_refuse_is_refused(home):
    manifest = experiment(["0.1", "0.2"])
    manifest["spec"]["parallelTrialCount"] = 3
    with pytest.raises((InputError, ClusterError), match=r"[pP]aral"):
        home.run_experiment(manifest)
