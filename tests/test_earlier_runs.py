"""Runs and checkpoints made by earlier versions still resume, serve, run again and go away."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from common import storage
from common.config import RunConfig, with_types
from serving.client import golden_check
from tests.test_local_run import ROOT, pipeline, processes_of

ARCHIVE = Path(__file__).parent / "earlier_runs" / "5949c5d.tar.xz"
MARKER = "@FOLDER@"  # stands for the folder in which the runs were made
ENDED, STOPPED = "pfn-regressor-open-d7106cc4", "pfn-regressor-open-e9fd14ab"


@pytest.fixture
def runs(tmp_path) -> Path:
    """The folder of the earlier runs, with the paths of this machine."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.rglob("*"):
        if path.is_file() and MARKER.encode() in path.read_bytes():
            _fill_in(path, str(tmp_path))
    for run_json in tmp_path.glob("runs/*/run.json"):
        _renew_fingerprints(run_json, tmp_path / "jets")
    return tmp_path / "runs"


def _fill_in(path: Path, folder: str) -> None:
    """Replace the marker in a text file or a checkpoint."""
    if path.suffix == ".pt":
        torch.save(_with_folder(torch.load(path, weights_only=False), folder), path)
    else:
        path.write_bytes(path.read_bytes().replace(MARKER.encode(), folder.encode()))


def _with_folder(value: Any, folder: str) -> Any:
    if isinstance(value, str):
        return value.replace(MARKER, folder)
    if isinstance(value, dict):
        return {key: _with_folder(part, folder) for key, part in value.items()}
    return value


def _renew_fingerprints(run_json: Path, jets: Path) -> None:
    """A fingerprint holds paths and times of the files, which have changed with the folder."""
    record = json.loads(run_json.read_text())
    for split, data in record["data"].items():
        data["fingerprint"] = storage.fingerprint(storage.entries(str(jets / split)))
    run_json.write_text(json.dumps(record))


def status(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


@pytest.mark.slow
def test_a_stopped_run_resumes_from_its_checkpoints(runs):
    run = runs / STOPPED
    before = {path: path.read_bytes() for path in run.glob("trials/*-000/checkpoint.pt")}
    stopped_at = len(json.loads(next(run.glob("trials/*-001/history.json")).read_text()))
    assert 0 < stopped_at < 60
    answer = pipeline("--output", runs, "--resume", STOPPED)
    assert status(run) == "done"
    assert f"{STOPPED}-001: resumed" in answer.stdout
    assert f"{STOPPED}-000 started" not in answer.stdout
    assert {path: path.read_bytes() for path in before} == before
    for history in run.glob("trials/*/history.json"):
        assert [epoch["epoch"] for epoch in json.loads(history.read_text())] == list(range(60))
    assert json.loads((run / "service.json").read_text())["name"] == "pfn-regressor-open"
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_an_ended_run_serves(runs):
    command = ["pipeline.py", "--output", str(runs), "--resume", ENDED, "--serve"]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        text = ""
        for line in process.stdout:
            text += line
            if "Ctrl-C ends it" in line:
                break
        url = re.search(r"served by \S+ at (http://\S+)", text)[1]
        for name in ("pfn-regressor-open", "pfn-regressor-open-raw"):
            golden_check(url, name, str(runs / ENDED / "golden" / name), 30)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert processes_of(runs) == []


@pytest.mark.slow
def test_an_ended_run_takes_more_trials(runs):
    pipeline("--output", runs, "--more-trials", "1", ENDED)
    search = json.loads((runs / ENDED / "search.json").read_text())
    assert [trial["status"] for trial in search["trials"]] == ["Succeeded"] * 3


@pytest.mark.slow
def test_an_ended_run_runs_again(runs):
    answer = pipeline("--output", runs, "--rerun", ENDED)
    newest = (runs / "latest").resolve().name
    assert newest not in (ENDED, STOPPED)
    assert status(runs / newest) == "done", answer.stdout
    now, then = (
        with_types(json.loads((runs / name / "run.json").read_text())["config"])
        for name in (newest, ENDED)
    )
    assert then.pop("webhook") == "none"  # no parameter any more
    assert now == {**RunConfig().parameters(), **then, "run_id": newest}


@pytest.mark.slow
def test_an_earlier_run_is_removed(runs):
    pipeline("--output", runs, "--status", ENDED)
    pipeline("--output", runs, "--down", ENDED, "--yes", "--storage")
    assert not (runs / ENDED).exists()
    assert (runs / STOPPED).exists()
