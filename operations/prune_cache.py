"""`pipeline.py --prune-cache`: remove sets of decoded jets by age or size.

Decoded jets are in two places: `cache/` below the folder of runs, which all runs there share, and
the cache of this machine (JEC_CACHE), with copies of sets on distant storage. A removed set is
decoded or copied again when a run needs it, for example on `--resume`. Sets are kept if an active
run refers to them, or if a process has them open or used them within the last minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from common import storage
from common.errors import InputError, JecError, StorageError
from common.private_folder import open_lock
from common.storage import space
from common.storage.addresses import local_path
from operations.run_list import confirm, exceeds_limits, local_runs, place_of, size_of
from weaver.prepared import node_cache

DESCRIPTION = "dataset.json"
"""The file that is written last into a folder of decoded jets, and so marks a complete one."""
RECENT_SECONDS = 600.0
"""A set that was used so recently is kept, because a process may be about to open it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedSet:
    """A folder of decoded jets."""

    folder: Path
    size: int
    last_use: float
    """When it was written or opened last, in seconds since 1970."""
    keep_reason: str
    """Why it must not be removed; empty if it may be."""


def act(args: argparse.Namespace) -> int:
    """Remove old or large sets after asking; return 1 if one could not be removed, else 0.

    Raises InputError as `places`, and if there is no terminal to ask on.
    """
    candidates: list[DecodedSet] = []
    kept_sets: list[DecodedSet] = []
    for decoded_set in sets_of(args):
        unused_seconds = time.time() - decoded_set.last_use
        if exceeds_limits(unused_seconds, decoded_set.size, args):
            (kept_sets if decoded_set.keep_reason else candidates).append(decoded_set)
    for decoded_set in kept_sets:
        print(
            f"kept: {decoded_set.folder}, {space.size_text(decoded_set.size)}:"
            f" {decoded_set.keep_reason}"
        )
    if not candidates:
        print(f"nothing to remove in {' and '.join(str(place) for place in places(args))}")
        return 0
    for decoded_set in candidates:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(decoded_set.last_use))
        print(f"{decoded_set.folder}  used {when}  {space.size_text(decoded_set.size)}")
    if not (args.yes or confirm(len(candidates), "sets of decoded jets")):
        print("nothing was removed")
        return 1

    problems: list[str] = []
    freed_bytes = 0
    for decoded_set in candidates:
        if reason := remove(decoded_set, args):
            problems.append(f"{decoded_set.folder}: {reason}")
        else:
            freed_bytes += decoded_set.size
    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print(
        f"removed {len(candidates) - len(problems)} sets of decoded jets,"
        f" {space.size_text(freed_bytes)}"
    )
    return 1 if problems else 0


def places(args: argparse.Namespace) -> list[Path]:
    """Return the two folders with decoded jets: that of the runs, and that of this machine.

    Raises InputError for runs on distant storage, because their processes are not visible here.
    """
    place = place_of(args)
    if not storage.is_local(place):
        raise InputError(
            f"--prune-cache works on folders of this machine, not on {place}; give the storage a"
            f" lifecycle rule that removes files below {storage.join(place, 'cache')} when they are"
            " older than the longest run"
        )
    return [Path(local_path(place)) / "cache", node_cache.place()]


def sets_of(args: argparse.Namespace) -> list[DecodedSet]:
    """Return all sets of both places, the most recently used first."""
    of_runs, of_node = places(args)
    references = sets_of_active_runs(of_runs.parent)
    open_folders = folders_in_use([of_runs, of_node])
    sets = [*_sets_in(of_runs, references, open_folders), *_sets_in(of_node, {}, open_folders)]
    return sorted(sets, key=lambda decoded_set: decoded_set.last_use, reverse=True)


def _sets_in(
    place: Path, references: dict[Path, str], open_folders: set[Path]
) -> Iterator[DecodedSet]:
    if not place.is_dir():
        return
    for folder in place.iterdir():
        description = folder / DESCRIPTION
        if folder.is_symlink() or not description.is_file():
            continue
        last_use = max(description.stat().st_mtime, folder.stat().st_mtime)
        keep_reason = references.get(folder.resolve(), "")
        if folder.resolve() in open_folders:
            keep_reason = "a process has it open"
        elif time.time() - last_use < RECENT_SECONDS:
            keep_reason = keep_reason or "it was used a moment ago"
        yield DecodedSet(
            folder=folder, size=size_of(folder), last_use=last_use, keep_reason=keep_reason
        )


def sets_of_active_runs(output: Path) -> dict[Path, str]:
    """Return the sets that must stay because of a run: folder -> reason.

    Such a run is active, may be active on another machine, or is served.
    """
    references: dict[Path, str] = {}
    if not output.is_dir():
        return references
    for run in local_runs(output):
        if not run.kept:
            continue
        for reference in (output / run.run_id / "data").glob("*.json"):
            with contextlib.suppress(JecError, OSError, TypeError, KeyError):
                dataset = str(storage.read_json(str(reference))["dataset"])
                folder = (reference.parent / dataset).resolve()  # an absolute path stays as it is
                references[folder] = f"run {run.run_id} refers to it, and {run.kept}"
    return references


def folders_in_use(places: list[Path]) -> set[Path]:
    """Return the folders directly below `places` in which a process has a file open or mapped.

    Only root sees the files of other users' processes.
    """
    roots = [place.resolve() for place in places]
    folders = set()
    for process in psutil.pids():
        for text in _open_files(process):
            for root in roots:
                if text.startswith(f"{root}{os.sep}"):
                    folders.add(root / Path(text).relative_to(root).parts[0])
    return folders


def _open_files(process: int) -> Iterator[str]:
    """Yield the paths of the files that a process has open or mapped, if we may see them.

    /proc is read directly: psutil reads much more about each mapping, which takes minutes on a busy
    machine.
    """
    proc = Path(f"/proc/{process}")
    if not proc.parent.exists():  # not Linux: psutil lists open files, but no mapped ones
        with contextlib.suppress(psutil.Error, OSError):
            yield from [file.path for file in psutil.Process(process).open_files()]
        return
    with contextlib.suppress(OSError):
        for line in (proc / "maps").read_text(errors="surrogateescape").splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6:
                yield fields[5]
    with contextlib.suppress(OSError):
        for link in (proc / "fd").iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(link)


def remove(decoded_set: DecodedSet, args: argparse.Namespace) -> str:
    """Remove a set; return why it was kept, empty if it is removed.

    It is checked again first: since the question a process may have opened it, or a run started.
    """
    current = [other for other in sets_of(args) if other.folder == decoded_set.folder]
    if not current:
        return ""
    if current[0].keep_reason:
        return current[0].keep_reason
    try:
        with _copy_lock(decoded_set.folder):
            # Rename it first, so that readers see the whole set or none.
            away = decoded_set.folder.with_name(f".partial-removed-{decoded_set.folder.name}")
            decoded_set.folder.rename(away)
            shutil.rmtree(away)
    except BlockingIOError:
        return "a process is copying it"
    except (OSError, StorageError) as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _copy_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of processes that copy this set to the machine, if the set has a lock file.

    Raises BlockingIOError if a process holds it.
    """
    lock = folder.with_name(f"{folder.name}.lock")
    if not lock.exists():
        yield
        return
    with open(open_lock(lock), "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
