"""PyTorchJobs on a cluster: create or adopt them, watch them, and explain waits and failures."""

from __future__ import annotations

import time
from collections.abc import Sequence

from clusters.api import PYTORCHJOB
from clusters.kubernetes_objects import JOB_LABEL, REVISION_LABEL, Objects, belongs_to_trial, digest
from clusters.pods import Ending, PodDiagnostics
from clusters.protocol import RUN_LABEL, JobEnded, Manifest, Report
from clusters.reasons import is_true, message_of, name_of
from clusters.waiting import Wait
from common.errors import ClusterError, DeadlineError

# words of replicas_line, by the key of a replica status
REPLICA_WORDS = {"active": "running", "succeeded": "succeeded", "failed": "failed"}


class JobRun:
    """One PyTorchJob, from its creation to its end."""

    def __init__(
        self,
        objects: Objects,
        manifest: Manifest,
        *,
        patience: float,
        deadline: float,
        report: Report,
    ) -> None:
        """Prepare the run; nothing is sent yet. Times are in seconds."""
        self.name = name_of(manifest)
        self.reason = ""
        """Why it failed, in one line; else empty."""
        self.error: ClusterError | None = None
        """The error with the last lines of the pod that failed first; None if it has not failed."""
        self.wait = Wait(f"job {self.name}", deadline, report)
        self._objects = objects
        self._manifest = manifest
        self._report = report
        self._diagnostics = PodDiagnostics(
            objects.api,
            self.wait,
            JOB_LABEL,
            patience=patience,
            replicas=replicas_of(manifest["spec"]),
        )

    def submit(self) -> None:
        """Create the job, or adopt one of this run with this spec that runs or has succeeded.

        Any other job of this name is deleted and run again.
        """
        labels = self._manifest["metadata"]["labels"]
        labels[REVISION_LABEL] = digest(self._manifest["spec"])
        if self._objects.find(PYTORCHJOB, self.name, self.wait) is None:
            # Pods of a job that was deleted a moment ago may still write to its folder.
            self._objects.wait_for_dependents(
                PYTORCHJOB, self.name, self.wait, wait_for_algorithm=False
            )
        existing = self._objects.submit_with_owner(PYTORCHJOB, self._manifest, self.wait)
        stale = _staleness(existing, self._manifest) if existing else ""
        if stale:
            self._report(f"job {self.name} {stale} before; it is removed and run again")
            self._objects.remove([(PYTORCHJOB, self.name)], self.wait)
            self._objects.submit_with_owner(PYTORCHJOB, self._manifest, self.wait)

    def has_ended(self) -> bool:
        """Request the state of the job once and return whether it has ended.

        If it failed, `reason` and `error` are set.

        Raises:
            ClusterError: If it was deleted or can never start.
        """
        job = self._objects.existing(PYTORCHJOB, self.name, self.wait)
        pods = self._diagnostics.look([self.name])
        if is_true(job, "Failed"):
            self._diagnostics.settle(self.name)
            ending = self._diagnostics.ending(self.name)
            self.reason = ending.reason() if ending else message_of(job, "Failed")
            self.error = _failure(job, ending)
            return True
        if is_true(job, "Succeeded"):
            self._diagnostics.settle(self.name)
            self.wait.tell("state", f"job {self.name}: succeeded")
            self._objects.release(PYTORCHJOB, self.name, self.wait)
            return True
        if pods is not None:
            since = job["metadata"].get("creationTimestamp", "")
            self._diagnostics.explain(self.name, pods[self.name], since)
        self.wait.tell("state", f"job {self.name}: {replicas_line(job)}")
        return False


def run_job(
    objects: Objects, manifest: Manifest, *, patience: float, deadline: float, report: Report
) -> None:
    """Run a PyTorchJob to its end.

    Raises:
        ClusterError: If it failed.
        DeadlineError: At the deadline.
    """
    job = JobRun(objects, manifest, patience=patience, deadline=deadline, report=report)
    job.submit()
    while not job.has_ended():
        job.wait.sleep(objects.poll)
    if job.error:
        raise job.error


def run_jobs(
    objects: Objects,
    manifests: Sequence[Manifest],
    *,
    parallel: int,
    on_end: JobEnded,
    patience: float,
    deadline: float,
    report: Report,
) -> None:
    """Run several PyTorchJobs to their ends, `parallel` at a time, in their order.

    See clusters.protocol.Cluster.run_jobs.
    """
    end = time.monotonic() + deadline
    waiting = list(manifests)
    running: list[JobRun] = []
    while waiting or running:
        while waiting and len(running) < parallel:
            job = JobRun(
                objects,
                waiting.pop(0),
                patience=patience,
                deadline=end - time.monotonic(),
                report=report,
            )
            job.submit()
            running.append(job)
        for job in list(running):
            if job.has_ended():
                running.remove(job)
                if job.error:
                    report(str(job.error))
                on_end(job.name, job.reason)
        if running:
            running[0].wait.sleep(objects.poll)


def delete_unfinished(objects: Objects, run_id: str, wait: Wait) -> list[str]:
    """Delete the jobs of a run that have not ended, except those of trials, and wait for it.

    The job of a trial is deleted together with its trial.

    Returns:
        'Kind/name' of each deleted job.

    Raises:
        DeadlineError: If jobs remain at the deadline.
    """
    things = []
    for job in objects.api.list_objects(PYTORCHJOB, f"{RUN_LABEL}={run_id}", wait):
        is_over = is_true(job, "Succeeded") or is_true(job, "Failed")
        if not is_over and not belongs_to_trial(job):
            things.append((PYTORCHJOB, name_of(job)))
    return objects.remove(things, wait)


def _staleness(existing: Manifest, manifest: Manifest) -> str:
    """Return why an existing job does not match this manifest; empty if it does.

    A job without the revision label matches.
    """
    if is_true(existing, "Failed"):
        return "failed"
    ours = manifest["metadata"]["labels"][REVISION_LABEL]
    theirs = existing["metadata"].get("labels", {}).get(REVISION_LABEL, ours)
    return "" if theirs == ours else "did something else"


def _failure(job: Manifest, ending: Ending | None) -> ClusterError:
    """Return the error of a failed job, with the last lines of the pod that failed first."""
    name = name_of(job)
    message = message_of(job, "Failed")
    overdue = "active longer than specified deadline" in message
    error = DeadlineError if overdue else ClusterError
    if ending is None:
        return error(f"job {name} failed: {message} (its pods and their logs are gone)")
    return error(f"job {name} failed: {ending.reason()} ({message})\n{ending.text()}")


def replicas_of(spec: Manifest) -> int:
    """Return the number of pods of a PyTorchJob with this spec."""
    return sum(replica.get("replicas", 1) for replica in spec["pytorchReplicaSpecs"].values())


def replicas_line(job: Manifest) -> str:
    """Return the states of the replicas: 'Master: 1 running; Worker: 1 running, 1 succeeded'."""
    if is_true(job, "Suspended"):
        return "suspended, until a queue lets it start"
    roles = job.get("status", {}).get("replicaStatuses") or {}
    parts = []
    for role, counts in sorted(roles.items()):
        states = [f"{counts[key]} {word}" for key, word in REPLICA_WORDS.items() if counts.get(key)]
        if states:
            parts.append(f"{role}: {', '.join(states)}")
    return "; ".join(parts) or "not started yet"
