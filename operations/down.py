"""`pipeline.py --down RUN_ID`: list what exists of a run, ask once, and remove it.

It prints what could not be removed, and can be repeated.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from clusters import orphans, run_lock
from common import storage
from common.errors import ClusterError, InputError, JecError
from operations.kubeflow_runs import KubeflowRun
from operations.status import local_processes
from operations.target import Target
from serving import server_folder, triton

TERMINATION_SECONDS = 300.0  # limit for Kubeflow to end a run: its pods get a grace period each
STEP_SECONDS = 10.0
"""So long after a termination no step still runs and creates objects (Argo 3.7.3: after 3 s)."""
POLL = 2.0
LOCAL_OBJECTS = (
    ("services", "InferenceService"),
    ("jobs", "PyTorchJob"),
    ("search", "Experiment"),
)
"""Folders below <run>/local, and the kind of object that each entry is."""


def down(target: Target, *, storage_too: bool, yes: bool) -> int:
    """Remove the run; return 0 if all that should go is removed, else 1.

    It is 1 as well if nothing was found, but no place could be asked.

    The order matters: first the run on Kubeflow, which would create objects again; then processes;
    then the cluster's objects; the folder last, because what still runs writes to it.
    """
    plan = plan_lines(target, storage_too)
    for line in target.unseen:
        print(f"not seen: {line}")
    remark = ""
    if target.folder and not storage_too:
        remark = f"; its results stay in {target.folder} (--storage removes them as well)"
    if not plan and target.is_unreachable:
        print(f"nothing was removed: {target.unreachable}")
        return 1
    if not plan and not (storage_too and target.storage_unseen):
        print(f"nothing of run {target.run_id} is left{remark}")
        return 0
    print(f"of run {target.run_id} there is:")
    for line in plan:
        print(f"  {line}")
    if not (yes or confirm(target.run_id)):
        print("nothing was removed")
        return 1

    problems = []
    run = target.kubeflow
    start = time.monotonic()
    if run is not None and not run.has_ended:
        if not run.is_terminated:
            problems += terminate(run)
        # The run needs a minute or more to end, most of it for `finish`. Wait for it if only
        # `finish` can remove the objects, or if it would write to a folder that is removed.
        if target.operator is None or storage_too:
            problems += wait_for_end(run)
    problems += end_processes(target)
    problems += remove_objects(target)
    if run is not None and not run.has_ended and not problems:
        time.sleep(max(0.0, start + STEP_SECONDS - time.monotonic()))
        problems += remove_objects(target)  # those that a step created while it was killed
        remark += "; on Kubeflow Pipelines finish still writes its summary"
    if storage_too:
        problems += remove_storage(target, in_use=bool(problems))
    if not problems:
        note_removal(target)

    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print("done: something is left" if problems else f"run {target.run_id} is removed{remark}")
    return 1 if problems else 0


def plan_lines(target: Target, storage_too: bool) -> list[str]:
    """Return a line for each thing that will be removed, in order."""
    lines = []
    run = target.kubeflow
    if run is not None and not (run.has_ended or run.is_terminated):
        state = run.state.lower()
        lines.append(f"the run itself, {state} on Kubeflow Pipelines: it is terminated")
    for pid, command in local_processes(target).items():
        lines.append(f"process {pid}: {command[:100]}")
    local = Path(target.args.output).resolve() / target.run_id / "local"
    for place, kind in LOCAL_OBJECTS:
        for path in sorted((local / place).glob("*")):
            lines.append(f"{kind}/{path.name} (this machine)")
    if target.operator is not None:
        for name in target.operator.find(target.run_id):
            lines.append(f"{name} in namespace {target.operator.namespace}")
    if storage_too and target.folder:
        count, size = count_and_size_of(target.folder)
        lines.append(f"folder {target.folder}: {count} files, {size / 1e6:.1f} MB")
    return lines


def count_and_size_of(folder: str) -> tuple[int, int]:
    """Return the number of files below a folder and their bytes; links are not followed."""
    if not storage.is_local(folder):
        entries = storage.entries(folder)
        return len(entries), sum(entry.size for entry in entries)
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return len(files), sum(file.lstat().st_size for file in files)


def was_removed(target: Target) -> bool:
    """Return whether an earlier --down with the same --output removed the run."""
    path = removals(target)
    return path.is_file() and target.run_id in path.read_text(errors="replace").split()


def note_removal(target: Target) -> None:
    """Record that the run was removed, so that a repeated --down succeeds."""
    path = removals(target)
    if path.parent.is_dir() and not was_removed(target):
        with contextlib.suppress(OSError), path.open("a") as file:
            file.write(f"{target.run_id}\n")


def removals(target: Target) -> Path:
    """Return the file that lists the ids of removed runs."""
    return Path(target.args.output).resolve() / ".removed"


def confirm(run_id: str) -> bool:
    """Ask once on the terminal. Raises InputError if there is no terminal."""
    if not sys.stdin.isatty():
        raise InputError(
            f"removing run {run_id} needs your answer, and there is no terminal to ask on; to"
            " remove without asking, repeat the command with --yes"
        )
    return input(f"remove all of this of run {run_id}? [y/N] ").strip().lower() in ("y", "yes")


def terminate(run: KubeflowRun) -> list[str]:
    """Terminate the run on Kubeflow; return the problems."""
    try:
        run.terminate()
        run.refresh()
    except ClusterError as error:
        return [str(error)]
    print("terminated on Kubeflow Pipelines", flush=True)
    return []


def wait_for_end(run: KubeflowRun) -> list[str]:
    """Wait up to TERMINATION_SECONDS until a terminated run has ended; return the problems."""
    deadline = time.monotonic() + TERMINATION_SECONDS
    if not run.has_ended:
        print("waiting: Kubeflow Pipelines ends the run, its step finish cleans up", flush=True)
    try:
        while not run.has_ended:
            if time.monotonic() > deadline:
                return [f"the run on Kubeflow Pipelines is still {run.state.lower()}: {run.url}"]
            time.sleep(POLL)
            run.refresh()
    except ClusterError as error:
        return [str(error)]
    return []


def end_processes(target: Target) -> list[str]:
    """End the run's processes on this machine; return a line for each that does not end."""
    from clusters.local import LocalCluster

    output = Path(target.args.output).resolve()
    # First the process of `pipeline.py`, which ends its own children in order.
    if owner := run_lock.owner(output / target.run_id / "local"):
        orphans.end([owner], grace=2 * orphans.GRACE)
        print(f"ended process {owner}", flush=True)
    # Model servers have a record of their own and shared memory to free.
    # Any: mypy also compares names of parameters that are only passed by position.
    servers: Any = triton
    for name in LocalCluster(target.args.output, servers=servers).delete(target.run_id):
        print(f"removed {name} (this machine)", flush=True)
    # All other processes have the run's id in their environment.
    processes = orphans.processes_of(target.run_id, output)
    for pid in processes:
        if triton.is_running(pid):
            # a model server without a record, because its starter was killed; free its memory
            triton.stop(pid)
    remaining = orphans.end(list(processes))
    server_folder.remove_abandoned()
    return [f"process {pid} does not end" for pid in remaining]


