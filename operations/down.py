"""`pipeline.py --down RUN_ID`: list what a run left, ask once, remove it in the right order, say
what is left. Works twice.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from clusters import orphans
from common import storage
from common.errors import ClusterError, InputError, JecError
from operations import kubeflow_runs
from operations.status import local_processes
from operations.target import Target
from serving import triton

TERMINATION_SECONDS = 300.0  # for Kubeflow to end a run: its pods get a grace period each
POLL = 2.0


def down(target: Target, *, storage_too: bool, yes: bool) -> int:
    """The exit code: 0 if nothing of the run is left (that was to go), 1 if something is.

    Order: whoever runs it (or it would make things anew), processes, the cluster's objects, the
    folder last, because what still ran would write to it.
    """
    plan = _plan(target, storage_too)
    for line in target.unseen:
        print(f"not seen: {line}")
    if not plan and not (storage_too and target.storage_unseen):
        print(f"nothing of run {target.run_id} is left" + ("" if storage_too else _kept(target)))
        return 0
    print(f"of run {target.run_id} there is:\n" + "\n".join(f"  {line}" for line in plan))
    if not (yes or _confirmed(target.run_id)):
        print("nothing was removed")
        return 1
    problems = [
        problem for part in (_end_run, _end_processes, _remove_objects) for problem in part(target)
    ]
    if storage_too and target.storage_unseen:
        problems.append(f"the folder of results: {target.storage_unseen}")
    elif storage_too and not problems:
        problems += _remove_folder(target)
    elif storage_too:
        problems.append(
            f"{target.folder}: kept, because something of the run may still write to it"
        )
    for problem in problems:
        print(f"left: {problem}", file=sys.stderr)
    print(
        "done: something is left"
        if problems
        else f"run {target.run_id} is removed{'' if storage_too else _kept(target)}"
    )
    return 1 if problems else 0


def _plan(target: Target, storage_too: bool) -> list[str]:
    """What will be removed, in order, as lines."""
    lines = []
    if target.kfp_run is not None and not kubeflow_runs.has_ended(target.kfp_run):
        lines.append(
            f"the run itself, {str(target.kfp_run.state).lower()} on Kubeflow Pipelines: it is"
            " terminated"
        )
    lines += [f"process {pid}: {command[:100]}" for pid, command in local_processes(target).items()]
    lines += [f"{name} (this machine)" for name in _local_objects(target)]
    if target.operator is not None:
        lines += [
            f"{name} in namespace {target.operator.namespace}"
            for name in target.operator.find(target.run_id)
        ]
    if storage_too and target.folder:
        found = storage.entries(target.folder)
        lines.append(
            f"folder {target.folder}: {len(found)} files,"
            f" {sum(entry.size for entry in found) / 1e6:.1f} MB"
        )
    return lines


def _kept(target: Target) -> str:
    return (
        f"; its results stay in {target.folder} (--storage removes them as well)"
        if target.folder
        else ""
    )


def _confirmed(run_id: str) -> bool:
    """Ask once. Raises InputError where nobody can answer."""
    if not sys.stdin.isatty():
        raise InputError("nobody can be asked here: repeat it with --yes")
    return input(f"remove all of this of run {run_id}? [y/N] ").strip().lower() in ("y", "yes")


def _end_run(target: Target) -> list[str]:
    """Terminate the run on Kubeflow and wait until it is over: its launcher removes what it
    watches, and makes nothing anew.
    """
    if target.kfp_run is None or kubeflow_runs.has_ended(target.kfp_run):
        return []
    try:
        kubeflow_runs.terminate(target.server, target.kfp_id)
        ends = time.monotonic() + TERMINATION_SECONDS
        while not kubeflow_runs.has_ended(run := kubeflow_runs.get(target.server, target.kfp_id)):
            if time.monotonic() > ends:
                return [
                    f"the run on Kubeflow Pipelines is still {str(run.state).lower()}:"
                    f" {target.server.run_url(target.kfp_id)}"
                ]
            time.sleep(POLL)
    except ClusterError as error:
        return [str(error)]
    print("terminated on Kubeflow Pipelines", flush=True)
    return []


def _end_processes(target: Target) -> list[str]:
    """The command that runs it first, which ends its own children in order; then whatever carries
    the run's mark.
    """
    output = Path(target.args.output).resolve()
    if owner := orphans.owner(output / target.run_id / "local"):
        orphans.end([owner], grace=2 * orphans.GRACE)
        print(f"ended process {owner}", flush=True)
    _end_services(target)
    found = orphans.processes_of(target.run_id, output)
    # killed before its record was written: it has shared memory to clear
    for pid in filter(triton.is_running, found):
        triton.stop(pid)
    left = orphans.end(list(found))
    return [f"process {pid} does not end" for pid in left]


def _end_services(target: Target) -> None:
    """Model servers, by their own record, with their shared memory."""
    removed = _local_cluster(target).delete(target.run_id)
    for name in removed:
        print(f"removed {name} (this machine)", flush=True)


def _local_objects(target: Target) -> list[str]:
    folder = Path(target.args.output).resolve() / target.run_id / "local"
    places = (("services", "InferenceService"), ("jobs", "PyTorchJob"), ("search", "Experiment"))
    return [
        f"{kind}/{path.name}"
        for place, kind in places
        for path in sorted((folder / place).glob("*"))
    ]


def _local_cluster(target: Target):
    from clusters.local import LocalCluster

    return LocalCluster(target.args.output, servers=triton)


def _remove_objects(target: Target) -> list[str]:
    """The cluster's objects; what does not go within the deadline is named with its finalizers."""
    if target.operator is None:
        return []
    try:
        for name in target.operator.delete(target.run_id):
            print(f"removed {name} from namespace {target.operator.namespace}", flush=True)
    except JecError as error:
        return [str(error), *target.operator.find(target.run_id)]
    return []


def _remove_folder(target: Target) -> list[str]:
    """The run's results and, where they lay on S3, their copy beside the local logs.

    Decoded data is other runs' as well, and stays.
    """
    local = Path(target.args.output).resolve() / target.run_id
    try:
        removed = storage.delete(target.folder) if target.folder else 0
        if local.exists():
            removed += storage.delete(str(local))
    except JecError as error:
        return [f"{target.folder}: {error}"]
    latest = local.parent / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    print(f"removed {removed} files of {target.folder}", flush=True)
    return []
