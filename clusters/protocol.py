"""The protocol of the backends that run manifests, and the dataclasses of their answers.

A backend takes Kubernetes objects as plain dicts and knows nothing of jets. Every wait has a
deadline in seconds, reports its progress to a callback, and ends in one of three ways: the answer,
ClusterError with the reason of what failed, or DeadlineError with what was waited for. An object
that exists already under the same name and run id is adopted, not made anew, so that a step that
was killed and started again continues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from common.records import Trial

RUN_LABEL = "jec/run-id"  # on every object and every pod; `delete` finds things by it
STEP_LABEL = "jec/step"
USER_LABEL = "jec/user"
KFP_POD = "KFP_POD_NAME"
"""The variable that names a step's own pod. KFP sets it, and an exit handler follows the step."""

Manifest = dict[str, Any]
"""A Kubernetes object, or a part of one."""

Report = Callable[[str], None]
"""Called with one readable line whenever something changed."""

JobEnded = Callable[[str, str], None]
"""Called with the name of a job that has ended, and why it failed; empty if it succeeded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentResult:
    """All trials of an experiment that succeeded, and the name of the best one by its objective."""

    name: str
    trials: list[Trial]
    optimal: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A deployed inference service that reported ready (which is not yet the golden answer)."""

    name: str
    url: str
    """Base of the Open Inference Protocol's REST paths: `<url>/v2/models/<name>/infer`."""
    kind: str
    """The server: 'kserve' on a cluster, 'triton' or 'kserve-server' on one machine."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the owner needs to end it (pid on one machine)."""
    certain: bool = True
    """False where the former model may still answer, because its pods may not be seen."""
    is_running: Callable[[], bool] = lambda: True
    """Whether its server has not ended by itself, as far as that is known."""


Check = Callable[[Service], None]
"""Called with a service that is ready; raises JecError where it does not serve as it should."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """How a step ended that could not say so itself, in the words of status.json."""

    state: str
    """interrupted or failed."""
    reason: str
    task: str = ""
    """The task of the pipeline that ended so, if it is not the step that was asked about."""


class Cluster(Protocol):
    """A backend that runs manifests.

    `report` gets one line a change. Deadlines are seconds from the call.
    """

    resumes: bool
    """Whether an interrupted experiment resumes from what this backend keeps of it.

    Where it does not, a launcher that is told to stop removes the experiment.
    """

    def run_experiment(
        self, manifest: Manifest, *, deadline: float, report: Report
    ) -> ExperimentResult:
        """Run a Katib Experiment to its end.

        An experiment of this run that exists continues, with more trials where more are asked now.
        Raises ClusterError if it failed (failed trials >= maxFailedTrialCount, or no trial
        succeeded) and DeadlineError.
        """

    def can_continue(self, name: str) -> bool:
        """Whether an experiment of this name exists and takes more trials than it has had."""

    def experiments(self, run_id: str) -> dict[str, dict[str, str]]:
        """The run's experiments that exist and have not failed: name -> its annotations.

        The newest comes first.
        """

    def run_job(self, manifest: Manifest, *, deadline: float, report: Report) -> None:
        """Run a PyTorchJob to its end.

        Raises ClusterError with the last log lines of the replica that failed, and DeadlineError.
        """

    def run_jobs(
        self,
        manifests: Sequence[Manifest],
        *,
        parallel: int,
        ended: JobEnded,
        deadline: float,
        report: Report,
    ) -> None:
        """Run several PyTorchJobs to their ends, `parallel` at a time, in their order.

        `ended` is called for each; what it raises goes through. A job that failed is reported with
        its last log lines, and the others go on. Raises ClusterError where a job was deleted or
        can never start, and DeadlineError; `parallel` is at least 1.
        """

    def deploy(
        self, manifest: Manifest, *, check: Check, backup: str, deadline: float, report: Report
    ) -> Service:
        """Create or update an InferenceService and wait until it is ready and `check` passes.

        Where it does not come up, or `check` raises, a backend takes the new model back. `backup`
        is the address of a file in which it keeps the service as it was before, so that a step
        which was killed and started again can still put it back. `deadline` is for each service
        that has to become ready.

        Raises ClusterError, DeadlineError, and the error of `check` with what the service says.
        """

    def delete_experiment(self, name: str) -> None:
        """Remove an Experiment and its trials; no error if it is gone already."""

    def delete_job(self, name: str) -> None:
        """Remove a PyTorchJob; no error if it is gone already."""

    def delete(self, run_id: str) -> list[str]:
        """Remove everything that carries the label of the run.

        Returns 'Kind/name' of what was removed. No error if nothing is left.
        """


def run_id_of(manifest: Manifest) -> str:
    """The run id that a manifest carries as a label.

    Raises KeyError for a manifest without one, which is a bug of its maker.
    """
    run_id: str = manifest["metadata"]["labels"][RUN_LABEL]
    return run_id
