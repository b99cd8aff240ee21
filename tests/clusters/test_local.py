"""What only the local backend does.

Ranks run as processes, an interrupted search resumes, and the same seed gives the same search.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

from clusters.local import LocalCluster
from clusters.local_sampling import Sampling
from clusters.local_search import LocalSearch
from common.errors import ClusterError, DeadlineError, InputError
from tests.clusters import contract
from tests.clusters.contract import METRICS_PATH

TRIAL = """
import sys, time
arguments = dict(part[2:].split("=", 1) for part in sys.argv[1:])
time.sleep(float(arguments.get("seconds", 0)))
with open(arguments["metrics"], "a") as log:
    log.write(f"2026-01-01T00:00:00Z AvgLoss={(float(arguments['x']) - 1) ** 2:.9f}\\n")
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "trial.py"
    path.write_text(TRIAL)
    return path


def job(name, command, args=(), *, workers=0, env=()):
    container = {"name": "pytorch", "command": command, "args": list(args), "env": list(env)}
    replica = {"template": {"spec": {"containers": [container]}}}
    specs = {
        "Master": {"replicas": 1, **replica},
        **({"Worker": {"replicas": workers, **replica}} if workers else {}),
    }
    return {
        "metadata": {"name": name, "labels": {"jec/run-id": "run"}},
        "spec": {"pytorchReplicaSpecs": specs},
    }


def experiment(
    program,
    name="search",
    *,
    algorithm="random",
    seed=1,
    trials=4,
    parallel=2,
    seconds=0.0,
    space=None,
    **spec,
):
    trial = job(
        "x",
        ["python", str(program)],
        [
            "--x=${trialParameters.x}",
            "--metrics=/var/log/katib/metrics.log",
            f"--seconds={seconds}",
        ],
    )
    del trial["metadata"]
    space = space or {"min": "0.01", "max": "3", "distribution": "logUniform"}
    return {
        "metadata": {"name": name, "labels": {"jec/run-id": "run"}},
        "spec": {
            "objective": {"type": "minimize", "objectiveMetricName": "AvgLoss"},
            "algorithm": {
                "algorithmName": algorithm,
                "algorithmSettings": [{"name": "random_state", "value": str(seed)}],
            },
            "parallelTrialCount": parallel,
            "maxTrialCount": trials,
            "metricsCollectorSpec": {
                "source": {"fileSystemPath": {"path": "/var/log/katib/metrics.log"}}
            },
            "parameters": [{"name": "x", "parameterType": "double", "feasibleSpace": space}],
            "trialTemplate": {
                "primaryContainerName": "pytorch",
                "trialParameters": [{"name": "x", "reference": "x"}],
                "trialSpec": trial,
            },
            **spec,
        },
    }


def run(workdir, manifest, deadline=60.0, report=lambda line: None):
    return LocalCluster(workdir).run_experiment(manifest, deadline=deadline, report=report)


def points(result):
    return [
        (trial.name, trial.parameters["x"], trial.metrics["AvgLoss"].min) for trial in result.trials
    ]


def test_ranks_get_the_environment_that_the_training_operator_sets(tmp_path):
    names = (
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "WORLD_SIZE",
        "PET_NNODES",
        "PET_NODE_RANK",
        "MINE",
        "OMP_NUM_THREADS",
    )
    code = (
        f"import os, json; open(f'{tmp_path}/' + os.environ['RANK'],"
        f" 'w').write(json.dumps([os.environ[n] for n in {names}]))"
    )
    env = [{"name": "MINE", "value": "1"}, {"name": "OMP_NUM_THREADS", "value": "1"}]
    manifest = job("ranks", ["python", "-c", code], workers=2, env=env)
    LocalCluster(tmp_path / "work").run_job(manifest, deadline=60, report=print)
    environments = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert len({values[1] for values in environments}) == 1
    assert [[values[0], *values[2:]] for values in environments] == [
        ["127.0.0.1", str(r), "3", "3", str(r), "1", "1"] for r in range(3)
    ]


