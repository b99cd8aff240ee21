"""`pipeline.py --list` and `--prune`: the runs of a folder or a storage address, and old ones gone.

The list needs two small files of each run at most, and one listing of its files, so that it is
quick on a folder with thousands of them.
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
from common.cli import SIZE_UNITS
from common.config import AUTO
from common.errors import InputError, JecError
from common.layout import RunFolder
from common.records import ServiceRecord, StatusRecord, SummaryRecord
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
"""So long a run that goes on does not leave its records as they are, on one machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunLine:
    """A run as the list shows it."""

    run_id: str
    state: str
    """How it ended, the step that it is in, or `broken` with the reason."""
    has_ended: bool
    """Whether its records say how it ended, and nothing was written since."""
    gain: str
    size: int
    """Bytes of all its files."""
    served: bool
    changed: datetime.datetime | None
    """When its records were written last; None where nothing says so."""
    kept: str
    """Why --prune never removes it; empty if it may."""


def act(args: argparse.Namespace) -> int:
    """Do what the flags ask for; return the exit code."""
    if args.list and args.json:
        runs = [dataclasses.asdict(one) for one in runs_of(args)]
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
    """The place whose runs are meant: --s3-bucket where it was typed, else --output."""
    return str(args.output.resolve()) if args.s3_bucket == AUTO else str(args.s3_bucket)


def runs_of(args: argparse.Namespace) -> list[RunLine]:
    """All runs there, those that changed last first; broken ones without a time last."""
    place = place_of(args)
    if storage.is_local(place):
        lines = list(local_runs(Path(local_path(place))))
    else:
        lines = list(stored_runs(place))
    undated = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return sorted(lines, key=lambda one: (one.changed or undated, one.run_id), reverse=True)


# ------------------------------------------------------------------------------- reading the runs


def local_runs(output: Path) -> Iterator[RunLine]:
    """The runs below a folder. Links, such as `latest`, and folders of other things are left out.

    Raises InputError where there is no such folder.
    """
    if not output.is_dir():
        raise InputError(f"{output}: no such folder; give the one of your runs with --output DIR")
    living = living_runs(output)
    with os.scandir(output) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        folder = output / name
        if (folder / "run.json").exists() or (folder / "status.json").exists():
            yield local_run(folder, living)


def local_run(folder: Path, living: set[str]) -> RunLine:
    """A run of this machine."""
    going_on = is_going_on(folder, living)
    line = line_of(str(folder), size_of(folder))
    kept, served = why_not_own(folder), False
    if not kept and recorded_id(folder) is None:
        kept = "it has no run.json, or one that cannot be read"
    if line.state.endswith(RUNNING) and not going_on:
        line = dataclasses.replace(line, state=f"stopped in {line.state.removesuffix(RUNNING)}")
    try:
        service = ServiceRecord.find(RunFolder(str(folder)).service)
        # A server of this machine is one of the run's processes; a cluster's is not seen here.
        served = service is not None and (service.kind != "triton" or folder.name in living)
    except JecError:
        kept = kept or "its service.json cannot be read"
    if served:
        kept = "it is served"
    elif going_on:
        kept = "it is going on"
    elif not line.has_ended and not kept and may_run_elsewhere(folder, line):
        kept = "it may be going on on another machine"
    return dataclasses.replace(line, served=served, kept=kept)


def may_run_elsewhere(folder: Path, line: RunLine) -> bool:
    """Whether another machine may run a run of this folder, which several may share.

    So it is unless it ran on one machine, whose process is noted, and wrote nothing for a day.
    """
    marks = (run_lock.LOCK, run_lock.OWNER)  # runs of an earlier version have the second alone
    ran_on_one_machine = any((folder / "local" / mark).exists() for mark in marks)
    now = datetime.datetime.now(datetime.UTC)
    is_quiet = line.changed is not None and now - line.changed > QUIET
    return not (ran_on_one_machine and is_quiet)


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder; no link is followed."""
    total, folders = 0, [str(folder)]
    while folders:
        # What is removed meanwhile has no size.
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def stored_runs(place: str) -> Iterator[RunLine]:
    """The runs below a storage address, by one listing of all that is there."""
    root = place.rstrip("/") + "/"
    sizes: dict[str, int] = {}
    files: dict[str, set[str]] = {}
    for entry in storage.entries(place):
        name, _, rest = entry.uri.removeprefix(root).partition("/")
        sizes[name] = sizes.get(name, 0) + entry.size
        files.setdefault(name, set()).add(rest)
    for name, paths in files.items():
        if {"run.json", "status.json"} & paths:
            yield stored_run(storage.join(place, name), sizes[name], paths)


def stored_run(uri: str, size: int, paths: Collection[str]) -> RunLine:
    """A run of a storage address, whose files have these paths below it."""
    line = line_of(uri, size)
    kept = ""
    if "service.json" in paths:
        kept = f"it was served; if it no longer is: --down {line.run_id} --storage"
    elif not {"run.json", "unchanged.json"} & set(paths):
        kept = "it has no run.json"
    elif not line.has_ended:
        kept = "it may be going on"
    return dataclasses.replace(line, served="service.json" in paths, kept=kept)


def line_of(uri: str, size: int) -> RunLine:
    """State, gain and time of a run by its records; `served` and `kept` are left to the caller."""
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
        return dataclasses.replace(line, state=f"broken: {reason[:100]}", changed=changed(uri, ""))
    if summary is not None and summary.time >= status.time:
        gain = summary.gain_percent.percent() if summary.gain_percent else ""
        when = changed(uri, summary.time)
        return dataclasses.replace(
            line, state=summary.state, has_ended=True, gain=gain, changed=when
        )
    state = f"{status.step} {status.state}" if status.state else "without status.json"
    return dataclasses.replace(line, state=state, changed=changed(uri, status.time))


def changed(uri: str, written: str) -> datetime.datetime | None:
    """When a record was written: by its own time, else by that of the run's folder on a disk."""
    with contextlib.suppress(ValueError):
        time = datetime.datetime.fromisoformat(written)
        return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    if storage.is_local(uri):
        with contextlib.suppress(OSError):
            seconds = Path(local_path(uri)).stat().st_mtime
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return None


