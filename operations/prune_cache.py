"""`pipeline.py --prune-cache`: remove decoded jets, unused for long or large ones.

Decoded jets lie in two places: `cache/` below the folder of runs, which all runs there share, and
the cache of this machine (JEC_CACHE), which holds copies of distant ones. Whatever is removed is
decoded or copied again when it is needed: `--resume` of its run does so. What a run that goes on
refers to, and what a process has open or has used a moment ago, is kept.
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
from common.storage.addresses import local_path
from operations.run_list import confirmed, local_runs, place_of, size_of, size_text
from weaver.prepared import node_cache

DESCRIPTION = "dataset.json"
"""The file that is written last into a folder of decoded jets."""
RECENT_SECONDS = 600.0
"""What was used so recently may be about to be opened."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedSet:
    """A folder of decoded jets."""

    folder: Path
    size: int
    used: float
    """Seconds since the epoch when it was made or opened last."""
    kept: str
    """Why it is never removed; empty if it may be."""


def act(args: argparse.Namespace) -> int:
    """Remove old or large sets after asking; the exit code is 1 if one could not be removed."""
    chosen: list[DecodedSet] = []
    kept: list[DecodedSet] = []
    for one in sets_of(args):
        if matches(one, args.older_than, args.larger_than):
            (kept if one.kept else chosen).append(one)
    for one in kept:
        print(f"kept: {one.folder}, {size_text(one.size)}: {one.kept}")
    if not chosen:
        print(f"nothing to remove in {' and '.join(str(place) for place in places(args))}")
        return 0
    for one in chosen:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.used))
        print(f"{one.folder}  used {when}  {size_text(one.size)}")
    if not (args.yes or confirmed(len(chosen), "sets of decoded jets")):
        print("nothing was removed")
        return 1

    problems: list[str] = []
    freed = 0
    for one in chosen:
        if reason := remove(one, args):
            problems.append(f"{one.folder}: {reason}")
        else:
            freed += one.size
    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print(f"removed {len(chosen) - len(problems)} sets of decoded jets, {size_text(freed)}")
    return 1 if problems else 0


def places(args: argparse.Namespace) -> list[Path]:
    """The folders with decoded jets: that of the runs, and that of this machine.

    Raises InputError for runs on a distant storage, of which no process can be seen.
    """
    place = place_of(args)
    if not storage.is_local(place):
        raise InputError(
            f"--prune-cache looks at folders of this machine, not at {place}; there a rule of the"
            f" storage removes what lies below {storage.join(place, 'cache')} after a time"
        )
    return [Path(local_path(place)) / "cache", node_cache.place()]


def sets_of(args: argparse.Namespace) -> list[DecodedSet]:
    """All sets of both places, those used last first."""
    of_runs, of_node = places(args)
    referred = referred_by_runs(of_runs.parent)
    opened = opened_below([of_runs, of_node])
    sets = [*_sets_in(of_runs, referred, opened), *_sets_in(of_node, {}, opened)]
    return sorted(sets, key=lambda one: one.used, reverse=True)


def _sets_in(place: Path, referred: dict[Path, str], opened: set[Path]) -> Iterator[DecodedSet]:
    if not place.is_dir():
        return
    for folder in place.iterdir():
        description = folder / DESCRIPTION
        if folder.is_symlink() or not description.is_file():
            continue
        used = max(description.stat().st_mtime, folder.stat().st_mtime)
        kept = referred.get(folder.resolve(), "")
        if folder.resolve() in opened:
            kept = "a process has it open"
        elif time.time() - used < RECENT_SECONDS:
            kept = kept or "it was used a moment ago"
        yield DecodedSet(folder=folder, size=size_of(folder), used=used, kept=kept)


def referred_by_runs(output: Path) -> dict[Path, str]:
    """Sets that runs refer to which go on, may go on elsewhere, or are served -> why they stay."""
    referred: dict[Path, str] = {}
    if not output.is_dir():
        return referred
    for run in local_runs(output):
        if not run.kept:
            continue
        for reference in (output / run.run_id / "data").glob("*.json"):
            with contextlib.suppress(JecError, OSError, TypeError, KeyError):
                dataset = str(storage.read_json(str(reference))["dataset"])
                folder = (reference.parent / dataset).resolve()  # absolute ones stay themselves
                referred[folder] = f"run {run.run_id} refers to it, and {run.kept}"
    return referred


def opened_below(places: list[Path]) -> set[Path]:
    """The folders directly below these places of which a process of this machine has a file open.

    Mapped files count. Processes of other users are seen by root alone.
    """
    roots = [place.resolve() for place in places]
    opened = set()
    for process in psutil.pids():
        for text in _open_files(process):
            for root in roots:
                if text.startswith(f"{root}{os.sep}"):
                    opened.add(root / Path(text).relative_to(root).parts[0])
    return opened


def _open_files(process: int) -> Iterator[str]:
    """Paths of the files that a process has open or mapped; nothing of one that may not be seen.

    psutil asks for much more of each mapping, which takes minutes on a busy machine.
    """
    proc = Path(f"/proc/{process}")
    if not proc.parent.exists():  # no Linux: what is mapped and closed is not seen
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


def matches(one: DecodedSet, older_than: float | None, larger_than: float | None) -> bool:
    """Whether a set is as old (seconds) and as large (bytes) as asked for, where that is given."""
    if older_than is not None and time.time() - one.used <= older_than:
        return False
    return larger_than is None or one.size > larger_than


def remove(one: DecodedSet, args: argparse.Namespace) -> str:
    """Remove a set; why it was left, empty if it is gone.

    A process may have opened it, or a run may have begun, while the question was open.
    """
    now = [other for other in sets_of(args) if other.folder == one.folder]
    if not now:
        return ""
    if now[0].kept:
        return now[0].kept
    try:
        with _fetching_excluded(one.folder):
            # Under another name first: a set is there as a whole or not at all.
            away = one.folder.with_name(f".partial-removed-{one.folder.name}")
            one.folder.rename(away)
            shutil.rmtree(away)
    except BlockingIOError:
        return "a process is copying it"
    except (OSError, StorageError) as error:
        return str(error)
    return ""


@contextlib.contextmanager
def _fetching_excluded(folder: Path) -> Iterator[None]:
    """Hold the lock that processes hold which copy this set to the machine, if there is one."""
    lock = folder.with_name(f"{folder.name}.lock")
    if not lock.exists():
        yield
        return
    with open(open_lock(lock), "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
