"""Find the orphaned processes of a run by their environment variables.

Steps, trials, jobs and model servers of a run have JEC_RUN_ID and the folder of local runs in their
environment, and their children inherit both. Linux shows the environment of a process to its owner,
so that they can be found even after a SIGKILL of all their parents. The command that runs them is
recorded in a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from common.pids import is_alive

RUN_VARIABLE = "JEC_RUN_ID"
FOLDER_VARIABLE = "JEC_LOCAL_DIR"
GRACE = 20.0  # seconds in which a step can stop its own children


def processes_of(run_id: str, folder: Path) -> dict[int, str]:
    """Return pid and command line of each living process of a run below this folder."""
    command_lines = {}
    for process in psutil.process_iter():
        # A process may end meanwhile, and processes of other users are unreadable.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            ours = environment.get(RUN_VARIABLE) == run_id
            if ours and environment.get(FOLDER_VARIABLE) == str(folder) and is_alive(process.pid):
                command_lines[process.pid] = " ".join(process.cmdline())
    command_lines.pop(os.getpid(), None)
    return command_lines


def may_be_of(pid: int, run_id: str, folder: Path) -> bool:
    """Return whether nothing in the environment of a process contradicts that it is of this run.

    The local backend may be used in a program without a run; its processes then have no run id.
    False if the environment is unreadable, as for processes of other users.
    """
    try:
        environment = psutil.Process(pid).environ()
    except (psutil.Error, OSError, ValueError, OverflowError):
        return False
    run, place = environment.get(RUN_VARIABLE), environment.get(FOLDER_VARIABLE)
    return run in (None, run_id) and place in (None, str(folder))


def end(pids: list[int], *, grace: float = GRACE) -> list[int]:
    """Stop processes: SIGTERM, `grace` seconds for all, then SIGKILL. Return those still alive."""
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