# ----------------------------------------------------------------------------------------- showing


def show(lines: Sequence[RunLine], place: str) -> int:
    """Print the runs as a table; the exit code is 0."""
    if not lines:
        print(f"no runs in {place}")
        return 0
    head = ("run", "changed", "size", "served", "gain", "state")
    rows = [head]
    for one in lines:
        when = one.changed.astimezone().strftime("%Y-%m-%d %H:%M") if one.changed else "–"
        served = "yes" if one.served else "no"
        rows.append((one.run_id, when, size_text(one.size), served, one.gain or "–", one.state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        # A folder may be called anything.
        line = "  ".join(cells).rstrip()
        print("".join(letter if letter.isprintable() else "?" for letter in line))
    total = size_text(sum(one.size for one in lines))
    print(f"{len(lines)} runs, {total}, in {place}")
    return 0


def size_text(size: float) -> str:
    """Bytes with three digits and their unit."""
    for letter, unit in reversed(SIZE_UNITS.items()):
        if size >= unit:
            return f"{size / unit:.3g} {letter}B"
    return f"{size:.0f} B"


# ----------------------------------------------------------------------------------------- pruning


def prune(args: argparse.Namespace) -> int:
    """Remove old or large runs after asking; the exit code is 1 if one could not be removed."""
    chosen: list[RunLine] = []
    kept: list[RunLine] = []
    for one in runs_of(args):
        if matches(one, args.older_than, args.larger_than):
            (kept if one.kept else chosen).append(one)
    for one in kept:
        print(f"kept: {one.run_id}, {size_text(one.size)}: {one.kept}")
    if not chosen:
        print(f"nothing to remove in {place_of(args)}")
        return 0
    show(chosen, place_of(args))
    if not (args.yes or confirmed(len(chosen))):
        print("nothing was removed")
        return 1

    problems, freed = [], 0
    for one in chosen:
        # A run may have been resumed or served while the question was open.
        if reason := remove(one, args):
            problems.append(f"{one.run_id}: {reason}")
        else:
            freed += one.size
    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print(f"removed {len(chosen) - len(problems)} runs, {size_text(freed)}")
    return 1 if problems else 0


def matches(one: RunLine, older_than: float | None, larger_than: float | None) -> bool:
    """Whether a run is as old (seconds) and as large (bytes) as asked for, where that is given."""
    if older_than is not None:
        if one.changed is None:
            return False
        age = datetime.datetime.now(datetime.UTC) - one.changed
        if age.total_seconds() <= older_than:
            return False
    return larger_than is None or one.size > larger_than


def confirmed(number: int, what: str = "runs") -> bool:
    """Ask once. Raises InputError where nobody can answer."""
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here: repeat it with --yes")
    return input(f"remove these {number} {what}? [y/N] ").strip().lower() in ("y", "yes")


def remove(one: RunLine, args: argparse.Namespace) -> str:
    """Remove a run; why it was left, empty if it is gone."""
    place = place_of(args)
    try:
        if storage.is_local(place):
            output = Path(local_path(place))
            now = local_run(output / one.run_id, living_runs(output))
            if now.kept:
                return now.kept
            remove_run(output, one.run_id)
        else:
            uri = storage.join(place, one.run_id)
            root = uri.rstrip("/") + "/"
            paths = {entry.uri.removeprefix(root) for entry in storage.entries(uri)}
            now = stored_run(uri, one.size, paths)
            if now.kept:
                return now.kept
            storage.delete(uri)
    except (JecError, OSError) as error:
        return str(error)
    return ""
