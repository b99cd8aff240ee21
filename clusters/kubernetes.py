"""The Kubernetes backend: run manifests on a cluster with Katib, the training operator and KServe.

Objects are sent through the published client and watched by polling. The watch API is not used: a
list of trials and pods every few seconds shows everything, needs no resuming after a broken
connection, and is never out of date. Each wait ends with success, with the reason of the pod that
failed, or at its deadline with what it waited for. KeyboardInterrupt is never caught here. A step
that is told to stop removes the objects that it created (`delete_experiment`, `delete_job`).
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
    """The protocol clusters.protocol.Cluster, implemented on a cluster."""

    resumes = False  # an experiment that nobody watches would continue and occupy its GPUs

    def __init__(
        self,
        namespace: str | None = None,
        owner: Owner | None = None,
        *,
        poll: float = 5.0,
        patience: float = 600.0,
    ) -> None:
        """Connect to the configured cluster.

        Args:
            namespace: The namespace; None or 'auto' for that of the pod or of the kubeconfig
                context.
            owner: Owner of Experiments and jobs until they succeed, if it is in the same namespace.
            poll: Seconds between two requests of the state.
            patience: Seconds that a pod may lack an image or a secret before the wait is given up.

        Raises:
            NoCluster: If no cluster is configured.
            InputError: If no namespace is configured.
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
            self._objects.namespaced_copy(manifest, EXPERIMENT),
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
            self._objects.namespaced_copy(manifest, PYTORCHJOB),
            patience=self._patience,
            deadline=deadline,
            report=report,
        )

    def run_jobs(
        self,
        manifests: Sequence[Manifest],
        *,
        parallel: int,
        on_end: JobEnded,
        deadline: float,
        report: Report,
    ) -> None:
        """See clusters.protocol.Cluster."""
        kubernetes_job.run_jobs(
            self._objects,
            [self._objects.namespaced_copy(manifest, PYTORCHJOB) for manifest in manifests],
            parallel=parallel,
            on_end=on_end,
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
            self._objects.namespaced_copy(manifest, INFERENCE_SERVICE),
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
        """Return why a step of a KFP run in this namespace ended without a message of its own."""
        wait = Wait(f"a look at KFP run {kfp_run}", deadline, ignore)
        return workflow.why_stopped(self._api, kfp_run, step, wait)

    def delete_unfinished(self, run_id: str, *, deadline: float, report: Report) -> list[str]:
        """Delete the experiments, trials and jobs of a run that have not ended.

        Objects that succeeded or failed stay, and so do services.

        Returns:
            'Kind/name' of each deleted object.

        Raises:
            DeadlineError: If objects remain at the deadline; it names them.
        """
        wait = Wait(f"removal of what run {run_id} left unfinished", deadline, report)
        names = kubernetes_experiment.delete_unfinished(self._objects, run_id, wait)
        return names + kubernetes_job.delete_unfinished(self._objects, run_id, wait)

    def find(self, run_id: str) -> list[str]:
        """Return 'Kind/name' of all objects that `delete` would delete."""
        return self._objects.find_run(run_id)

    def delete(self, run_id: str, report: Report = ignore) -> list[str]:
        """See clusters.protocol.Cluster. Waits until the objects and their pods are gone.

        `report` is called with what is waited for, if that takes more than a few seconds.
        """
        return self._objects.delete_run(run_id, report)