def remove_objects(target: Target) -> list[str]:
    """Remove the cluster's objects; return those left at the deadline, with their finalizers."""
    if target.operator is None:
        return []
    try:
        for name in target.operator.delete(target.run_id, report_wait):
            print(f"removed {name} from namespace {target.operator.namespace}", flush=True)
    except JecError as error:
        return [str(error), *target.operator.find(target.run_id)]
    return []


def report_wait(line: str) -> None:
    """Print a line about what the removal waits for."""
    print(f"waiting: {line}", flush=True)


def remove_storage(target: Target, *, in_use: bool) -> list[str]:
    """Remove the run's results and, if they were on S3, the local copy; return what is left.

    Decoded jets stay, because other runs use them too. `in_use`: something of the run may still
    write to the folder, so keep it.
    """
    if target.storage_unseen:
        return [f"the folder of results: {target.storage_unseen}"]
    if in_use:
        return [f"{target.folder}: kept, because something of the run may still write to it"]
    local = Path(target.args.output).resolve() / target.run_id
    if storage.is_local(target.folder) and Path(target.folder).is_symlink():
        return [f"{target.folder}: kept, because it is a link to a folder elsewhere"]
    try:
        file_count = storage.delete(target.folder) if target.folder else 0
        if local.exists():
            file_count += storage.delete(str(local))
    except JecError as error:
        return [f"{target.folder}: {error}"]
    # Remove a dangling link to the newest run.
    latest = local.parent / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    print(f"removed {file_count} files of {target.folder}", flush=True)
    return []
