"""`--list` and `--prune`: which runs are shown, which are removed, and which never are."""

from __future__ import annotations

import datetime
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import pipeline
from clusters import orphans, run_lock
from clusters.run_lock import RunLock
from common import storage
from common.errors import InputError
from common.measurements import Interval
from common.records import GoldenAnswers, ServiceRecord, StatusRecord, SummaryRecord
from operations.own_runs import own_run, remove_run


def make_run(place, run_id: str, *, days: float = 0.0, state: str = "succeeded", gain=4.0) -> str:
    """A run whose records changed so many days ago; returns its address."""
    folder = storage.join(str(place), run_id)
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
    time = when.isoformat(timespec="seconds")
    storage.write_json(storage.join(folder, "run.json"), {"run_id": run_id, "config": {}})
    step_state = "running" if state == "running" else "done"
    status = StatusRecord(step="deploy", state=step_state, time=time)
    storage.write_json(storage.join(folder, "status.json"), status.as_json())
    if state != "running":
        summary = SummaryRecord(
            run_id=run_id,
            run=folder,
            state=state,
            step="deploy",
            reason="",
            time=time,
            steps={},
            gain_percent=Interval(value=gain, low=gain - 1, high=gain + 1),
        )
        storage.write_json(storage.join(folder, "summary.json"), summary.as_json())
    storage.write_bytes(storage.join(folder, "model", "model.onnx"), bytes(5000))
    return folder


def serve(folder: str, kind: str) -> None:
    record = ServiceRecord(
        name="pfn",
        url="http://127.0.0.1:1",
        kind=kind,
        details={},
        golden=GoldenAnswers(max_difference={}, tolerance=1e-5, answer={}, seconds=0.1),
        others={},
    )
    storage.write_json(storage.join(folder, "service.json"), record.as_json())


def command(place, *flags: str) -> int:
    """Run the command on the runs of a folder or an address."""
    where = ["--output", str(place)]
    if not storage.is_local(str(place)):
        where = ["--s3-bucket", str(place)]
    try:
        return pipeline.main([*flags, *where])
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture
def stdin_is_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def test_the_list_shows_each_run_newest_first(tmp_path, capsys):
    make_run(tmp_path, "pfn-00000001", days=3)
    make_run(tmp_path, "pfn-00000002", days=1, state="not deployed", gain=-0.5)
    make_run(tmp_path, "pfn-00000003", days=2, state="running")
    serve(make_run(tmp_path, "pfn-00000004", days=4), "kserve")
    (tmp_path / "latest").symlink_to("pfn-00000001")
    (tmp_path / "cache" / "00ff").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no run")
    assert command(tmp_path, "--list") == 0
    head, *rows, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "changed", "size", "served", "gain", "state"]
    assert [row.split()[0][-1] for row in rows] == ["2", "3", "1", "4"]
    assert "-0.5 % [-1.5, 0.5]" in rows[0]
    assert rows[0].endswith("not deployed")
    assert rows[1].endswith("stopped in deploy"), "no process of it lives"
    assert "  yes  " in rows[3]
    assert "  no  " in rows[2]
    assert " kB " in rows[0]
    assert total.startswith("4 runs, 2")
    assert command(tmp_path, "--list", "--json") == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["run_id"][-1], run["served"]) for run in runs] == [
        ("2", False),
        ("3", False),
        ("1", False),
        ("4", True),
    ]


def test_broken_runs_are_listed_as_broken(tmp_path, capsys):
    good = make_run(tmp_path, "pfn-00000001", days=1)
    for number, name in enumerate(("status.json", "summary.json"), 2):
        folder = make_run(tmp_path, f"pfn-0000000{number}")
        (Path(folder) / name).write_bytes(b"\x00 garbage")
    assert command(tmp_path, "--list") == 0
    *_, last, total = capsys.readouterr().out.splitlines()
    assert last.startswith(Path(good).name)
    assert total.startswith("3 runs")
    command(tmp_path, "--list")
    assert capsys.readouterr().out.count("broken: ") == 2


