"""Decide which folders are runs of this pipeline, and remove only those.

All commands use one rule, `why_not_own`: a run is a folder directly below --output, not a link,
that has one of the files in MARKS, and whose run.json, if it can be read, has the folder's name as
its run id. `--prune`, which gets no names from the user, requires the run.json (`recorded_id`).
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
"""A run's folder has at least one of these files; a run that stopped early has no run.json."""


def own_run(output: Path, run_id: str) -> Path:
    """Return the folder of a run of this pipeline directly below `output`.

    Raises InputError for a name with a path, a link, and a folder that `why_not_own` refuses.
    """
    if run_id in ("", os.curdir, os.pardir) or Path(run_id).name != run_id:
        raise InputError(f"{run_id!r} is not a run id; `python pipeline.py --list` prints all ids")
    folder = Path(output).resolve() / run_id
    if reason := why_not_own(folder):
        raise InputError(f"{folder} is not a run of this pipeline: {reason}; nothing was removed")
    return folder


def why_not_own(folder: Path) -> str:
    """Return why a folder is not a run of this pipeline; empty if it is one."""
    if folder.is_symlink():
        return f"it is a link to {os.readlink(folder)}"
    if not folder.is_dir():
        return "there is no such folder"
    if not any(_is_own_file(folder / name) for name in MARKS):
        return f"it has none of {', '.join(MARKS)}"
    run_id_in_record = recorded_id(folder)
    if run_id_in_record is not None and run_id_in_record != folder.name:
        return f"its run.json belongs to the run {run_id_in_record!r}"
    return ""


def recorded_id(folder: Path) -> str | None:
    """Return the run id in a folder's run.json; None if it has none or it cannot be read.

    A run that --if-data-changed ended early has unchanged.json instead.
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
    run_id_in_record = content.get("run_id") if isinstance(content, dict) else None
    return run_id_in_record if isinstance(run_id_in_record, str) else None


def _is_own_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def living_runs(output: Path) -> set[str]:
    """Return the ids of all runs below `output` that have a process on this machine.

    The processes are listed once, however many runs there are.
    """
    folder = str(Path(output).resolve())
    living = set()
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
        except (psutil.Error, OSError):
            # It has ended, or belongs to another user.
            continue
        if environment.get(orphans.FOLDER_VARIABLE) == folder:
            living.add(environment.get(orphans.RUN_VARIABLE, ""))
    return living - {""}


def is_going_on(folder: Path, living: set[str]) -> bool:
    """Return whether a command holds the run's lock, or a process of the run exists."""
    return folder.name in living or run_lock.owner(folder / "local") is not None


def remove_run(output: Path, run_id: str) -> None:
    """Remove a run's folder, and the link `latest` if it points there.

    Links inside are not followed. Raises InputError as `own_run`.
    """
    folder = own_run(output, run_id)
    latest = folder.parent / "latest"
    is_latest = latest.is_symlink() and os.readlink(latest) in (run_id, str(folder))
    shutil.rmtree(folder)
    if is_latest:
        latest.unlink()
