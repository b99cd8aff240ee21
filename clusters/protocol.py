"""Where manifests run: the protocol that every home of a manifest obeys, and the words of its
answers.

A home takes Kubernetes objects as plain dicts and knows nothing of jets. Every wait has a deadline
in seconds, tells its progress to a callback, and ends in one of three ways: the answer,
ClusterError with the reason of what failed, or DeadlineError with what was waited for. An object
that exists already under the same name and run id is adopted, not made anew, so that a step that
was killed and started again goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from common.records import Trial

RUN_LABEL = "jec/run-id"  # on every object and every pod; `delete` finds things by it
STEP_LABEL, USER_LABEL = "jec/step", "jec/user"

Manifest = dict[str, Any]
Report = Callable[[str], None]
"""Called with one readable line whenever something changed."""

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
    """Who answers: 'kserve' on a cluster, 'triton' or 'kserve-server' on one machine."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the owner needs to end it (pid on one machine)."""


class Cluster(Protocol):
    """A home for manifests.

    `report` gets one line a change; deadlines are seconds from the call.
    """

    resumes: bool
    """True where an interrupted experiment goes on later by itself; elsewhere a launcher that is
    told to stop removes it.
    """

    def run_experiment(
        self, manifest: Manifest, *, deadline: float, report: Report
    ) -> ExperimentResult:
        """Run a Katib Experiment to its end. One of this run that exists goes on, with more trials
        where more are asked now.

        Raises ClusterError if it failed (failed trials >= maxFailedTrialCount, or no trial
        succeeded) and DeadlineError.
        """

    def can_continue(self, name: str) -> bool:
        """Whether an experiment of this name is there and takes more trials than it has had."""

    def run_job(self, manifest: Manifest, *, deadline: float, report: Report) -> None:
        """Run a PyTorchJob to its end.

        Raises ClusterError with the last log lines of the replica that failed, and DeadlineError.
        """

    def deploy(self, manifest: Manifest, *, deadline: float, report: Report) -> Service:
        """Create or update an InferenceService and wait until it says that it is ready.

        Raises ClusterError and DeadlineError.
        """

    def service_story(self, name: str) -> str:
        """What there is to read about a service that does not answer: its conditions, its last log
        lines. Raises nothing of its own.
        """

    def delete_experiment(self, name: str) -> None:
        """Remove an Experiment and its trials; no error if it is gone already."""

    def delete_job(self, name: str) -> None:
        """Remove a PyTorchJob; no error if it is gone already."""

    def delete(self, run_id: str) -> list[str]:
        """Remove everything that carries the label of the run; returns 'Kind/name' of what was
        removed. Works twice.
        """


def run_id_of(manifest: Manifest) -> str:
    """The run id that a manifest carries as a label.

    Raises KeyError for a manifest without one, which is a bug of its maker.
    """
    return manifest["metadata"]["labels"][RUN_LABEL]
