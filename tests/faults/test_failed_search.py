"""`--resume` of a failed search: what has finished is kept, what may pass is tried again."""

import json

import pytest

from clusters.processes import is_transient
from common.errors import PASSING_FAILURE, AccessError, ClusterError, InputError, StorageError
from tests.clusters.test_local import experiment, run
from weaver import train

pytestmark = pytest.mark.faults

TRIAL = """
import json, sys
from pathlib import Path
arguments = dict(part[2:].split("=", 1) for part in sys.argv[1:])
plan = json.loads(Path(arguments["plan"]).read_text())
with open(arguments["log"], "a") as log:
    log.write(f"{arguments['name']} {arguments['x']}\\n")
code = plan.get(arguments["name"], plan["others"])
if code == 0:
    with open(arguments["metrics"], "a") as log:
        log.write(f"2026-01-01T00:00:00Z AvgLoss={float(arguments['x']):.9f}\\n")
sys.exit(code)
"""


@pytest.fixture
def search(tmp_path):
    """Run a search whose trials end with the exit codes of a plan: (trials, what was said)."""
    program = tmp_path / "trial.py"
    program.write_text(TRIAL)

    def start(plan, **options):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        manifest = experiment(program, trials=6, parallel=1, **options)
        spec = manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]["pytorchReplicaSpecs"]
        arguments = spec["Master"]["template"]["spec"]["containers"][0]["args"]
        arguments += [
            f"--plan={tmp_path / 'plan.json'}",
            f"--log={tmp_path / 'log'}",
            "--name=${trialParameters.trialName}",
        ]
        manifest["spec"]["trialTemplate"]["trialParameters"].append(
            {"name": "trialName", "reference": "${trialSpec.Name}"}
        )
        lines = []
        (tmp_path / "log").write_text("")
        try:
            return run(tmp_path / "runs", manifest, report=lines.append).trials, lines
        except ClusterError as error:
            return str(error), lines

    start.log = lambda: [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    return start


def test_finished_trials_stay_and_only_retryable_failures_are_repeated(search):
    plan = {"search-000": 0, "search-001": 0, "search-002": 1, "others": PASSING_FAILURE}
    failure, _ = search(plan, maxFailedTrialCount=3)
    assert "failed" in failure
    first = dict(search.log())
    assert list(first) == [f"search-00{number}" for number in range(5)]

    trials, lines = search({"others": 0}, maxFailedTrialCount=3)
    again = dict(search.log())
    assert "search-000" not in again
    assert "search-001" not in again
    assert "search-002" not in again  # it would fail again
    assert again["search-003"] == first["search-003"]  # from its checkpoint, with its parameters
    assert again["search-004"] == first["search-004"]
    new = [name for name in again if name.startswith("search-2-")]
    assert len(new) == 2
    assert not {again[name] for name in new} & set(first.values())
    assert len(trials) == 6
    assert all(trial.status == "Succeeded" for trial in trials)
    assert {"search-000", "search-001", "search-003"} <= {trial.name for trial in trials}
    (line,) = [line for line in lines if "failed before" in line]
    assert "2 finished trials are kept" in line
    assert "2 that failed for a reason that may pass" in line
    assert "1 that would fail again" in line


@pytest.mark.slow
def test_a_search_that_fails_twice_keeps_its_trials_and_reports_it_each_time(search):
    plan = {"search-000": 0, "others": PASSING_FAILURE}
    search(plan, maxFailedTrialCount=2)
    failure, lines = search({"others": PASSING_FAILURE}, maxFailedTrialCount=2)
    assert "failed" in failure
    assert len([line for line in lines if "failed before" in line]) == 1
    trials, lines = search({"others": 0}, maxFailedTrialCount=2)
    assert "search-000" not in dict(search.log())
    assert len(trials) == 6
    assert len([line for line in lines if "failed before" in line]) == 1


def test_a_resumed_grid_leaves_out_a_point_that_would_fail_again(search):
    space = {"min": "1", "max": "6", "step": "1"}
    options = {"algorithm": "grid", "space": space, "maxFailedTrialCount": 1}
    failure, _ = search({"search-001": 1, "others": 0}, **options)
    assert "failed" in failure
    trials, _ = search({"others": 0}, **options)
    assert len(trials) == 5  # of six points one would fail again
    assert len({trial.parameters["x"] for trial in trials}) == 5


@pytest.mark.parametrize(
    ("code", "passes"),
    [(-9, True), (143, True), (PASSING_FAILURE, True), (1, False), (2, False), (70, False)],
)
def test_which_exit_codes_are_retryable(code, passes):
    assert is_transient(code) is passes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("SlowDown"), PASSING_FAILURE),
        (AccessError("ExpiredToken"), PASSING_FAILURE),
        (InputError("no such branch"), 2),
    ],
)
def test_the_exit_code_of_a_training_says_whether_its_failure_is_retryable(
    monkeypatch, tmp_path, capsys, error, code
):
    def fail(options):
        raise error

    monkeypatch.setattr(train, "run", fail)
    words = f"--data-config d --network-config n --data-train x --model-prefix {tmp_path}/t"
    assert train.main(words.split()) == code
    assert capsys.readouterr().err.count(str(error)) == 1
