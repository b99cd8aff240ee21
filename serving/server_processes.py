"""The processes of a model server: started in their own group, recognised by their environment.

A server outlives the process that started it, so that the process that stops it later knows only a
pid, which may belong to another process by then. A variable in the environment of a server and its
children identifies them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from common.pids import is_alive, start_time
from serving import server_folder
from serving.server_folder import ServerFolder

IDENTITY = "JEC_SERVER_ID"
"""Environment variable with the identity of a server, unique for each start."""

STOP_SECONDS = 10  # limit for pending requests when the server is told to stop
KILL_SECONDS = 5  # a killed process ends at once, unless the machine is overloaded

# Children of this process, which must be waited for when they end.
_children: dict[int, subprocess.Popen[bytes]] = {}
_guards: dict[int, subprocess.Popen[bytes]] = {}
"""The guard of each server by the server's pid (serving.guard)."""


def launch(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    folder: ServerFolder,
    log: Path,
    owner: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server as leader of a process group, with its output appended to `log`.

    It inherits the lock of its folder.

    Args:
        command: Command line.
        env: Environment.
        folder: Folder of the server.
        log: Log file.
        owner: pid of the process with which the server ends; None to keep it running.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            env={**env, IDENTITY: folder.identity},
            cwd=folder.path,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(folder.lock,),
        )
    _children[process.pid] = process
    if owner is not None:
        try:
            _guards[process.pid] = _guard(process.pid, owner, log)
        except BaseException:
            stop(process.pid, seconds=2)  # nobody would end it
            raise
    return process


def _guard(server: int, owner: int, log: Path) -> subprocess.Popen[bytes]:
    """Start the process that stops a server when its owner ends."""
    root = os.fspath(Path(__file__).parents[1])
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "serving.guard", str(server), str(owner), start_time(owner)],
            env={**os.environ, "PYTHONPATH": root},
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(pid: int, *, seconds: float = STOP_SECONDS) -> bool:
    """Stop a server and its children: SIGTERM first, SIGKILL after `seconds`.

    A process that is not a model server keeps running, since the pid of an old service.json may
    belong to another process by now.

    Returns:
        False if no such server runs.
    """
    identities = members(pid)
    running = is_running(pid)
    if running:
        os.kill(pid, signal.SIGTERM)
        _wait_while(lambda: is_running(pid), seconds)

    # A server that did not end by itself may remain, and backend processes, which survive a server
    # that was killed.
    remaining = members(pid)
    for member in remaining:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)
    pids = {*remaining, *identities}
    _wait_while(lambda: any(map(is_alive, pids)), KILL_SECONDS)
    process = _children.pop(pid, None)
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=KILL_SECONDS)

    guard = _guards.pop(pid, None)
    if guard is not None:
        guard.kill()
        guard.wait()

    # A backend process that was killed leaves its shared memory behind.
    for identity in set(identities.values()):
        server_folder.remove_shared_memory(identity)
    server_folder.remove_abandoned()
    return running or bool(identities)


def is_running(pid: int) -> bool:
    """Return whether the process is a running model server."""
    if pid in _children:
        # Its environment cannot be read for a moment after the start.
        return _children[pid].poll() is None
    # A process may end meanwhile, and processes of other users are unreadable.
    with contextlib.suppress(OSError, psutil.Error):
        return os.getpgid(pid) == pid and bool(psutil.Process(pid).environ().get(IDENTITY))
    return False


def members(leader: int) -> dict[int, str]:
    """Return the pid and identity of living processes in the group of a server.

    Empty if the group belongs to another program.
    """
    identities = {}
    for pid in psutil.pids():
        # A process may end meanwhile, and processes of other users are unreadable.
        with contextlib.suppress(OSError, psutil.Error):
            if os.getpgid(pid) != leader:
                continue
            # Empty for a process that has ended and is not waited for.
            identity = psutil.Process(pid).environ().get(IDENTITY)
            if identity:
                identities[pid] = identity
    return identities


def _wait_while(condition: Callable[[], bool], seconds: float) -> None:
    ends = time.monotonic() + seconds
    while condition() and time.monotonic() < ends:
        time.sleep(0.02)
