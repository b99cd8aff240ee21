"""The record of a local search in SQLite."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from clusters.early_stopping import StopRule
from clusters.local_study import Proposal, Study

MADE = {"parameters": {"x": "0.5"}, "started": "2026-01-01T00:00:00+00:00"}
ENDED = {
    "status": "Succeeded",
    "reason": "",
    "metrics": {"AvgLoss": {"min": 0.1, "max": 0.3, "latest": 0.2}},
    "finished": "2026-01-01T00:01:00+00:00",
}


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        pytest.param({}, None, id="before early stopping"),
        pytest.param({"rule": None}, None, id="no rule"),
        pytest.param(
            {"rule": {"value": 0.1, "start_step": 4}}, StopRule(value=0.1, start_step=4), id="rule"
        ),
    ],
)
def test_a_study_of_an_earlier_version_is_read(tmp_path, record, rule):
    """The names and records here are what earlier versions wrote: a search of theirs resumes."""
    study_of_file = optuna.create_study(
        storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="search", direction="minimize"
    )
    trial_of_study = study_of_file.ask()
    trial_of_study.set_user_attr("made", {"name": "search-000", **MADE, **record})
    trial_of_study.set_user_attr("ended", ENDED)
    study_of_file.tell(trial_of_study, 0.1)
    interrupted = study_of_file.ask()
    interrupted.set_user_attr("made", {"name": "search-001", **MADE, **record})
    study_of_file.tell(study_of_file.ask(), state=TrialState.FAIL)  # was never made whole

    spec = {"objective": {"type": "minimize"}, "maxTrialCount": 4, "maxFailedTrialCount": 4}
    study = Study({"metadata": {"name": "search"}, "spec": spec}, tmp_path, print)
    assert study.count() == 2
    assert [(trial.name, trial.metrics["AvgLoss"].latest) for trial in study.ended_trials()] == [
        ("search-000", 0.2)
    ]
    assert study.interrupted_trials() == [
        Proposal(number=1, name="search-001", parameters={"x": "0.5"}, rule=rule)
    ]


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no Linux")
def test_a_search_that_has_ended_leaves_no_descriptor_open(tmp_path):
    """Optuna's own objects refer to each other, so that the garbage collection closes them late."""
    spec = {"objective": {"type": "minimize"}, "maxTrialCount": 4, "maxFailedTrialCount": 4}

    def open_files():
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return [link for link in links if link.startswith(str(tmp_path))]

    gc.disable()
    try:
        study = Study({"metadata": {"name": "search"}, "spec": spec}, tmp_path, print)
        assert study.count() == 0
        assert open_files()
        study.close()
        assert open_files() == []
    finally:
        gc.enable()
