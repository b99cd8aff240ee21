"""Which folders below --output or a storage address are runs of ours, and what is deleted of them.

`--down`, `--list` and `--prune` use the same rule: a run of ours is a folder directly below, no
link, whose run.json names it.
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
    record = Path(RunFolder(str(folder)).run)
    if record.is_symlink() or not record.is_file():
        return "it has no run.json"
    try:
        content = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return "its run.json cannot be read"
    named = content.get("run_id") if isinstance(content, dict) else None
    if named != folder.name:
        return f"its run.json names {named!r}"
    return ""


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
