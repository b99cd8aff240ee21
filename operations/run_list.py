"""`pipeline.py --list` and `--prune`: list the runs of a folder or address, and remove old ones.

Listing reads at most two small files of each run and lists its files once, so that a folder with
thousands of runs takes seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from clusters import run_lock
from common import storage
from common.config import AUTO
from common.errors import InputError, JecError
from common.layout import RunFolder
from common.records import ServiceRecord, StatusRecord, SummaryRecord
from common.storage import space
from common.storage.addresses import local_path
from operations.own_runs import (
    is_going_on,
    living_runs,
    recorded_id,
    remove_run,
    why_not_own,
)

RUNNING = " running"
"""End of the state of a run whose step has not ended."""
QUIET = datetime.timedelta(days=1)
"""An active run on one machine writes its records more often than this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLine:
    """A run as the list shows it; `--json` prints the same fields."""

    run_id: str
    state: str
    """How it ended, its current step, or `broken` with the reason."""
    has_ended: bool
    """Whether its records say how it ended, and nothing was written since."""
    gain: str
    """Resolution gain over the standard JEC with its interval; empty if not measured."""
    size: int
    """Bytes of all its files."""
    served: bool
    changed: datetime.datetime | None
    """When its records were written last; None if unknown."""
    kept: str
    """Why --prune must not remove it; empty if it may."""


def act(args: argparse.Namespace) -> int:
    """Run --list or --prune; return the exit code."""
    if args.list and args.json:
        runs = [dataclasses.asdict(line) for line in runs_of(args)]
        print(
            json.dumps(
                {"place": place_of(args), "runs": runs},
                indent=2,
                default=datetime.datetime.isoformat,
            )
        )
        return 0
    if args.list:
        return show(runs_of(args), place_of(args))
    return prune(args)


def place_of(args: argparse.Namespace) -> str:
    """Return the folder or address of the runs: --s3-bucket if it was given, else --output."""
    return str(args.output.resolve()) if args.s3_bucket == AUTO else str(args.s3_bucket)


def runs_of(args: argparse.Namespace) -> list[RunLine]:
    """Return all runs, the most recently changed first; those without a time last.

    Raises InputError if the folder does not exist.
    """
    place = place_of(args)
    if storage.is_local(place):
        lines = list(local_runs(Path(local_path(place))))
    else:
        lines = list(stored_runs(place))
    no_time = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return sorted(lines, key=lambda line: (line.changed or no_time, line.run_id), reverse=True)


# ------------------------------------------------------------------------------- reading the runs


def local_runs(output: Path) -> Iterator[RunLine]:
    """Yield the runs below a folder, without links such as `latest` and folders that are no runs.

    Raises InputError if the folder does not exist.
    """
    if not output.is_dir():
        raise InputError(f"{output}: no such folder; give the folder of your runs as --output DIR")
    living = living_runs(output)
    with os.scandir(output) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        folder = output / name
        if (folder / "run.json").exists() or (folder / "status.json").exists():
            yield line_of_local_run(folder, living)


def line_of_local_run(folder: Path, living: set[str]) -> RunLine:
    """Return the line of a run on this machine; `living` has the ids of runs with processes."""
    going_on = is_going_on(folder, living)
    line = line_of(str(folder), size_of(folder))
    keep_reason, is_served = why_not_own(folder), False
    if not keep_reason and recorded_id(folder) is None:
        keep_reason = "it has no run.json, or one that cannot be read"
    if line.state.endswith(RUNNING) and not going_on:
        line = dataclasses.replace(line, state=f"stopped in {line.state.removesuffix(RUNNING)}")
    try:
        service = ServiceRecord.find(RunFolder(str(folder)).service)
        # A local server is one of the run's processes. Whether a cluster's still runs is unknown.
        is_served = service is not None and (service.kind != "triton" or folder.name in living)
    except JecError:
        keep_reason = keep_reason or "its service.json cannot be read"
    if is_served:
        keep_reason = "it is served"
    elif going_on:
        keep_reason = "it is going on"
    elif not line.has_ended and not keep_reason and may_run_elsewhere(folder, line):
        keep_reason = "it may be going on on another machine"
    return dataclasses.replace(line, served=is_served, kept=keep_reason)


