"""`pipeline.py --down RUN_ID`: list what a run left, ask once, remove it, say what is left.

It works twice.
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

TERMINATION_SECONDS = 300.0  # for Kubeflow to end a run: its pods get a grace period each
STEP_SECONDS = 10.0
"""After a termination no step lives any more, and makes anything (seen with Argo 3.7.3: 3 s)."""
POLL = 2.0
LOCAL_OBJECTS = (
    ("services", "InferenceService"),
    ("jobs", "PyTorchJob"),
    ("search", "Experiment"),
)
"""Folders below <run>/local, and the kind of object that each entry is."""


def down(target: Target, *, storage_too: bool, yes: bool) -> int:
    """Return the exit code: 0 if nothing of the run is left (that was to go), 1 if something is.

    Order: whatever runs it (or it would make things anew), processes, the cluster's objects, the
    folder last, because what still ran would write to it.
    """
    plan = plan_lines(target, storage_too)
    for line in target.unseen:
        print(f"not seen: {line}")
    kept = ""
    if target.folder and not storage_too:
        kept = f"; its results stay in {target.folder} (--storage removes them as well)"
    if not plan and not (storage_too and target.storage_unseen):
        print(f"nothing of run {target.run_id} is left{kept}")
        return 0
    print(f"of run {target.run_id} there is:")
    for line in plan:
        print(f"  {line}")
    if not (yes or confirmed(target.run_id)):
        print("nothing was removed")
        return 1

    problems = []
    run = target.kubeflow
    began = time.monotonic()
    if run is not None and not run.has_ended:
        if not run.is_terminated:
            problems += terminate(run)
        # The end takes a minute or more, most of it for `finish`. It has to be awaited where only
        # `finish` can remove the objects, and where it would write to a folder that goes.
        if target.operator is None or storage_too:
            problems += wait_for_end(run)
    problems += end_processes(target)
    problems += remove_objects(target)
    if run is not None and not run.has_ended and not problems:
        time.sleep(max(0.0, began + STEP_SECONDS - time.monotonic()))
        problems += remove_objects(target)  # what a step made while it was killed
        kept += "; on Kubeflow Pipelines finish still writes its summary"
    if storage_too:
        problems += remove_storage(target, in_use=bool(problems))
    if not problems:
        note_removal(target)

    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print("done: something is left" if problems else f"run {target.run_id} is removed{kept}")
    return 1 if problems else 0


def plan_lines(target: Target, storage_too: bool) -> list[str]:
    """Return what will be removed, in order."""
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
        count, size = size_of(target.folder)
        lines.append(f"folder {target.folder}: {count} files, {size / 1e6:.1f} MB")
    return lines


def size_of(folder: str) -> tuple[int, int]:
    """Files below a folder and their bytes. A link counts as itself: what it leads to stays."""
    if not storage.is_local(folder):
        entries = storage.entries(folder)
        return len(entries), sum(entry.size for entry in entries)
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    return len(files), sum(file.lstat().st_size for file in files)


def was_removed(target: Target) -> bool:
    """Whether an earlier --down from this folder of runs removed the run."""
    path = removals(target)
    return path.is_file() and target.run_id in path.read_text(errors="replace").split()


def note_removal(target: Target) -> None:
    """Remember that the run was removed, so that a repeated --down finds nothing wrong."""
    path = removals(target)
    if path.parent.is_dir() and not was_removed(target):
        with contextlib.suppress(OSError), path.open("a") as file:
            file.write(f"{target.run_id}\n")


def removals(target: Target) -> Path:
    """Folder in which removed runs are noted."""
    return Path(target.args.output).resolve() / ".removed"


def confirmed(run_id: str) -> bool:
    """Ask once. Raises InputError where nobody can answer."""
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here: repeat it with --yes")
    return input(f"remove all of this of run {run_id}? [y/N] ").strip().lower() in ("y", "yes")


def terminate(run: KubeflowRun) -> list[str]:
    """Terminate the run on Kubeflow; return what went wrong."""
    try:
        run.terminate()
        run.refresh()
    except ClusterError as error:
        return [str(error)]
    print("terminated on Kubeflow Pipelines", flush=True)
    return []


def wait_for_end(run: KubeflowRun) -> list[str]:
    """Wait until a terminated run has ended; return what went wrong."""
    ends = time.monotonic() + TERMINATION_SECONDS
    if not run.has_ended:
        print("waiting: Kubeflow Pipelines ends the run, and its finish cleans up", flush=True)
    try:
        while not run.has_ended:
            if time.monotonic() > ends:
                return [f"the run on Kubeflow Pipelines is still {run.state.lower()}: {run.url}"]
            time.sleep(POLL)
            run.refresh()
    except ClusterError as error:
        return [str(error)]
    return []


def end_processes(target: Target) -> list[str]:
    """End the run's processes on this machine; return those that do not end."""
    from clusters.local import LocalCluster

    output = Path(target.args.output).resolve()
    # The command that runs it comes first: it ends its own children in order.
    if owner := run_lock.owner(output / target.run_id / "local"):
        orphans.end([owner], grace=2 * orphans.GRACE)
        print(f"ended process {owner}", flush=True)
    # Model servers are known by their own record, with their shared memory.
    # Any, because mypy compares the names of parameters that are passed by position alone.
    servers: Any = triton
    for name in LocalCluster(target.args.output, servers=servers).delete(target.run_id):
        print(f"removed {name} (this machine)", flush=True)
    # The rest carries the run's id in its environment.
    processes = orphans.processes_of(target.run_id, output)
    for pid in processes:
        if triton.is_running(pid):
            # killed before its record was written: it has shared memory to clear
            triton.stop(pid)
    left = orphans.end(list(processes))
    server_folder.remove_abandoned()
    return [f"process {pid} does not end" for pid in left]


def remove_objects(target: Target) -> list[str]:
    """Remove the cluster's objects; return what is left after the deadline, with its finalizers."""
    if target.operator is None:
        return []
    try:
        for name in target.operator.delete(target.run_id, report_wait):
            print(f"removed {name} from namespace {target.operator.namespace}", flush=True)
    except JecError as error:
        return [str(error), *target.operator.find(target.run_id)]
    return []


def report_wait(line: str) -> None:
    """Print what is waited for."""
    print(f"waiting: {line}", flush=True)


def remove_storage(target: Target, *, in_use: bool) -> list[str]:
    """Remove the run's results and, where they lay on S3, the local copy; return what is left.

    Decoded data belongs to other runs as well, and stays.
    """
    if target.storage_unseen:
        return [f"the folder of results: {target.storage_unseen}"]
    if in_use:
        return [f"{target.folder}: kept, because something of the run may still write to it"]
    local = Path(target.args.output).resolve() / target.run_id
    if storage.is_local(target.folder) and Path(target.folder).is_symlink():
        return [f"{target.folder}: kept, because it is a link to a folder elsewhere"]
    try:
        removed = storage.delete(target.folder) if target.folder else 0
        if local.exists():
            removed += storage.delete(str(local))
    except JecError as error:
        return [f"{target.folder}: {error}"]
    # The link to the newest run must not lead to a folder that is gone.
    latest = local.parent / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    print(f"removed {removed} files of {target.folder}", flush=True)
    return []
