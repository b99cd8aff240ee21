"""`--down` removes one run below --output, and nothing else."""

import json
import os
import subprocess
import sys

import pytest

import pipeline
from clusters import orphans, run_lock
from clusters.local import LocalCluster
from common import pids, storage
from serving import server_folder
from serving.server_processes import IDENTITY

pytestmark = pytest.mark.faults

RUN_ID = "pfn-0a1b2c3d"
OTHER = "pfn-99999999"


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of runs with two runs, a sample, and a folder outside with something precious."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    runs = tmp_path / "runs"
    for run_id in (RUN_ID, OTHER):
        storage.write_json(str(runs / run_id / "status.json"), {"step": "search", "state": "done"})
    (runs / "latest").symlink_to(RUN_ID)
    (runs / "samples").mkdir()
    (runs / "samples" / "a.root").write_text("jets")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("thesis")
    return runs


def down(run_id, *flags):
    return pipeline.main(["--down", str(run_id), "--yes", "--output", "runs", *flags])


def content(folder):
    return {path: path.lstat().st_ino for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../runs",
        "../outside",
        "samples",
        "no-such",
        "/",
        "/tmp",
        "OUTSIDE",
        "pfn-0a1b2c3d/../..",
        "pfn-0a1b2c3d/status.json",
        "linked-out",
        "linked-run",
        "copied-run",
        "*",
        "latest/..",
        "~",
    ],
)
def test_folders_that_are_no_runs_are_not_removed(runs, tmp_path, capsys, name):
    (runs / "linked-out").symlink_to(tmp_path / "outside")
    storage.write_json(str(tmp_path / "elsewhere" / OTHER / "status.json"), {})
    (runs / "linked-run").symlink_to(tmp_path / "elsewhere" / OTHER)
    storage.write_json(str(runs / "copied-run" / "run.json"), {"run_id": RUN_ID, "config": {}})
    before = content(tmp_path)
    run_id = str(tmp_path / "outside") if name == "OUTSIDE" else name
    assert down(run_id, "--storage") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert run_id in err
    assert content(tmp_path) == before


@pytest.mark.parametrize("record", ["status.json", "run.json", "local/lock"])
@pytest.mark.parametrize("text", ["", "{", "[]", '{"run_id": 1}', '{"run_id": "pfn-0a1b2c3d"}'])
def test_a_run_with_damaged_records_is_removed_by_its_name_and_never_pruned(
    runs, capsys, record, text
):
    for path in (runs / RUN_ID).iterdir():
        path.unlink()
    file = runs / RUN_ID / record
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    os.utime(runs / RUN_ID, (0, 0))
    prune = ["--prune", "--older-than", "1d", "--yes", "--output", "runs"]
    assert pipeline.main(prune) == 0
    assert file.read_text() == text
    assert down(RUN_ID, "--storage") == 0
    assert not (runs / RUN_ID).exists()


@pytest.mark.parametrize("name", [RUN_ID, "latest", f"runs/{RUN_ID}", f"runs/{RUN_ID}/", "PATH"])
def test_a_run_is_removed_by_any_of_its_names(runs, tmp_path, capsys, name):
    run_id = str(runs / RUN_ID) if name == "PATH" else name
    assert down(run_id, "--storage") == 0
    assert not (runs / RUN_ID).exists()
    assert not (runs / "latest").is_symlink()
    assert (runs / OTHER / "status.json").exists()
    assert (runs / "samples" / "a.root").exists()
    # it works twice, while another name is still refused
    assert down(RUN_ID, "--storage") == 0
    assert down("pfn-no-such", "--storage") == 2


def test_links_in_a_run_are_not_followed(runs, tmp_path):
    outside = tmp_path / "outside"
    local = runs / RUN_ID / "local"
    (local / "services").mkdir(parents=True)
    (local / "services" / "model").symlink_to(outside)
    (local / "jobs").symlink_to(outside)
    (runs / RUN_ID / "trials").symlink_to(outside)
    assert down(RUN_ID) == 0
    assert (outside / "precious").read_text() == "thesis"
    assert down(RUN_ID, "--storage") == 0
    assert (outside / "precious").read_text() == "thesis"
    assert not (runs / RUN_ID).exists()


@pytest.fixture
def start_process():
    """Start a process with these variables; all are killed at the end."""
    processes = []

    def start(**variables):
        command = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"]
        process = subprocess.Popen(
            command,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout.readline() == "up\n"
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


class Servers:
    """Record the pids of the servers to stop."""

    def __init__(self):
        self.pids = []

    def stop(self, pid):
        self.pids.append(pid)


@pytest.mark.parametrize(
    ("run", "start_time", "is_stopped"),
    [
        (RUN_ID, "true", True),
        (RUN_ID, "missing", True),  # a record of an earlier version
        (RUN_ID, "false", False),
        (OTHER, "true", False),
        (OTHER, "missing", False),
    ],
)
def test_only_a_server_of_this_run_is_stopped(runs, start_process, run, start_time, is_stopped):
    marks = {orphans.RUN_VARIABLE: run, orphans.FOLDER_VARIABLE: str(runs), IDENTITY: "x"}
    process = start_process(**marks)
    record = {"pid": process.pid, "started": pids.start_time(process.pid)}
    if start_time == "missing":
        del record["started"]
    elif start_time == "false":
        record["started"] = "12345.6"
    place = runs / RUN_ID / "local" / "services" / "model"
    storage.write_json(str(place / "service.json"), record)
    servers = Servers()
    LocalCluster(runs, servers=servers).delete(RUN_ID)
    assert servers.pids == ([process.pid] if is_stopped else [])


def test_shared_memory_of_a_killed_server_is_removed(runs):
    folder = server_folder.create()
    region = server_folder.SHARED_MEMORY / f"{folder.identity}-region"
    region.write_text("")
    folder.leave()
    (runs / RUN_ID / "local" / "services" / "model").mkdir(parents=True)
    assert down(RUN_ID) == 0
    assert not region.exists()
    assert not folder.path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"pid": "a"}', '{"pid": -1}', "{}"])
def test_a_damaged_record_of_a_server_stops_nothing(runs, content):
    place = runs / RUN_ID / "local" / "services" / "model"
    place.mkdir(parents=True)
    (place / "service.json").write_text(content)
    assert down(RUN_ID) == 0


def test_a_forged_owner_record_ends_no_process(runs, start_process):
    """Right pid, right start, but the process has not the run's lock open."""
    process = start_process()
    local = runs / RUN_ID / "local"
    local.mkdir()
    (local / run_lock.LOCK).touch()
    record = {"pid": process.pid, "started": pids.start_time(process.pid)}
    (local / run_lock.OWNER).write_text(json.dumps(record))
    assert down(RUN_ID, "--storage") == 0
    assert process.poll() is None


def test_processes_of_another_run_or_folder_are_not_ended(runs, tmp_path, start_process):
    mine = start_process(**{orphans.RUN_VARIABLE: RUN_ID, orphans.FOLDER_VARIABLE: str(runs)})
    others = [
        start_process(**{orphans.RUN_VARIABLE: OTHER, orphans.FOLDER_VARIABLE: str(runs)}),
        start_process(**{orphans.RUN_VARIABLE: RUN_ID, orphans.FOLDER_VARIABLE: str(tmp_path)}),
        start_process(),
    ]
    assert down(RUN_ID) == 0
    assert mine.poll() is not None
    assert [process.poll() for process in others] == [None, None, None]