def may_run_elsewhere(folder: Path, line: RunLine) -> bool:
    """Return whether a run may be active on another machine that shares this folder.

    It may be, unless it has a lock of a run on one machine and wrote nothing for a day.
    """
    marks = (run_lock.LOCK, run_lock.OWNER)  # runs of an earlier version have the second alone
    ran_on_one_machine = any((folder / "local" / mark).exists() for mark in marks)
    now = datetime.datetime.now(datetime.UTC)
    is_quiet = line.changed is not None and now - line.changed > QUIET
    return not (ran_on_one_machine and is_quiet)


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    total, folders = 0, [str(folder)]
    while folders:
        # Ignore files and folders that are removed meanwhile.
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def stored_runs(place: str) -> Iterator[RunLine]:
    """Yield the runs below a storage address, from a single listing of all files."""
    root = place.rstrip("/") + "/"
    sizes: dict[str, int] = {}
    files: dict[str, set[str]] = {}
    for entry in storage.entries(place):
        name, _, rest = entry.uri.removeprefix(root).partition("/")
        sizes[name] = sizes.get(name, 0) + entry.size
        files.setdefault(name, set()).add(rest)
    for name, paths in files.items():
        if {"run.json", "status.json"} & paths:
            yield line_of_stored_run(storage.join(place, name), sizes[name], paths)


def line_of_stored_run(uri: str, size: int, paths: Collection[str]) -> RunLine:
    """Return the line of a run at an address; `paths` are its files relative to it."""
    line = line_of(uri, size)
    keep_reason = ""
    if "service.json" in paths:
        keep_reason = f"it was served; if it no longer is: --down {line.run_id} --storage"
    elif not {"run.json", "unchanged.json"} & set(paths):
        keep_reason = "it has no run.json"
    elif not line.has_ended:
        keep_reason = "it may be going on"
    return dataclasses.replace(line, served="service.json" in paths, kept=keep_reason)


def line_of(uri: str, size: int) -> RunLine:
    """Return a line with a run's state, gain and time; the caller sets `served` and `kept`."""
    folder = RunFolder(uri)
    line = RunLine(
        run_id=storage.name(uri),
        state="",
        has_ended=False,
        gain="",
        size=size,
        served=False,
        changed=None,
        kept="",
    )
    try:
        status = StatusRecord.find(folder.status) or StatusRecord()
        summary = SummaryRecord.find(folder.summary)
    except JecError as error:
        reason = " ".join(str(error).split())
        return dataclasses.replace(
            line, state=f"broken: {reason[:100]}", changed=change_time(uri, "")
        )
    if summary is not None and summary.time >= status.time:
        gain = summary.gain_percent.percent() if summary.gain_percent else ""
        when = change_time(uri, summary.time)
        return dataclasses.replace(
            line, state=summary.state, has_ended=True, gain=gain, changed=when
        )
    state = f"{status.step} {status.state}" if status.state else "without status.json"
    return dataclasses.replace(line, state=state, changed=change_time(uri, status.time))


def change_time(uri: str, record_time: str) -> datetime.datetime | None:
    """Return when a record was written: its own time, else the modification time of the folder.

    None if neither is known. `record_time` is in ISO 8601.
    """
    with contextlib.suppress(ValueError):
        time = datetime.datetime.fromisoformat(record_time)
        return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    if storage.is_local(uri):
        with contextlib.suppress(OSError):
            seconds = Path(local_path(uri)).stat().st_mtime
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return None


# ----------------------------------------------------------------------------------------- showing


