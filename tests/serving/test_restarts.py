"""A server that ends by itself, or whose owner is killed. The servers are sleeping processes here;
tests/serving/test_serve.py does the same with Triton.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import ClusterError, InputError
from common.pids import is_alive
from serving import guard, restarts, server_folder, server_processes
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(restarts, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.01)


@pytest.fixture
def launch(tmp_path):
    """Start a process as a server with shared memory; all are ended."""
    pids = []

    def start(command=SLEEP, owner=None) -> tuple[int, Path, Path]:
        folder = server_folder.create()
        region = server_folder.SHARED_MEMORY / f"{folder.identity}-region"
        region.write_text("")
        process = server_processes.launch(
            command, os.environ, folder=folder, log=tmp_path / "log", owner=owner
        )
        folder.leave()
        pids.append(process.pid)
        return process.pid, folder.path, region

    yield start
    for pid in pids:
        server_processes.stop(pid)


def test_a_server_is_started_again_until_the_limit(launch, quick, tmp_path):
    lines, restart_times = [], []

    def restart() -> int:
        pid, *paths = launch()
        os.kill(pid, signal.SIGKILL)
        restart_times.append((pid, *paths))
        return pid

    first = restart()
    (tmp_path / "log").write_text("started\nthe GPU is gone\n")
    with pytest.raises(ClusterError, match="the GPU is gone"):
        restarts.keep_running(first, restart, log=tmp_path / "log", report=lines.append)
    assert len(restart_times) == 1 + restarts.MAX_RESTARTS
    assert len(lines) == restarts.MAX_RESTARTS
    for (pid, folder, region), line in zip(restart_times, lines, strict=False):
        assert str(pid) in line
        assert not folder.exists()
        assert not region.exists()


def test_the_pauses_double(launch, monkeypatch, tmp_path):
    pauses = []
    monkeypatch.setattr(restarts.time, "sleep", pauses.append)
    monkeypatch.setattr(restarts.triton, "is_running", lambda pid: False)
    with pytest.raises(ClusterError):
        restarts.keep_running(2**22 + 1, lambda: 2**22 + 1, log=tmp_path / "no", report=print)
    assert pauses == [1.0, 2.0, 4.0]


def test_a_server_that_ran_for_long_is_restarted_as_for_the_first_time(
    launch, quick, monkeypatch, tmp_path
):
    monkeypatch.setattr(restarts, "STEADY_SECONDS", 0.0)
    lines = []

    def restart() -> int:
        if len(lines) == 2 * restarts.MAX_RESTARTS:
            raise InputError("enough")
        return 2**22 + 1

    with pytest.raises(InputError):
        restarts.keep_running(restart(), restart, log=tmp_path / "no", report=lines.append)
    assert all(f"(1 of {restarts.MAX_RESTARTS})" in line for line in lines)


def test_a_server_ends_with_its_owner_that_was_killed(launch):
    with subprocess.Popen(SLEEP) as owner:
        pid, folder, region = launch(owner=owner.pid)
        time.sleep(2 * guard.POLL)
        assert server_processes.is_running(pid)
        owner.kill()
    wait_until(lambda: not is_alive(pid))
    wait_until(lambda: not folder.exists() and not region.exists())


def test_a_killed_servers_leftovers_are_removed_while_its_owner_lives(launch):
    command = [sys.executable, "-c", f"import subprocess; subprocess.run({SLEEP!r})"]
    pid, folder, region = launch(command, owner=os.getpid())
    wait_until(lambda: len(server_processes.members(pid)) == 2)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not folder.exists() and not region.exists())
    assert server_processes.members(pid) == {}


def test_a_new_process_with_the_owners_pid_is_not_the_owner(launch):
    pid, *_ = launch()
    guard.guard(pid, os.getpid(), "12345.6")
    assert not is_alive(pid)


def test_a_server_whose_guard_cannot_start_is_stopped(launch, monkeypatch):
    children = psutil.Process().children()

    def refuse(*_):
        raise PermissionError("no more processes")

    monkeypatch.setattr(server_processes, "_guard", refuse)
    with pytest.raises(PermissionError):
        launch(owner=os.getpid())
    assert psutil.Process().children() == children


def test_stop_ends_the_guard_too(launch):
    pid, *_ = launch(owner=os.getpid())

    def guards():
        children = [(child, child.cmdline()) for child in psutil.Process().children()]
        return [
            child for child, words in children if "serving.guard" in words and str(pid) in words
        ]

    wait_until(guards)  # a process has no command line for a moment when it starts
    (guard,) = guards()
    server_processes.stop(pid)
    assert not guard.is_running()


def test_only_unlocked_folders_are_removed(launch):
    _, folder, region = launch()
    abandoned = server_folder.create()
    leftover_region = server_folder.SHARED_MEMORY / f"{abandoned.identity}-region"
    leftover_region.write_text("")
    foreign = server_folder.SHARED_MEMORY / f"other-{abandoned.identity}"
    foreign.write_text("")
    try:
        server_folder.remove_abandoned()
        assert leftover_region.exists()
        abandoned.leave()
        server_folder.remove_abandoned()
        assert not leftover_region.exists()
        assert not abandoned.path.exists()
        assert region.exists()
        assert folder.exists()
        assert foreign.exists()
    finally:
        foreign.unlink()
