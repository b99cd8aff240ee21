"""The Kubernetes backend: run manifests on a cluster with Katib, the training operator and KServe.

Objects are sent through the published client and watched by polling. The watch API is not used: a
list of trials and pods every few seconds shows everything, needs no resuming after a cut, and is
never out of date. Every wait ends: done, failed with the reason of the pod that failed, or out of
time with what it waited for. Nothing here catches KeyboardInterrupt. A step that is told to stop
removes what it has started (`delete_experiment`, `delete_job`).
"""

from __future__ import annotations

from collections.abc import Sequence

from clusters import kubernetes_experiment, kubernetes_job, service_rollout, workflow
from clusters.api import EXPERIMENT, INFERENCE_SERVICE, PYTORCHJOB, Api, connect, namespace_of
from clusters.kubernetes_objects import Objects
from clusters.owner import Owner
from clusters.protocol import (
    Check,
    ExperimentResult,
    JobEnded,
    Manifest,
    Report,
    Service,
    Stop,
)
from clusters.waiting import Wait, ignore


class KubernetesCluster:
    """Implement clusters.protocol.Cluster on a cluster.

    `namespace` None or 'auto' means the pod's own, or the kubeconfig context's. `poll` is the time
    between two looks, in seconds. `patience` is how long a pod may lack an image or a secret before
    its wait is given up. `owner` owns Experiments and jobs until they have ended well, if it is in
    the same namespace. Raises InputError if no cluster or no namespace is configured.
    """

    resumes = False  # an experiment that nobody watches would go on, and hold its GPUs

    def __init__(
        self,
        namespace: str | None = None,
        owner: Owner | None = None,
        *,
        poll: float = 5.0,
        patience: float = 600.0,
    ) -> None:
        """Connect to the configured cluster. Raises NoCluster.

        `poll` (s) lies between two looks; `patience` (s) is how long a pod may wait for a reason
        that does not pass by itself.
        """
        connection = connect()
        self.namespace = namespace_of(connection, namespace)
        self._inside = connection.inside
        self._patience = patience
        self._api = Api(connection, self.namespace, pause=min(1.0, poll))
        self._objects = Objects(self._api, poll=poll, owner=owner)

    # Experiment
    # --------------------------------------------------------------------------------------------

    def run_experiment(
        self, manifest: Manifest, *, deadline: float, report: Report
    ) -> ExperimentResult:
        """See clusters.protocol.Cluster."""
        run = kubernetes_experiment.ExperimentRun(
            self._objects,
            self._objects.checked(manifest, EXPERIMENT),
            patience=self._patience,
            deadline=deadline,
            report=report,
        )
        return run.run()

    def can_continue(self, name: str) -> bool:
        """See clusters.protocol.Cluster."""
        return kubernetes_experiment.can_continue(self._objects, name)

    def experiments(self, run_id: str) -> dict[str, dict[str, str]]:
        """See clusters.protocol.Cluster."""
        return kubernetes_experiment.of_run(self._objects, run_id)

    def delete_experiment(self, name: str) -> None:
        """See clusters.protocol.Cluster."""
        self._objects.remove([(EXPERIMENT, name)])

    # Job
    # --------------------------------------------------------------------------------------------

    def run_job(self, manifest: Manifest, *, deadline: float, report: Report) -> None:
        """See clusters.protocol.Cluster."""
        kubernetes_job.run_job(
            self._objects,
            self._objects.checked(manifest, PYTORCHJOB),
            patience=self._patience,
            deadline=deadline,
            report=report,
        )

    def run_jobs(
        self,
        manifests: Sequence[Manifest],
        *,
        parallel: int,
        ended: JobEnded,
        deadline: float,
        report: Report,
    ) -> None:
        """See clusters.protocol.Cluster."""
        kubernetes_job.run_jobs(
            self._objects,
            [self._objects.checked(manifest, PYTORCHJOB) for manifest in manifests],
            parallel=parallel,
            ended=ended,
            patience=self._patience,
            deadline=deadline,
            report=report,
        )

    def delete_job(self, name: str) -> None:
        """See clusters.protocol.Cluster."""
        self._objects.remove([(PYTORCHJOB, name)])

    # Service
    # --------------------------------------------------------------------------------------------

    def deploy(
        self, manifest: Manifest, *, check: Check, backup: str, deadline: float, report: Report
    ) -> Service:
        """See clusters.protocol.Cluster."""
        rollout = service_rollout.Rollout(
            self._objects,
            self._objects.checked(manifest, INFERENCE_SERVICE),
            inside=self._inside,
            check=check,
            backup=backup,
            patience=self._patience,
            deadline=deadline,
            report=report,
        )
        return rollout.run()

    # Run
    # --------------------------------------------------------------------------------------------

    def why_stopped(self, kfp_run: str, step: str, *, deadline: float) -> Stop:
        """Why a step of a KFP run in this namespace ended without a word."""
        wait = Wait(f"a look at KFP run {kfp_run}", deadline, ignore)
        return workflow.why_stopped(self._api, kfp_run, step, wait)

    def delete_unfinished(self, run_id: str, *, deadline: float, report: Report) -> list[str]:
        """Remove what a run has left unfinished: its Experiment, trials and jobs.

        What has succeeded or failed stays, and so do services. Returns 'Kind/name' of what was
        removed. Raises DeadlineError with what is still there.
        """
        wait = Wait(f"removal of what run {run_id} left unfinished", deadline, report)
        removed = kubernetes_experiment.delete_unfinished(self._objects, run_id, wait)
        return removed + kubernetes_job.delete_unfinished(self._objects, run_id, wait)

    def find(self, run_id: str) -> list[str]:
        """'Kind/name' of everything that `delete` would remove."""
        return self._objects.find_run(run_id)

    def delete(self, run_id: str, report: Report = ignore) -> list[str]:
        """See clusters.protocol.Cluster. Waits until the objects and their pods are gone.

        `report` gets what is waited for, once that takes more than a few seconds.
        """
        return self._objects.delete_run(run_id, report)
