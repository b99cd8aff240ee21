"""A PyTorchJob on a cluster: submit or adopt it, watch it, explain what waits, and its end."""

from __future__ import annotations

from clusters.api import PYTORCHJOB
from clusters.kubernetes_objects import JOB_LABEL, REVISION_LABEL, Objects, belongs_to_trial, digest
from clusters.pods import PodDiagnostics
from clusters.protocol import RUN_LABEL, Manifest, Report
from clusters.reasons import is_true, message_of, name_of
from clusters.waiting import Wait
from common.errors import ClusterError, DeadlineError

# words of replicas_line, by the key of a replica status
REPLICA_WORDS = {"active": "running", "succeeded": "succeeded", "failed": "failed"}


def run_job(
    objects: Objects, manifest: Manifest, *, patience: float, deadline: float, report: Report
) -> None:
    """Run a PyTorchJob to its end.

    A job of this run and this spec that runs or has succeeded is adopted. Any other job of this
    name is removed and run again.
    """
    name = name_of(manifest)
    wait = Wait(f"job {name}", deadline, report)
    diagnostics = PodDiagnostics(
        objects.api, wait, JOB_LABEL, patience=patience, replicas=replicas_of(manifest["spec"])
    )
    _submit(objects, manifest, wait, report)
    while True:
        job = objects.existing(PYTORCHJOB, name, wait)
        pods = diagnostics.look([name])
        if is_true(job, "Failed"):
            raise _failure(job, diagnostics)
        if is_true(job, "Succeeded"):
            wait.tell("state", f"job {name}: succeeded")
            objects.release(PYTORCHJOB, name, wait)
            return
        if pods is not None:
            diagnostics.explain(name, pods[name], job["metadata"].get("creationTimestamp", ""))
        wait.tell("state", f"job {name}: {replicas_line(job)}")
        wait.sleep(objects.poll)


def delete_unfinished(objects: Objects, run_id: str, wait: Wait) -> list[str]:
    """Remove a run's own jobs that have not ended; a trial's job goes with its trial.

    Waits until they are gone. Returns 'Kind/name' of what was removed. Raises DeadlineError.
    """
    things = []
    for job in objects.api.list_objects(PYTORCHJOB, f"{RUN_LABEL}={run_id}", wait):
        ended = is_true(job, "Succeeded") or is_true(job, "Failed")
        if not ended and not belongs_to_trial(job):
            things.append((PYTORCHJOB, name_of(job)))
    return objects.remove(things, wait)


def _submit(objects: Objects, manifest: Manifest, wait: Wait, report: Report) -> None:
    name = name_of(manifest)
    manifest["metadata"]["labels"][REVISION_LABEL] = digest(manifest["spec"])
    existing = objects.submit_owned(PYTORCHJOB, manifest, wait)
    stale = _staleness(existing, manifest) if existing else ""
    if stale:
        report(f"job {name} {stale} before; it is removed and run again")
        objects.remove([(PYTORCHJOB, name)], wait)
        objects.submit_owned(PYTORCHJOB, manifest, wait)


def _staleness(existing: Manifest, manifest: Manifest) -> str:
    """Why an existing job does not stand for this manifest; empty if it does.

    A job without the revision label is adopted.
    """
    if is_true(existing, "Failed"):
        return "failed"
    ours = manifest["metadata"]["labels"][REVISION_LABEL]
    theirs = existing["metadata"].get("labels", {}).get(REVISION_LABEL, ours)
    return "" if theirs == ours else "did something else"


def _failure(job: Manifest, diagnostics: PodDiagnostics) -> ClusterError:
    """The error of a failed job, with the last lines of the pod that failed first."""
    name = name_of(job)
    message = message_of(job, "Failed")
    overdue = "active longer than specified deadline" in message
    error = DeadlineError if overdue else ClusterError
    ending = diagnostics.ending(name)
    if ending is None:
        return error(
            f"job {name} failed: {message} (its pods are gone, and nothing is known of their last"
            " lines)"
        )
    return error(f"job {name} failed: {ending.reason()} ({message})\n{ending.text()}")


def replicas_of(spec: Manifest) -> int:
    """The number of pods that a PyTorchJob of this spec has."""
    return sum(replica.get("replicas", 1) for replica in spec["pytorchReplicaSpecs"].values())


def replicas_line(job: Manifest) -> str:
    """'Master: 1 running; Worker: 1 running, 1 succeeded', or that nothing has started."""
    if is_true(job, "Suspended"):
        return "suspended, until a queue lets it start"
    roles = job.get("status", {}).get("replicaStatuses") or {}
    parts = []
    for role, counts in sorted(roles.items()):
        states = [f"{counts[key]} {word}" for key, word in REPLICA_WORDS.items() if counts.get(key)]
        if states:
            parts.append(f"{role}: {', '.join(states)}")
    return "; ".join(parts) or "not started yet"