def test_the_processes_are_listed_once_for_many_runs(tmp_path, capsys, monkeypatch):
    for number in range(40):
        make_run(tmp_path, f"pfn-000000{number:02}")
    looks = []
    monkeypatch.setattr(psutil, "process_iter", lambda *_: looks.append(1) or [])
    assert command(tmp_path, "--list") == 0
    assert "40 runs" in capsys.readouterr().out
    assert len(looks) == 1


def test_without_runs_or_a_folder(tmp_path, capsys):
    assert command(tmp_path, "--list") == 0
    assert "no runs in" in capsys.readouterr().out
    assert command(tmp_path / "missing", "--list") == 2


def test_prune_removes_old_runs(tmp_path, capsys):
    old, new = make_run(tmp_path, "pfn-00000001", days=40), make_run(tmp_path, "pfn-00000002")
    (tmp_path / "latest").symlink_to("pfn-00000001")
    assert command(tmp_path, "--prune", "--older-than", "30d", "--yes") == 0
    assert not Path(old).exists()
    assert not (tmp_path / "latest").is_symlink(), "the link has lost its run"
    assert Path(new, "model", "model.onnx").exists()
    assert "removed 1 runs" in capsys.readouterr().out


def test_prune_removes_runs_that_are_both_old_and_large(tmp_path):
    make_run(tmp_path, "pfn-00000001", days=2)
    large = make_run(tmp_path, "pfn-00000002", days=2)
    young = make_run(tmp_path, "pfn-00000003")
    for folder in (large, young):
        storage.write_bytes(storage.join(folder, "trials", "best.pt"), bytes(2_000_000))
    flags = ("--prune", "--older-than", "1d", "--larger-than", "1M", "--yes")
    assert command(tmp_path, *flags) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pfn-00000001", "pfn-00000003"}


def test_prune_keeps_served_and_active_runs(tmp_path, capsys):
    kept_runs = {
        "pfn-00000001": lambda folder: serve(folder, "kserve"),
        "pfn-00000002": lambda folder: RunLock("pfn-00000002", Path(folder) / "local").take(print),
        "pfn-00000003": lambda folder: (Path(folder) / "service.json").write_text("garbage"),
        # It may run on a cluster that shares the folder.
        "pfn-00000005": lambda folder: (Path(folder) / "summary.json").unlink(),
    }
    for run_id, keep in kept_runs.items():
        keep(make_run(tmp_path, run_id, days=40))
    local_folder = Path(make_run(tmp_path, "pfn-00000006", days=40, state="running"), "local")
    local_folder.mkdir()
    (local_folder / run_lock.OWNER).write_text(json.dumps({"pid": 1, "started": "long ago"}))
    serve(make_run(tmp_path, "pfn-00000004", days=40), "triton")  # whose server has ended
    assert command(tmp_path, "--prune", "--older-than", "1d", "--yes") == 0
    assert {path.name for path in tmp_path.iterdir()} == set(kept_runs)
    out = capsys.readouterr().out
    assert all(f"kept: {run_id}" in out for run_id in kept_runs)