def show(lines: Sequence[RunLine], place: str) -> int:
    """Print the runs as a table; return the exit code 0."""
    if not lines:
        print(f"no runs in {place}")
        return 0
    head = ("run", "changed", "size", "served", "gain", "state")
    rows = [head]
    for line in lines:
        when = line.changed.astimezone().strftime("%Y-%m-%d %H:%M") if line.changed else "–"
        served_text = "yes" if line.served else "no"
        rows.append(
            (
                line.run_id,
                when,
                space.size_text(line.size),
                served_text,
                line.gain or "–",
                line.state,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        # A folder's name may have control characters.
        text = "  ".join(cells).rstrip()
        print("".join(letter if letter.isprintable() else "?" for letter in text))
    total = space.size_text(sum(line.size for line in lines))
    print(f"{len(lines)} runs, {total}, in {place}")
    return 0


# ----------------------------------------------------------------------------------------- pruning


def prune(args: argparse.Namespace) -> int:
    """Remove old or large runs after asking; return 1 if one could not be removed, else 0.

    Raises InputError if the folder does not exist, or if there is no terminal to ask on.
    """
    candidates: list[RunLine] = []
    kept_runs: list[RunLine] = []
    for line in runs_of(args):
        if exceeds_limits(age_of(line), line.size, args):
            (kept_runs if line.kept else candidates).append(line)
    for line in kept_runs:
        print(f"kept: {line.run_id}, {space.size_text(line.size)}: {line.kept}")
    if not candidates:
        print(f"nothing to remove in {place_of(args)}")
        return 0
    show(candidates, place_of(args))
    if not (args.yes or confirm(len(candidates))):
        print("nothing was removed")
        return 1

    problems, freed_bytes = [], 0
    for line in candidates:
        # `remove` checks again: a run may have been resumed or served since the question.
        if reason := remove(line, args):
            problems.append(f"{line.run_id}: {reason}")
        else:
            freed_bytes += line.size
    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print(f"removed {len(candidates) - len(problems)} runs, {space.size_text(freed_bytes)}")
    return 1 if problems else 0


def age_of(line: RunLine) -> float | None:
    """Return the seconds since a run last changed; None if that is unknown."""
    if line.changed is None:
        return None
    return (datetime.datetime.now(datetime.UTC) - line.changed).total_seconds()


def exceeds_limits(age: float | None, size: float, args: argparse.Namespace) -> bool:
    """Return whether something is older than --older-than and larger than --larger-than.

    A limit that is not given does not apply. What has no known age is not older than any limit.

    Args:
        age: seconds.
        size: bytes.
        args: `older_than` in seconds and `larger_than` in bytes, or None.
    """
    if args.older_than is not None and (age is None or age <= args.older_than):
        return False
    return args.larger_than is None or size > args.larger_than


def confirm(number: int, what: str = "runs") -> bool:
    """Ask once on the terminal. Raises InputError if there is no terminal."""
    if not sys.stdin.isatty():
        raise InputError(
            f"removing {number} {what} needs your answer, and there is no terminal to ask on; to"
            " remove without asking, repeat the command with --yes"
        )
    return input(f"remove these {number} {what}? [y/N] ").strip().lower() in ("y", "yes")


def remove(line: RunLine, args: argparse.Namespace) -> str:
    """Remove a run; return why it was kept, empty if it is removed."""
    place = place_of(args)
    try:
        if storage.is_local(place):
            output = Path(local_path(place))
            current = line_of_local_run(output / line.run_id, living_runs(output))
            if current.kept:
                return current.kept
            remove_run(output, line.run_id)
        else:
            uri = storage.join(place, line.run_id)
            root = uri.rstrip("/") + "/"
            paths = {entry.uri.removeprefix(root) for entry in storage.entries(uri)}
            current = line_of_stored_run(uri, line.size, paths)
            if current.kept:
                return current.kept
            storage.delete(uri)
    except (JecError, OSError) as error:
        return str(error)
    return ""
