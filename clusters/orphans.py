"""Processes of a run on this machine, found without its help: by what their environment says, also
after a SIGKILL of all above them.

A run's steps, trials, jobs and model servers carry JEC_RUN_ID and the folder of local runs in their
environment, and what they start inherits both. Linux shows the environment of a process to its
owner. The command that runs them is known by a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

RUN_VARIABLE, FOLDER_VARIABLE = "JEC_RUN_ID", "JEC_LOCAL_DIR"
GRACE = 20.0  # seconds for a step to end its own children in order
OWNER = "pipeline.json"  # below <run>/local: which process runs it


def mark_owner(folder: Path) -> None:
    """Note this process as the one that runs the run whose local folder this is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "started": _started(os.getpid())}))


def owner(folder: Path) -> int | None:
    """The living process that runs the run;

    None if it has ended (a pid may be another process' by now).
    """
    try:
        noted = json.loads((folder / OWNER).read_text())
    except (OSError, ValueError):
        return None
    return noted["pid"] if _started(noted["pid"]) == noted["started"] != "" else None


def processes_of(run_id: str, folder: Path) -> dict[int, str]:
    """pid -> command line of every living process of a run below this folder of local runs."""
    wanted = {f"{RUN_VARIABLE}={run_id}".encode(), f"{FOLDER_VARIABLE}={folder}".encode()}
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if wanted <= set((place / "environ").read_bytes().split(b"\0")) and _alive(
                int(place.name)
            ):
                found[int(place.name)] = (
                    (place / "cmdline")
                    .read_bytes()
                    .replace(b"\0", b" ")
                    .decode(errors="replace")
                    .strip()
                )
    found.pop(os.getpid(), None)
    return found


def end(pids: list[int], *, grace: float = GRACE) -> list[int]:
    """SIGTERM to all, a while for all, SIGKILL to the rest; returns those that live on."""
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
    """When a process began, in clock ticks since boot; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _alive(pid: int) -> bool:
    """True for a process that has not ended; one that only waits to be asked for its
    exit code has.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False