def test_prune_keeps_a_run_with_a_living_process(tmp_path):
    serve(make_run(tmp_path, "pfn-00000001", days=40), "triton")
    environment = {
        **os.environ,
        orphans.RUN_VARIABLE: "pfn-00000001",
        orphans.FOLDER_VARIABLE: str(tmp_path.resolve()),
    }
    wait = [sys.executable, "-c", "print(flush=True); input()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(wait, env=environment, **pipes) as server:
        assert server.stdout is not None
        server.stdout.readline()
        assert command(tmp_path, "--prune", "--older-than", "1d", "--yes") == 0
        assert (tmp_path / "pfn-00000001" / "run.json").exists()
        server.communicate(b"\n", timeout=30)
    assert command(tmp_path, "--prune", "--older-than", "1d", "--yes") == 0
    assert not (tmp_path / "pfn-00000001").exists()


def test_prune_removes_nothing_but_runs(tmp_path):
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    make_run(elsewhere, "pfn-00000009", days=40)
    own = make_run(runs, "pfn-00000001", days=40)
    # A run elsewhere behind a link, a link inside a run, a copy under another name, other folders.
    (runs / "pfn-00000009").symlink_to(elsewhere / "pfn-00000009")
    (Path(own) / "data").symlink_to(elsewhere)
    Path(make_run(runs, "pfn-00000002", days=40)).rename(runs / "my-favourite")
    (runs / "cache").mkdir()
    (runs / "cache" / "jets.npy").write_bytes(bytes(10))
    stray = runs / "stray"
    stray.mkdir()
    time = "2020-01-01T00:00:00+00:00"
    (stray / "status.json").write_text(json.dumps(StatusRecord(time=time).as_json()))
    assert command(runs, "--prune", "--older-than", "1d", "--yes") == 0
    remaining = {folder.name for folder in runs.iterdir()}
    assert remaining == {"pfn-00000009", "my-favourite", "cache", "stray"}
    assert (elsewhere / "pfn-00000009" / "model" / "model.onnx").exists()


@pytest.mark.usefixtures("stdin_is_no_terminal")
def test_prune_asks_and_removes_nothing_without_an_answer(tmp_path, capsys):
    folder = make_run(tmp_path, "pfn-00000001", days=40)
    assert command(tmp_path, "--prune", "--older-than", "1d") == 2
    assert Path(folder, "run.json").exists()
    output = capsys.readouterr()
    assert "pfn-00000001" in output.out, "it says what it would remove"
    assert "--yes" in output.err


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--prune", "--yes"], "--older-than"),
        (["--prune", "--older-than", "30"], "30d"),
        (["--prune", "--older-than", "d"], "30d"),
        (["--prune", "--larger-than", "1Q"], "1G"),
        (["--older-than", "30d"], "--prune"),
        (["--list", "--larger-than", "1G"], "--prune"),
        (["--list", "--prune", "--older-than", "1d"], "two commands"),
        (["--list", "--yes"], "--prune"),
    ],
)
def test_wrong_flags_are_errors_of_one_line(tmp_path, capsys, flags, word):
    folder = make_run(tmp_path, "pfn-00000001", days=40)
    assert command(tmp_path, *flags) == 2
    assert word in capsys.readouterr().err
    assert Path(folder).exists()


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "/tmp", "a/b", "pfn-00000001/..", "latest", "missing", "copy", "none"]
)
def test_only_a_run_below_the_output_is_removed(tmp_path, run_id):
    output = tmp_path / "runs"
    make_run(output, "pfn-00000001")
    (output / "latest").symlink_to("pfn-00000001")
    Path(make_run(output, "pfn-00000002")).rename(output / "copy")
    (output / "none").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError):
        remove_run(output, run_id)
    assert sorted(tmp_path.rglob("*")) == before
    assert own_run(output, "pfn-00000001") == output.resolve() / "pfn-00000001"


def test_runs_on_s3(s3_bucket, capsys):
    place = f"{s3_bucket}/runs"
    make_run(place, "pfn-00000001", days=40)
    make_run(place, "pfn-00000002", days=1)
    make_run(place, "pfn-00000003", days=40, state="running")
    serve(make_run(place, "pfn-00000004", days=40), "kserve")
    resumed_run = make_run(place, "pfn-00000005", days=40)
    again = StatusRecord(step="search", state="running", time="2020-11-01T00:00:00+00:00")
    summary = storage.read_json(storage.join(resumed_run, "summary.json"))
    summary["time"] = "2020-10-01T00:00:00+00:00"
    storage.write_json(storage.join(resumed_run, "summary.json"), summary)
    storage.write_json(storage.join(resumed_run, "status.json"), again.as_json())
    storage.write_bytes(f"{place}/cache/00ff/jets.npy", bytes(10))
    assert command(place, "--list") == 0
    rows = capsys.readouterr().out.splitlines()[1:-1]
    assert rows[0].startswith("pfn-00000002 ")
    assert len(rows) == 5
    assert command(place, "--prune", "--older-than", "30d", "--yes") == 0
    assert not storage.entries(f"{place}/pfn-00000001")
    for name in ("pfn-00000002", "pfn-00000003", "pfn-00000004", "pfn-00000005", "cache/00ff"):
        assert storage.entries(f"{place}/{name}")
