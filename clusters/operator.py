"""State of one run on a cluster: its objects, their logs, and their removal."""

from __future__ import annotations

import dataclasses

from clusters.api import (
    EXPERIMENT,
    INFERENCE_SERVICE,
    PYTORCHJOB,
    TRIAL,
    Api,
    connect,
    namespace_of,
)
from clusters.kubernetes import KubernetesCluster
from clusters.kubernetes_job import replicas_line
from clusters.kubernetes_objects import (
    JOB_LABEL,
    SERVICE_LABEL,
    TRIALS_LABEL,
    belongs_to_trial,
)
from clusters.kubernetes_service import cluster_address, untrue_conditions
from clusters.pods import LOG_LINES, Ending
from clusters.protocol import RUN_LABEL, STEP_LABEL, Manifest, Report
from clusters.reasons import (
    CREATING,
    NOT_SCHEDULED,
    crash_of,
    is_true,
    message_of,
    name_of,
    phase_of,
    waiting_of,
    warning_of,
)
from clusters.refusals import refusal_of
from clusters.trials import UNFINISHED, progress_line, trial_of
from clusters.waiting import Wait, ignore
from clusters.workflow import KFP_RUN_LABEL

SECONDS = 60.0  # limit for reading all objects of a run
# containers whose logs belong to a run, the most useful first
LOG_CONTAINERS = ("pytorch", "kserve-container", "main", "storage-initializer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunObject:
    """One object of a run, with its state in one line."""

    kind: str
    name: str
    state: str
    step: str = ""
    """Step that created it; empty for the pod of a step itself."""


class Operator:
    """Access to the runs in one namespace of the configured cluster."""

    def __init__(self, namespace: str | None = None, *, poll: float = 5.0) -> None:
        """Connect to the configured cluster.

        Args:
            namespace: The namespace; None or 'auto' for that of the configuration.
            poll: Seconds between two requests of the state.

        Raises:
            NoCluster: If no cluster is configured.
            InputError: If no namespace is configured.
        """
        connection = connect()
        self.namespace = namespace_of(connection, namespace)
        self._api = Api(connection, self.namespace)
        self._poll = poll

    def find(self, run_id: str) -> list[str]:
        """Return 'Kind/name' of all objects that `delete` would delete."""
        return KubernetesCluster(self.namespace, poll=self._poll).find(run_id)

    def delete(self, run_id: str, report: Report = ignore) -> list[str]:
        """Delete the objects of a run and wait for it; see KubernetesCluster.delete."""
        return KubernetesCluster(self.namespace, poll=self._poll).delete(run_id, report)

    def run_of_service(self, name: str) -> str | None:
        """Return the run whose model an InferenceService serves.

        Empty if its labels name none; None without a service.

        Raises:
            ClusterError: If it may not be read.
        """
        wait = Wait(f"a look at InferenceService {name}", SECONDS, ignore)
        service = self._api.get(INFERENCE_SERVICE, name, wait)
        if service is None:
            return None
        return str((service["metadata"].get("labels") or {}).get(RUN_LABEL, ""))

    def describe(self, run_id: str, kfp_run: str = "") -> list[RunObject]:
        """Return the experiment, jobs and service of a run, and the pods with problems."""
        wait = self._look(run_id)
        selector = f"{RUN_LABEL}={run_id}"
        findings = []
        for experiment in self._api.list_objects(EXPERIMENT, selector, wait):
            line = self._experiment_line(experiment, wait)
            findings.append(_finding("Experiment", experiment, line))
        for job in self._api.list_objects(PYTORCHJOB, selector, wait):
            # the job of a trial is not listed
            if not belongs_to_trial(job):
                line = _job_line(job)
                if not is_true(job, "Failed") and not is_true(job, "Succeeded"):
                    line += self._refusal(job, self._api.events(name_of(job), wait))
                findings.append(_finding("PyTorchJob", job, line))
        for service in self._api.list_objects(INFERENCE_SERVICE, selector, wait):
            line = _service_line(service)
            findings.append(_finding("InferenceService", service, line))
        for pod in self._pods(run_id, kfp_run, wait):
            line = self._pod_line(pod, wait)
            if line:
                findings.append(_finding("Pod", pod, line))
        return findings

    def _experiment_line(self, experiment: Manifest, wait: Wait) -> str:
        selector = f"{TRIALS_LABEL}={name_of(experiment)}"
        trials = [trial_of(trial) for trial in self._api.list_objects(TRIAL, selector, wait)]
        progress = progress_line(experiment, trials)
        if is_true(experiment, "Failed"):
            return f"failed: {progress} ({message_of(experiment, 'Failed')})"
        if is_true(experiment, "Succeeded"):
            return f"succeeded: {progress}"
        active = [trial for trial in trials if trial.status in UNFINISHED]
        # the next pods are created by the jobs of trials, or by the ReplicaSet of the algorithm
        if active:
            creators = [self._api.events(trial.name, wait) for trial in active]
        else:
            prefix = f"{name_of(experiment)}-{experiment['spec']['algorithm']['algorithmName']}-"
            creators = [self._api.events_of("ReplicaSet", prefix, wait)]
        refusals = [self._refusal(experiment, events) for events in creators]
        state = "running" if is_true(experiment, "Running") else "created"
        return f"{state}: {progress}{next(filter(None, refusals), '')}"

    def _refusal(self, owner: Manifest, events: list[Manifest]) -> str:
        """Return, after a semicolon, why a pod of an object is not created; empty if it is."""
        refusal = refusal_of(events, owner["metadata"].get("creationTimestamp", ""))
        return f"; {refusal.text}" if refusal else ""

    def _pod_line(self, pod: Manifest, wait: Wait) -> str:
        """Return why a pod waits or how it failed; empty if it runs or has succeeded."""
        reason = waiting_of(pod)
        # only events show a volume that cannot be mounted, and a full namespace
        if reason in (CREATING, NOT_SCHEDULED):
            reason = warning_of(self._api.events(name_of(pod), wait)) or reason
        if reason:
            return f"waits: {reason}"
        crash = crash_of(pod)
        if crash and crash.previous and phase_of(pod) == "Running":
            return f"runs again, after {crash.container} ended: {crash.reason}"
        if crash is None:
            return ""
        # the last log line of a trial says why it failed
        lines = []
        if crash.container:
            lines = self._api.log(
                crash.pod, crash.container, wait, lines=LOG_LINES, previous=crash.previous
            )
        return f"ended badly: {Ending(crash=crash, lines=lines).reason()}"

    def logs(
        self, run_id: str, part: str = "", *, kfp_run: str = "", lines: int = 200
    ) -> list[tuple[str, list[str]]]:
        """Return the last log lines of the pods of a run, as pairs (pod and container, lines).

        Args:
            run_id: The run.
            part: Only this step, trial, job or pod.
            kfp_run: The run of KFP, whose pods are included.
            lines: Number of lines of each container.
        """
        wait = self._look(run_id)
        logs = []
        for pod in self._pods(run_id, kfp_run, wait):
            labels = pod["metadata"].get("labels") or {}
            if part and part not in (labels.get(STEP_LABEL), labels.get(JOB_LABEL), name_of(pod)):
                continue
            for container in _containers(pod):
                log = self._api.log(name_of(pod), container, wait, lines=lines)
                crash = crash_of(pod)
                if not log and crash and crash.previous:
                    log = self._api.log(name_of(pod), container, wait, lines=lines, previous=True)
                logs.append((f"{name_of(pod)}/{container} ({phase_of(pod).lower()})", log))
        return logs

    def _pods(self, run_id: str, kfp_run: str, wait: Wait) -> list[Manifest]:
        """Return each pod of a run once: by its label, those of its services and of its KFP run."""
        selectors = [f"{RUN_LABEL}={run_id}"]
        services = self._api.list_objects(INFERENCE_SERVICE, f"{RUN_LABEL}={run_id}", wait)
        if services:
            names = ", ".join(name_of(service) for service in services)
            selectors.append(f"{SERVICE_LABEL} in ({names})")
        if kfp_run:
            selectors.append(f"{KFP_RUN_LABEL}={kfp_run},{STEP_LABEL}")
        pods = {}
        for selector in selectors:
            for pod in self._api.pods(selector, wait) or []:
                pods[pod["metadata"]["uid"]] = pod
        return list(pods.values())

    def _look(self, run_id: str) -> Wait:
        return Wait(f"a look at run {run_id}", SECONDS, ignore)


def _finding(kind: str, thing: Manifest, state: str) -> RunObject:
    labels = thing["metadata"].get("labels") or {}
    # the pod of a step itself has no run id, because it belongs to a KFP run
    step = labels.get(STEP_LABEL, "") if RUN_LABEL in labels else ""
    return RunObject(kind=kind, name=name_of(thing), state=state, step=step)


def _containers(pod: Manifest) -> list[str]:
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"].get("containers", [])]
    names = [container["name"] for container in containers]
    return [name for name in LOG_CONTAINERS if name in names] or names


def _job_line(job: Manifest) -> str:
    for kind in ("Failed", "Succeeded"):
        if is_true(job, kind):
            return f"{kind.lower()}: {message_of(job, kind)}"
    return replicas_line(job)


def _service_line(service: Manifest) -> str:
    if is_true(service, "Ready"):
        return f"ready at {cluster_address(service)}"
    return f"not ready: {untrue_conditions(service) or 'KServe has not processed it yet'}"
