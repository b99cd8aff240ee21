"""One process runs a run: a second one is refused with the owner; an abandoned lock is replaced."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

import pipeline
from clusters import run_lock
from clusters.run_lock import Holder, RunLock
from common import storage
from common.errors import InputError

pytestmark = pytest.mark.faults

RUN_ID = "pfn-0a1b2c3d"


@pytest.fixture
def hold(tmp_path):
    """Make locks of one run, and release them at the end."""
    locks = []

    def make(remote=""):
        lock = RunLock(RUN_ID, tmp_path / "local", remote)
        locks.append(lock)
        return lock

    yield make
    for lock in locks:
        lock.release()


@pytest.fixture
def lines():
    return []


@pytest.fixture
def dead_pid():
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_owner(folder, **values):
    folder.mkdir(parents=True, exist_ok=True)
    record = dataclasses.asdict(dataclasses.replace(Holder.this_process(), **values))
    (folder / run_lock.OWNER).write_text(json.dumps(record))


def test_a_second_process_gets_an_error_that_names_the_owner(hold, tmp_path, lines):
    hold().take(lines.append)
    before = (tmp_path / "local" / run_lock.OWNER).read_bytes()
    with pytest.raises(InputError) as refusal:
        hold().take(lines.append)
    text = str(refusal.value)
    assert f"process {os.getpid()} on {socket.gethostname()}" in text
    assert f"--down {RUN_ID}" in text
    assert (tmp_path / "local" / run_lock.OWNER).read_bytes() == before
    assert lines == []


def test_a_released_lock_is_free(hold, tmp_path, lines):
    first = hold()
    first.take(lines.append)
    assert run_lock.owner(tmp_path / "local") == os.getpid()
    first.release()
    first.release()
    assert run_lock.owner(tmp_path / "local") is None
    hold().take(lines.append)
    assert lines == []


def test_a_killed_owner_leaves_a_lock_that_is_taken_over(hold, tmp_path, lines):
    code = (
        "import sys, time; from pathlib import Path; from clusters.run_lock import RunLock;"
        f" RunLock({RUN_ID!r}, Path(sys.argv[1])).take(print); print('held', flush=True);"
        " time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "local")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert run_lock.owner(tmp_path / "local") == process.pid
        with pytest.raises(InputError, match=f"process {process.pid} "):
            hold().take(lines.append)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run_lock.owner(tmp_path / "local") is None
    hold().take(lines.append)
    (line,) = lines
    assert f"process {process.pid} " in line
    assert "taken over" in line


def test_another_machine_that_renews_its_lock_is_alive(hold, tmp_path, lines):
    write_owner(tmp_path / "local", host="elsewhere", pid=4711)
    with pytest.raises(InputError, match="process 4711 on elsewhere"):
        hold().take(lines.append)
    write_owner(tmp_path / "local", host="elsewhere", renewed=time.time() - 3600)
    hold().take(lines.append)
    assert "elsewhere" in lines[0]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x", "no": 1}', "null"])
def test_a_damaged_record_names_no_owner(hold, tmp_path, lines, content):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / run_lock.OWNER).write_text(content)
    assert run_lock.owner(tmp_path / "local") is None
    hold().take(lines.append)


@pytest.mark.parametrize(
    "values",
    [{"started": "1"}, {"pid": 1}, {"started": ""}, {"pid": -1}, {"pid": 2**40}, {}],
    ids=["another start", "init", "no start", "negative", "huge", "without the lock"],
)
def test_a_forged_record_names_no_owner(tmp_path, values):
    write_owner(tmp_path / "local", **values)
    assert run_lock.owner(tmp_path / "local") is None


def test_the_copy_of_a_running_run_has_no_owner(hold, tmp_path, lines):
    hold().take(lines.append)
    shutil.copytree(tmp_path / "local", tmp_path / "copy")
    assert run_lock.owner(tmp_path / "copy") is None
    assert run_lock.owner(tmp_path / "local") == os.getpid()


def test_on_s3_a_second_machine_gets_an_error_that_names_the_owner(
    s3_bucket, hold, tmp_path, lines
):
    uri = f"{s3_bucket}/{RUN_ID}"
    first = hold(uri)
    first.take(lines.append)
    record = storage.read_bytes(f"{uri}/lock.json")
    other = RunLock(RUN_ID, tmp_path / "elsewhere", uri)
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        other.take(lines.append)
    assert storage.read_bytes(f"{uri}/lock.json") == record
    first.release()
    assert not storage.exists(f"{uri}/lock.json")
    other.take(lines.append)
    other.release()
    assert lines == []


@pytest.mark.parametrize("kind", ["ended here", "silent elsewhere"])
def test_on_s3_an_abandoned_lock_is_taken_over(s3_bucket, hold, lines, dead_pid, kind):
    uri = f"{s3_bucket}/{RUN_ID}-{kind[:5]}"
    holder = Holder.this_process()
    if kind == "ended here":
        holder = dataclasses.replace(holder, pid=dead_pid)
    else:
        holder = dataclasses.replace(holder, host="elsewhere", renewed=time.time() - 3600)
    storage.write_json(f"{uri}/lock.json", dataclasses.asdict(holder))
    hold(uri).take(lines.append)
    assert "lock.json is taken over" in lines[0]
    assert storage.read_json(f"{uri}/lock.json")["pid"] == os.getpid()


def test_without_conditional_writes_the_lock_is_read_again(
    s3_bucket, hold, tmp_path, lines, monkeypatch
):
    monkeypatch.setattr(run_lock.storage, "create", lambda uri, content: None)
    monkeypatch.setattr(run_lock, "READ_BACK_SECONDS", 0.0)
    uri = f"{s3_bucket}/{RUN_ID}-plain"
    hold(uri).take(lines.append)
    (line,) = lines
    assert "no conditional writes" in line
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        RunLock(RUN_ID, tmp_path / "elsewhere", uri).take(lines.append)


def test_of_two_simultaneous_processes_one_gets_the_lock(s3_bucket, tmp_path, lines, monkeypatch):
    """Neither sees a lock at first; the condition of the write decides."""
    uri = f"{s3_bucket}/{RUN_ID}-race"
    winner = Holder.this_process()

    def create(address, content):
        storage.write_json(address, dataclasses.asdict(winner))
        return original(address, content)

    original = storage.create
    monkeypatch.setattr(run_lock.storage, "create", create)
    loser = RunLock(RUN_ID, tmp_path / "local", uri)
    with pytest.raises(InputError, match="is being run by"):
        loser.take(lines.append)
    assert storage.read_json(f"{uri}/lock.json")["token"] == winner.token


@pytest.fixture
def own_handlers():
    """Set the signals' handlers back, which a run on this machine replaces."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("own_handlers")
def test_a_second_resume_of_an_active_run_is_refused(tmp_path, monkeypatch, capsys):
    """The second ends with 2 and writes nothing into the run of the first."""
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    run = tmp_path / "runs" / RUN_ID
    storage.write_json(str(run / "status.json"), {"step": "search", "state": "running"})
    lock = RunLock(RUN_ID, run / "local")
    lock.take(lambda line: None)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    try:
        code = pipeline.main(["--resume", RUN_ID, "--output", str(tmp_path / "runs")])
    finally:
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        lock.release()
    err = capsys.readouterr().err
    assert code == 2
    assert f"process {os.getpid()} on {socket.gethostname()}" in err
    assert "Traceback" not in err
    assert after == before
