"""What an operator asks of a cluster about one run: what there is of it, how it is, what it wrote,
and its removal.
"""

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
from clusters.kubernetes import (
    JOB_LABEL,
    SERVICE_LABEL,
    TRIALS_LABEL,
    KubernetesCluster,
    replicas_line,
    service_line,
)
from clusters.protocol import RUN_LABEL, STEP_LABEL
from clusters.reasons import (
    CREATING,
    NOT_SCHEDULED,
    condition,
    crash_of,
    is_true,
    name_of,
    phase_of,
    short,
    waiting_of,
    warning_of,
)
from clusters.trials import progress_line, trial_of
from clusters.waiting import Wait, ignore

SECONDS = 60.0  # for one look at everything of a run
KFP_RUN_LABEL = "pipeline/runid"  # on the pods of a KFP run
# containers whose logs are a run's, the telling one first
OWN = ("pytorch", "kserve-container", "main", "storage-initializer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One object of a run, and how it is in one line."""

    kind: str
    name: str
    told: str


class Operator:
    """One namespace of the cluster that the environment names.

    Raises InputError where it names none.
    """

    def __init__(self, namespace: str | None = None, *, poll: float = 5.0) -> None:
        connection = connect()
        self.namespace = namespace_of(connection, namespace)
        self._api = Api(connection, self.namespace)
        self._namespace_asked, self._poll = namespace, poll

    def find(self, run_id: str) -> list[str]:
        """'Kind/name' of everything that `delete` would remove."""
        return KubernetesCluster(self.namespace, poll=self._poll).find(run_id)

    def delete(self, run_id: str) -> list[str]:
        """Remove it and wait until it is gone, pods as well; see KubernetesCluster.delete."""
        return KubernetesCluster(self.namespace, poll=self._poll).delete(run_id)

    def describe(self, run_id: str, kfp_run: str = "") -> list[Finding]:
        """The run's experiment, jobs, service and the pods that do not run as they should."""
        wait, selector = self._look(run_id), f"{RUN_LABEL}={run_id}"
        found = [self._experiment(one, wait) for one in self._api.list(EXPERIMENT, selector, wait)]
        jobs = [
            one
            for one in self._api.list(PYTORCHJOB, selector, wait)
            if not one["metadata"].get("ownerReferences")
        ]
        found += [
            Finding(kind="PyTorchJob", name=name_of(one), told=_job_line(one)) for one in jobs
        ]
        services = self._api.list(INFERENCE_SERVICE, selector, wait)
        found += [
            Finding(kind="InferenceService", name=name_of(one), told=_service_told(one))
            for one in services
        ]
        pods = self._pods(run_id, kfp_run, wait)
        return found + [
            Finding(kind="Pod", name=name_of(pod), told=told)
            for pod in pods
            if (told := self._pod_told(pod, wait))
        ]

    def _experiment(self, experiment: dict, wait: Wait) -> Finding:
        name = name_of(experiment)
        trials = [trial_of(one) for one in self._api.list(TRIAL, f"{TRIALS_LABEL}={name}", wait)]
        state = next(
            (
                kind.lower()
                for kind in ("Failed", "Succeeded", "Running")
                if is_true(experiment, kind)
            ),
            "created",
        )
        said = (
            f" ({short(condition(experiment, 'Failed').get('message', ''))})"
            if state == "failed"
            else ""
        )
        return Finding(
            kind="Experiment", name=name, told=f"{state}: {progress_line(experiment, trials)}{said}"
        )

    def _pod_told(self, pod: dict, wait: Wait) -> str:
        """Why a pod waits or how it died; empty for one that runs or has ended well."""
        reason = waiting_of(pod)
        # a volume that cannot be mounted, a full namespace: events tell
        if reason in (CREATING, NOT_SCHEDULED):
            reason = warning_of(self._api.events(name_of(pod), wait)) or reason
        crash = crash_of(pod)
        return f"waits: {reason}" if reason else f"ended badly: {crash.reason}" if crash else ""

    def logs(
        self, run_id: str, part: str = "", *, kfp_run: str = "", lines: int = 200
    ) -> list[tuple[str, list[str]]]:
        """(pod and container, last lines) of the run's pods, of one step or of one trial or job if
        `part` names it.
        """
        wait = self._look(run_id)
        told = []
        for pod in self._pods(run_id, kfp_run, wait):
            labels = pod["metadata"].get("labels") or {}
            if part and part not in (labels.get(STEP_LABEL), labels.get(JOB_LABEL), name_of(pod)):
                continue
            for container in _containers(pod):
                written = self._api.log(name_of(pod), container, wait, lines=lines)
                if not written and (crash := crash_of(pod)) and crash.previous:
                    written = self._api.log(
                        name_of(pod), container, wait, lines=lines, previous=True
                    )
                told.append((f"{name_of(pod)}/{container} ({phase_of(pod).lower()})", written))
        return told

    def _pods(self, run_id: str, kfp_run: str, wait: Wait) -> list[dict]:
        """Every pod of the run once: by its label, those of its services, those of its KFP run."""
        services = ", ".join(
            name_of(one) for one in self._api.list(INFERENCE_SERVICE, f"{RUN_LABEL}={run_id}", wait)
        )
        selectors = [
            f"{RUN_LABEL}={run_id}",
            f"{SERVICE_LABEL} in ({services})" if services else "",
            f"{KFP_RUN_LABEL}={kfp_run},{STEP_LABEL}" if kfp_run else "",
        ]
        pods = [
            pod
            for selector in selectors
            if selector
            for pod in self._api.pods(selector, wait) or []
        ]
        return list({pod["metadata"]["uid"]: pod for pod in pods}.values())

    def _look(self, run_id: str) -> Wait:
        return Wait(f"a look at run {run_id}", SECONDS, ignore)


def _containers(pod: dict) -> list[str]:
    spec = pod["spec"]
    names = [
        container["name"]
        for container in [*(spec.get("initContainers") or []), *spec.get("containers", [])]
    ]
    return [name for name in OWN if name in names] or names


def _job_line(job: dict) -> str:
    for kind in ("Failed", "Succeeded"):
        if is_true(job, kind):
            return f"{kind.lower()}: {short(condition(job, kind).get('message', ''))}"
    return replicas_line(job)


def _service_told(service: dict) -> str:
    return (
        f"ready at {service['status'].get('url', '?')}"
        if is_true(service, "Ready")
        else service_line(service)
    )
