"""Which folders below --output or a storage address are runs of ours, and what is deleted of them.

All commands use the same rule, `why_not_own`: a run of ours is a folder directly below, no link,
with a file that runs have; its run.json, where it can be read, names the folder. `--prune`, which
nobody gives a name, removes only what a run.json names (`recorded_id`).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import psutil

from clusters import orphans, run_lock
from common.errors import InputError
from common.layout import RunFolder

MARKS = ("run.json", "status.json", "local/lock")
"""Files of a run's folder, one of which makes it one: a run that stopped early has no run.json."""


def own_run(output: Path, run_id: str) -> Path:
    """The folder of a run of ours directly below `output`.

    Raises InputError for a name that is no plain folder name, for a link, and for a folder that
    `why_not_own` refuses.
    """
    if run_id in ("", os.curdir, os.pardir) or Path(run_id).name != run_id:
        raise InputError(f"{run_id!r} is no run id, as `python pipeline.py --list` shows them")
    folder = Path(output).resolve() / run_id
    if reason := why_not_own(folder):
        raise InputError(f"{folder} is no run of this pipeline: {reason}; nothing was removed")
    return folder


def why_not_own(folder: Path) -> str:
    """Why a folder is no run of ours; empty if it is."""
    if folder.is_symlink():
        return f"it is a link to {os.readlink(folder)}"
    if not folder.is_dir():
        return "there is no such folder"
    if not any(_is_own_file(folder / name) for name in MARKS):
        return f"it has none of {', '.join(MARKS)}"
    named = recorded_id(folder)
    if named is not None and named != folder.name:
        return f"its run.json is of the run {named!r}"
    return ""


def recorded_id(folder: Path) -> str | None:
    """The run id in a folder's run.json; None where there is none, or it cannot be read.

    A run that --if-data-changed ended has unchanged.json alone.
    """
    files = RunFolder(str(folder))
    record = Path(files.run)
    if not os.path.lexists(record):
        record = Path(files.unchanged)
    if not _is_own_file(record):
        return None
    try:
        content = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    named = content.get("run_id") if isinstance(content, dict) else None
    return named if isinstance(named, str) else None


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def living_runs(output: Path) -> set[str]:
    """The ids of all runs below `output` of which a process lives on this machine.

    One look at all processes, however many runs there are.
    """
    local = str(Path(output).resolve())
    living = set()
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.Error, OSError):
            # It has ended, or is another user's.
            continue
        if environment.get(orphans.FOLDER_VARIABLE) == local:
            living.add(environment.get(orphans.RUN_VARIABLE, ""))
    return living - {""}


def is_going_on(folder: Path, living: set[str]) -> bool:
    """Whether a command runs this run, or a process of it lives."""
    return folder.name in living or run_lock.owner(folder / "local") is not None


def remove_run(output: Path, run_id: str) -> None:
    """Remove the folder of a run of ours, and the link `latest` if it led there.

    No link inside is followed. Raises InputError as `own_run`.
    """
    folder = own_run(output, run_id)
    latest = folder.parent / "latest"
    is_latest = latest.is_symlink() and os.readlink(latest) in (run_id, str(folder))
    shutil.rmtree(folder)
    if is_latest:
        latest.unlink()