def test_a_rank_that_fails_ends_the_others_and_is_named(tmp_path):
    code = (
        "import os, sys, time; sys.exit('no luck') if os.environ['RANK'] == '1' else time.sleep(60)"
    )
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"(?s)worker-0 .* 1\b.*no luck"):
        LocalCluster(tmp_path).run_job(
            job("ranks", ["python", "-c", code], workers=1), deadline=60, report=print
        )
    assert time.monotonic() - start < 30


def test_a_job_is_stopped_at_its_deadline(tmp_path):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    lines = []
    with pytest.raises(DeadlineError, match=r"\blong\b.* 1 s"):
        LocalCluster(tmp_path).run_job(
            job("long", ["python", "-c", code]), deadline=1, report=lines.append
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[0]), 0)


@pytest.mark.parametrize("algorithm", ["random", "sobol", "grid"])
def test_a_seed_gives_the_same_search_with_any_number_of_parallel_trials(
    program, tmp_path, algorithm
):
    space = {"min": "0.5", "max": "3", "step": "0.5"} if algorithm == "grid" else None
    result = run(tmp_path / "one", experiment(program, algorithm=algorithm, space=space))
    other_result = run(
        tmp_path / "other", experiment(program, algorithm=algorithm, space=space, parallel=1)
    )
    assert points(result) == points(other_result)
    assert result.optimal == other_result.optimal
    if algorithm != "grid":
        assert points(
            run(tmp_path / "seed", experiment(program, algorithm=algorithm, seed=2))
        ) != points(result)


def test_a_logarithmic_range_is_drawn_logarithmically(program):
    """Uniformly, one draw in thirty of 0.01 ... 3 would lie below 0.1; logarithmically 40 % do.

    Sobol points are spread evenly.
    """
    sampling = Sampling(experiment(program, algorithm="sobol", trials=64)["spec"])
    values = [point["x"] for point in sampling.points]
    assert 0.3 < sum(x < 0.1 for x in values) / len(values) < 0.5


def test_a_grid_ends_when_it_is_exhausted(program, tmp_path):
    result = run(
        tmp_path,
        experiment(
            program, algorithm="grid", trials=30, space={"min": "0.5", "max": "1.5", "step": "0.5"}
        ),
    )
    assert [point[1] for point in points(result)] == ["0.5", "1", "1.5"]
    assert result.trials[1].name == result.optimal


def test_tpe_and_cmaes_run_and_hyperband_is_refused(program, tmp_path):
    for algorithm in ("tpe", "cmaes"):
        result = run(
            tmp_path / algorithm, experiment(program, algorithm=algorithm, trials=5, parallel=1)
        )
        assert len({point[1] for point in points(result)}) == 5
    with pytest.raises(InputError, match="algorithm 'hyperband'"):
        run(tmp_path / "other", experiment(program, algorithm="hyperband"))


def test_an_interrupted_search_resumes_with_the_same_trials(program, tmp_path):
    """A search is interrupted while a trial runs.

    It starts again under its name, finished ones stay.
    """
    whole = run(tmp_path / "whole", experiment(program, trials=5))
    manifest = experiment(program, trials=5)

    def interrupt(line: str) -> None:
        if "-002 started" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", manifest, report=interrupt)
    lines = []
    result = run(tmp_path / "cut", manifest, report=lines.append)
    assert any("resumed" in line for line in lines)
    assert points(result) == points(whole)


def test_a_trial_cut_off_while_it_was_proposed_does_not_count(program, tmp_path):
    whole = run(tmp_path / "whole", experiment(program))
    search = LocalSearch(
        experiment(program),
        folder=tmp_path / "run" / "local" / "search",
        root=tmp_path,
        report=print,
    )
    search.study._study.ask()  # as a kill between two writes leaves it
    result = run(tmp_path, experiment(program), deadline=20)
    assert points(result) == points(whole)


def test_a_failed_search_is_run_again(program, tmp_path):
    good = program.read_text()
    program.write_text("import sys; sys.exit('broken')")
    with pytest.raises(ClusterError, match=r"(?s)failed.*x broken"):
        # One at a time: an interrupted trial resumes under its old name.
        run(tmp_path, experiment(program, maxFailedTrialCount=2, parallel=1))
    program.write_text(good)
    lines = []
    result = run(tmp_path, experiment(program, maxFailedTrialCount=2), report=lines.append)
    assert len(result.trials) == 4
    assert any("failed before" in line for line in lines)
    assert all(trial.name.startswith("search-2-") for trial in result.trials), (
        "new names: the old folders hold markers of failure"
    )


