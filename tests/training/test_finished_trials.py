"""Which trials count, by what they left in the storage of a run."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from common import storage
from common.config import RunConfig
from common.records import SearchRecord
from common.run import Run
from tests.training.trials_in_storage import PATIENCE, write_trial
from training.finished_trials import finished_trials

ARCHIVE = Path(__file__).parents[1] / "earlier_runs" / "5949c5d.tar.xz"
ENDED, STOPPED = "pfn-regressor-open-d7106cc4", "pfn-regressor-open-e9fd14ab"
SPACE = [
    {"name": "start-lr", "type": "double", "min": 1e-5, "max": 1e-2},
    {"name": "fc-dim", "type": "discrete", "list": [50, 100]},
    {"name": "quantiles", "type": "categorical", "list": ["(0.16, 0.5, 0.84)", "none"]},
    {"name": "flag", "type": "categorical", "list": ["1", "true"]},
]
POINT = {"start-lr": "5e-05", "fc-dim": "100", "quantiles": "(0.16, 0.5, 0.84)", "flag": "true"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        config=RunConfig(
            s3_bucket=str(tmp_path),
            run_id="pfn-00000000",
            search_space=json.dumps(SPACE),
            num_epochs=3,
        )
    )


def names(run: Run) -> list[str]:
    return [trial.name for trial in finished_trials(run, print)]


def test_a_trials_record_equals_katibs(run):
    write_trial(run, "pfn-00000000-b", POINT, [0.5, 0.25, 0.375], start=60)
    write_trial(run, "pfn-00000000-a", POINT | {"flag": "1"}, [0.5, 0.4, 0.3], start=120)
    first, second = finished_trials(run, print)
    assert (first.name, first.status, first.parameters) == ("pfn-00000000-b", "Succeeded", POINT)
    assert second.parameters["flag"] == "1"
    loss = first.metrics["AvgLoss"]
    assert (loss.min, loss.max, loss.latest) == (0.25, 0.5, 0.375)
    assert first.metrics["learning_rate"].latest == 0.001
    assert (first.started, first.finished) == ("2026-01-01T00:01:00+00:00", "2026-01-01T00:01:30Z")


def test_the_trials_of_real_runs_are_those_of_their_records(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    ended_run = Run.load(str(tmp_path / "runs" / ENDED))
    record = SearchRecord.load(ended_run.folder.search)
    trials = {trial.name: trial for trial in finished_trials(ended_run, print)}
    assert list(trials) == [trial.name for trial in record.trials]
    for trial in record.trials:
        assert trials[trial.name].parameters == trial.parameters
        assert trials[trial.name].metrics == trial.metrics
    # Ctrl-C ended it in its second trial
    assert names(Run.load(str(tmp_path / "runs" / STOPPED))) == [f"{STOPPED}-000"]


@pytest.mark.parametrize("epochs", range(3))
def test_an_interrupted_trial_does_not_count(run, epochs):
    write_trial(run, "pfn-00000000-a", POINT, [0.5, 0.25, 0.375][:epochs])
    assert names(run) == []


def test_patience_ends_a_trial_before_its_last_epoch(run):
    losses = [0.5] + [0.6] * PATIENCE
    write_trial(run, "pfn-00000000-a", POINT, losses, num_epochs=50, patience=PATIENCE)
    write_trial(run, "pfn-00000000-b", POINT, losses[:-1], num_epochs=50, patience=PATIENCE)
    assert names(run) == ["pfn-00000000-a"]


@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("best.pt", "missing"),
        *[
            (file, how)
            for file in ("history.json", "options.json", "metrics.log")
            for how in ("missing", "of the epoch before", "cut off")
        ],
    ],
)
def test_files_of_a_trial_that_do_not_belong_together_do_not_count(run, file, how):
    """A kill between two writes leaves the later ones as the epoch before wrote them."""
    place = run.path("trials", "pfn-00000000-a", file)
    write_trial(run, "pfn-00000000-a", POINT, [0.5, 0.25])
    before = storage.read_bytes(place)
    write_trial(run, "pfn-00000000-a", POINT, [0.5, 0.25, 0.125])
    assert names(run) == ["pfn-00000000-a"]
    whole = storage.read_bytes(place)
    if how == "missing":
        storage.delete(place)
    else:
        content = before if how == "of the epoch before" else whole[: len(whole) // 2]
        storage.write_bytes(place, content)
    lines: list[str] = []
    assert finished_trials(run, lines.append) == []
    is_no_json = how == "cut off" and file.endswith(".json")
    assert ["pfn-00000000-a" in line for line in lines] == [True] * is_no_json


def test_a_trial_that_is_marked_as_failed_does_not_count(run):
    write_trial(run, "pfn-00000000-a", POINT, [0.5, 0.25, 0.125])
    storage.write_text(run.path("trials", "pfn-00000000-a", "failed"), "no finite loss\n")
    assert names(run) == []


@pytest.mark.parametrize("change", [{"fc-dim": "70"}, {"start-lr": "0.5"}, {"quantiles": "x"}])
def test_a_trial_of_another_search_space_does_not_count(run, change):
    write_trial(run, "pfn-00000000-a", POINT | change, [0.5, 0.25, 0.125])
    assert names(run) == []


def test_a_run_without_a_trial_has_none(run):
    assert names(run) == []
