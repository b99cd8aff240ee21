"""The protocol of backends that run manifests, and the dataclasses of their results.

A backend takes Kubernetes objects as plain dicts and knows nothing about jets. Each wait has a
deadline in seconds, reports its progress to a callback, and ends in one of three ways: with the
result, with ClusterError and the reason of a failure, or with DeadlineError and what was waited
for. If an object with the same name and run id exists already, the backend adopts it, so that a
step that was killed and restarted continues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from common.records import Trial

RUN_LABEL = "jec/run-id"  # label of all objects and pods of a run; `delete` finds them by it
STEP_LABEL = "jec/step"
USER_LABEL = "jec/user"
KFP_POD = "KFP_POD_NAME"
"""Environment variable with the name of a step's own pod; KFP sets it."""

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one."""

Report = Callable[[str], None]
"""Called with one line of text for each change."""

JobEnded = Callable[[str, str], None]
"""Called with the name of a job that has ended and the reason of its failure, empty if none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """All trials of a successful experiment, and the name of the best one by its objective."""

    name: str
    trials: list[Trial]
    optimal: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A deployed inference service that reported ready; its answers are not checked yet."""

    name: str
    url: str
    """Base of the Open Inference Protocol's REST paths: `<url>/v2/models/<name>/infer`."""
    kind: str
    """The server: 'kserve' on a cluster, 'triton' or 'kserve-server' on one machine."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What is needed to stop it (pid on one machine)."""
    certain: bool = True
    """False if the previous model may still answer, because its pods may not be listed."""
    is_running: Callable[[], bool] = lambda: True
    """Returns False if the server is known to have ended by itself."""


Check = Callable[[Service], None]
"""Called with a service that is ready; raises JecError if its answers are wrong."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """How a step ended that could not record it itself, in the words of status.json."""

    state: str
    """interrupted or failed."""
    reason: str
    task: str = ""
    """Task of the pipeline that ended, if it is not the step of the question."""


class Cluster(Protocol):
    """A backend that runs manifests.

    `report` gets one line a change. Deadlines are seconds from the call.
    """

    resumes: bool
    """Whether an interrupted experiment can resume from what this backend stores.

    If not, a step that is told to stop removes the experiment.
    """

    def run_experiment(
        self, manifest: Manifest, *, deadline: float, report: Report
    ) -> ExperimentResult:
        """Run a Katib Experiment to its end.

        An experiment of this run that exists already continues, with more trials if the manifest
        has more.

        Raises:
            ClusterError: If it failed (failed trials >= maxFailedTrialCount, or no trial
                succeeded).
            DeadlineError: At the deadline.
        """

    def can_continue(self, name: str) -> bool:
        """Return whether an experiment of this name exists and accepts further trials."""

    def experiments(self, run_id: str) -> dict[str, dict[str, str]]:
        """Return the annotations of the run's experiments that have not failed, newest first."""

    def run_job(self, manifest: Manifest, *, deadline: float, report: Report) -> None:
        """Run a PyTorchJob to its end.

        Raises:
            ClusterError: If it failed, with the last log lines of the failed replica.
            DeadlineError: At the deadline.
        """

    def run_jobs(
        self,
        manifests: Sequence[Manifest],
        *,
        parallel: int,
        on_end: JobEnded,
        deadline: float,
        report: Report,
    ) -> None:
        """Run several PyTorchJobs to their ends, in their order.

        A job that failed is reported with its last log lines, and the others continue.

        Args:
            manifests: The jobs.
            parallel: How many run at a time, at least 1.
            on_end: Called for each job that has ended; its exceptions pass through.
            deadline: Seconds until all must have ended.
            report: Called with each line of progress.

        Raises:
            ClusterError: If a job was deleted or can never start.
            DeadlineError: At the deadline.
        """

    def deploy(
        self, manifest: Manifest, *, check: Check, backup: str, deadline: float, report: Report
    ) -> Service:
        """Create or update an InferenceService and wait until it is ready and `check` passes.

        If it does not become ready, or `check` raises, the backend restores the previous model.

        Args:
            manifest: The InferenceService.
            check: Called with the service that is ready.
            backup: Address of a file in which the backend stores the previous service, so that a
                step that was killed and restarted can still restore it.
            deadline: Seconds for each service that must become ready.
            report: Called with each line of progress.

        Raises:
            ClusterError: If the service cannot become ready.
            DeadlineError: At the deadline.
            JecError: The error of `check`, with the state of the service.
        """

    def delete_experiment(self, name: str) -> None:
        """Delete an Experiment and its trials; no error if there is none."""

    def delete_job(self, name: str) -> None:
        """Delete a PyTorchJob; no error if there is none."""

    def delete(self, run_id: str) -> list[str]:
        """Delete all objects with the label of the run; no error if there are none.

        Returns:
            'Kind/name' of each deleted object.
        """


def run_id_of(manifest: Manifest) -> str:
    """Return the run id from the labels of a manifest.

    Raises:
        KeyError: If it has none, which is a bug of the code that made it.
    """
    run_id: str = manifest["metadata"]["labels"][RUN_LABEL]
    return run_id