def test_children_of_a_dead_process_are_ended_too(tmp_path):
    code = (
        "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True);"
        " sys.exit('leader gone')"
    )
    with pytest.raises(ClusterError, match="leader gone") as error_info:
        LocalCluster(tmp_path).run_job(
            job("left", ["python", "-c", code]), deadline=30, report=print
        )
    pid = next(int(line) for line in str(error_info.value).splitlines() if line.isdigit())
    end = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}/exe") and time.monotonic() < end:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}/exe")


def test_the_goal_ends_the_search(program, tmp_path):
    manifest = experiment(program, trials=30, parallel=1)
    manifest["spec"]["objective"]["goal"] = 0.9
    result = run(tmp_path, manifest)
    assert len(result.trials) < 30
    assert points(result)[-1][2] <= 0.9


def test_an_interrupted_search_leaves_no_process(program, tmp_path):
    manifest = experiment(program, seconds=30.0)
    search = LocalSearch(manifest, folder=tmp_path, root=tmp_path, report=lambda line: None)

    def interrupt():
        while len(search.running) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), 2)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        search.run(60)
    assert [
        process.returncode for trial in search.running for process in trial.job.processes.values()
    ] == [-15, -15]


def test_a_secret_comes_from_this_machines_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-here")
    reference = {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": {"name": "s3-secret", "key": "AWS_SECRET_ACCESS_KEY"}},
    }
    code = "import os, sys; sys.exit(os.environ['AWS_SECRET_ACCESS_KEY'] != 'from-here')"
    LocalCluster(tmp_path).run_job(
        job("secret", ["python", "-c", code], env=[reference]), deadline=30, report=print
    )


def test_delete_by_run_id_works_twice(program, tmp_path):
    run(tmp_path, experiment(program, trials=1, parallel=1))
    LocalCluster(tmp_path).run_job(
        job("small", ["python", "-c", "pass"]), deadline=30, report=print
    )
    assert sorted(LocalCluster(tmp_path).delete("run")) == ["Experiment/search", "PyTorchJob/small"]
    assert LocalCluster(tmp_path).delete("run") == []


STOPPABLE = """
import sys, time
from pathlib import Path
from weaver.fit.stop import StopSignal
metrics, checkpoint = sys.argv[1], Path(sys.argv[2])
if checkpoint.exists():
    with open(metrics, "w") as log:
        log.write("2026-01-01T00:00:00Z AvgLoss=0.1\\n")
    sys.exit(0)
with StopSignal() as stop:
    Path(sys.argv[3]).touch()
    while not stop.signal_number:
        time.sleep(0.02)
    # A second signal now ends the program before it has written anything.
    time.sleep(0.5)
    with checkpoint.open("a") as file:
        file.write("saved\\n")
sys.exit(stop.exit_code)
"""


def test_a_stopped_trial_gets_one_signal_saves_once_and_resumes(tmp_path):
    """The pod's shell passes a signal on, and on one machine it goes to a whole session."""
    checkpoint, running = tmp_path / "checkpoint", tmp_path / "running"
    program = ["python", "-c", STOPPABLE, METRICS_PATH, str(checkpoint), str(running)]
    manifest = contract.experiment(["0.1"])
    specs = manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]["pytorchReplicaSpecs"]
    specs["Master"]["template"] = contract.pod([*program, "${trialParameters.losses}"])
    assert specs["Master"]["template"]["spec"]["containers"][0]["command"] == ["sh", "-c"]

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not running.exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    cluster = LocalCluster(tmp_path / "runs")
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.run_experiment(manifest, deadline=60, report=lambda line: None)
    thread.join()
    assert checkpoint.read_text() == "saved\n"
    result = cluster.run_experiment(manifest, deadline=60, report=lambda line: None)
    assert result.trials[0].metrics["AvgLoss"].min == 0.1
