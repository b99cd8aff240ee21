"""A trial or job that is killed starts again, as its manifest says; another failure ends it."""

import pytest

from clusters.local import LocalCluster
from clusters.processes import Replicas, wait
from common.errors import ClusterError
from tests.clusters.test_local import experiment, job, run

pytestmark = pytest.mark.faults

DIES = """
import os, sys, time
from pathlib import Path
arguments = dict(part[2:].split("=", 1) for part in sys.argv[1:])
starts = Path(arguments["starts"])
starts.mkdir(exist_ok=True)
count = len(list(starts.iterdir()))
(starts / str(os.getpid())).touch()
if "metrics" in arguments:
    with open(arguments["metrics"], "a") as log:
        for epoch in range(count + 1):  # those before the kill are written again
            log.write(f"2026-01-01T00:00:00Z AvgLoss={1 / (epoch + 1):.9f}\\n")
if count < int(arguments["deaths"]):
    how = arguments["how"]
    if how.startswith("exit"):
        sys.exit(int(how[4:]))
    os.kill(os.getpid(), int(how))
    time.sleep(10)
"""


def program_that_dies(tmp_path, *, deaths, how, policy="OnFailure", limit=3, workers=0):
    program = tmp_path / "dies.py"
    program.write_text(DIES)
    manifest = job(
        "x",
        ["python", str(program)],
        [f"--starts={tmp_path / 'starts'}", f"--deaths={deaths}", f"--how={how}"],
        workers=workers,
    )
    for replica in manifest["spec"]["pytorchReplicaSpecs"].values():
        replica["restartPolicy"] = policy
    manifest["spec"]["runPolicy"] = {"backoffLimit": limit}
    return manifest


@pytest.mark.parametrize(
    ("how", "deaths", "more", "restarts", "ends_well"),
    [
        ("9", 1, {}, 1, True),
        ("15", 2, {}, 2, True),
        ("exit143", 1, {}, 1, True),  # weaver saves, and ends so after SIGTERM
        ("9", 9, {}, 3, False),
        ("9", 1, {"limit": 0}, 0, False),
        ("9", 1, {"policy": "Never"}, 0, False),
        ("exit1", 1, {}, 0, False),
        ("exit2", 1, {}, 0, False),
        ("exit70", 1, {}, 0, False),
        ("11", 1, {}, 0, False),
    ],
)
def test_a_killed_trial_or_job_restarts_up_to_the_limit(
    tmp_path, how, deaths, more, restarts, ends_well
):
    lines = []
    replicas = Replicas(
        program_that_dies(tmp_path, deaths=deaths, how=how, **more),
        folder=tmp_path / "logs",
        root=tmp_path,
        threads=1,
        on_restart=lines.append,
    )
    replicas.start()
    code = wait(replicas, deadline=30, poll=0.01)
    assert (code == 0) is ends_well
    assert replicas.restarts == restarts
    assert len(lines) == restarts
    assert len(list((tmp_path / "starts").iterdir())) == restarts + 1
    if not ends_well:
        assert "master-0" in replicas.reason()
    if restarts > 2:
        assert "after 3 restarts" in replicas.reason()


def test_a_killed_trial_of_a_search_succeeds_with_each_epoch_once(tmp_path):
    program = tmp_path / "dies.py"
    program.write_text(DIES)
    manifest = experiment(program, trials=1, parallel=1)
    template = manifest["spec"]["trialTemplate"]["trialSpec"]
    container = template["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"]
    container[0]["args"] += [f"--starts={tmp_path / 'starts'}", "--deaths=1", "--how=9"]
    template["spec"]["pytorchReplicaSpecs"]["Master"]["restartPolicy"] = "OnFailure"
    lines = []
    result = run(tmp_path / "runs", manifest, report=lines.append)
    (trial,) = result.trials
    assert trial.status == "Succeeded"
    assert trial.metrics["AvgLoss"].latest == 0.5
    assert any("SIGKILL" in line and "resumes from its checkpoint" in line for line in lines)
    log = next((tmp_path / "runs").rglob("metrics.log")).read_text()
    assert len(log.splitlines()) == 2


def test_a_killed_job_is_reported_after_its_last_restart(tmp_path):
    manifest = program_that_dies(tmp_path, deaths=9, how="9", limit=1)
    with pytest.raises(ClusterError, match=r"SIGKILL, after 1 restarts"):
        LocalCluster(tmp_path / "runs").run_job(manifest, deadline=30, report=lambda line: None)
