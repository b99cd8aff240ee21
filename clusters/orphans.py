"""Find a run's orphaned processes by their environment variables.

A run's steps, trials, jobs and model servers carry JEC_RUN_ID and the folder of local runs in their
environment, and what they start inherits both. Linux shows the environment of a process to its
owner. So they are found even after a SIGKILL of all processes above them. The command that runs
them is known by a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import psutil

RUN_VARIABLE = "JEC_RUN_ID"
FOLDER_VARIABLE = "JEC_LOCAL_DIR"
GRACE = 20.0  # seconds for a step to end its own children in order
OWNER = "pipeline.json"  # below <run>/local: which process runs it


def mark_owner(folder: Path) -> None:
    """Note this process as the one that runs the run whose local folder this is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "started": _started(os.getpid())}))


def owner(folder: Path) -> int | None:
    """The pid of the process that runs the run; None if it has ended.

    The pid alone does not tell, as it may be another process' by now.
    """
    try:
        record = json.loads((folder / OWNER).read_text())
    except (OSError, ValueError):
        return None
    pid: int = record["pid"]
    started = _started(pid)
    return pid if started and started == record["started"] else None


def processes_of(run_id: str, folder: Path) -> dict[int, str]:
    """Every living process of a run below this folder of local runs: pid -> command line."""
    command_lines = {}
    for process in psutil.process_iter():
        # A process may end while it is looked at, and others' processes may not be read.
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            ours = environment.get(RUN_VARIABLE) == run_id
            if ours and environment.get(FOLDER_VARIABLE) == str(folder) and _alive(process.pid):
                command_lines[process.pid] = " ".join(process.cmdline())
    command_lines.pop(os.getpid(), None)
    return command_lines


def end(pids: list[int], *, grace: float = GRACE) -> list[int]:
    """End processes: SIGTERM, `grace` seconds for all, then SIGKILL. Returns those still alive."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        until = time.monotonic() + seconds
        while (pids := [pid for pid in pids if _alive(pid)]) and time.monotonic() < until:
            time.sleep(0.05)
        if not pids:
            break
    return pids


def _started(pid: int) -> str:
    """When a process began; empty if there is none."""
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.Error:
        return ""


def _alive(pid: int) -> bool:
    """Whether a process has not ended. A zombie, whose parent has not asked how it ended, has."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
