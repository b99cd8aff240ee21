"""Find a run's orphaned processes by their environment variables.

A run's steps, trials, jobs and model servers carry JEC_RUN_ID and the folder of local runs in their
environment, and what they start inherits both. Linux shows the environment of a process to its
owner. So they are found even after a SIGKILL of all processes above them. The command that runs
them is known by a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

RUN_VARIABLE = "JEC_RUN_ID"
FOLDER_VARIABLE = "JEC_LOCAL_DIR"
GRACE = 20.0  # seconds for a step to end its own children in order


def processes_of(run_id: str, folder: Path) -> dict[int, str]:
    """Every living process of a run below this folder of local runs: pid -> command line."""
    command_lines = {}
    for process in psutil.process_iter():
        # A process may end while it is looked at, and others' processes may not be read.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            ours = environment.get(RUN_VARIABLE) == run_id
            if ours and environment.get(FOLDER_VARIABLE) == str(folder) and is_alive(process.pid):
                command_lines[process.pid] = " ".join(process.cmdline())
    command_lines.pop(os.getpid(), None)
    return command_lines


def may_be_of(pid: int, run_id: str, folder: Path) -> bool:
    """Whether a process has nothing in its environment that speaks against this run.

    A backend that was used without a run (in a program of one's own) gives its processes no run.
    False where the environment cannot be read, as of another user's process.
    """
    try:
        environment = psutil.Process(pid).environ()
    except (psutil.Error, OSError, ValueError, OverflowError):
        return False
    run, place = environment.get(RUN_VARIABLE), environment.get(FOLDER_VARIABLE)
    return run in (None, run_id) and place in (None, str(folder))


def end(pids: list[int], *, grace: float = GRACE) -> list[int]:
    """End processes: SIGTERM, `grace` seconds for all, then SIGKILL. Returns those still alive."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        until = time.monotonic() + seconds
        while (pids := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < until:
            time.sleep(0.05)
        if not pids:
            break
    return pids


def is_alive(pid: int) -> bool:
    """Whether a process has not ended. A zombie, whose parent has not asked how it ended, has."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except (psutil.Error, ValueError, OverflowError):
        return False
