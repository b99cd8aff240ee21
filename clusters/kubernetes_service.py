"""An InferenceService on a cluster.

Create or update it, watch the pods of its spec, explain what waits, and tell when it is ready.
"""

from __future__ import annotations

import copy
from urllib.parse import urlsplit

from clusters.api import INFERENCE_SERVICE, Api
from clusters.kubernetes_objects import REVISION_LABEL, SERVICE_LABEL, Objects, digest
from clusters.pods import LOG_LINES, PodDiagnostics
from clusters.protocol import Manifest, Report
from clusters.reasons import (
    crash_loops,
    crash_of,
    is_true,
    lives,
    name_of,
    phase_of,
    ready,
    short,
)
from clusters.waiting import Wait, ignore
from common.errors import ClusterError

PREDICTOR = "kserve-container"
DESCRIPTION_SECONDS = 30.0  # for reading why a service does not answer
# KServe's status may still be that of the spec before: it is believed when it says the same so
# many times.
COMPLAINTS = 3


class Deployment:
    """One InferenceService, from its submission until it is ready."""

    def __init__(
        self,
        objects: Objects,
        manifest: Manifest,
        *,
        patience: float,
        deadline: float,
        report: Report,
    ) -> None:
        self._objects = objects
        self._api = objects.api
        self._manifest = manifest
        self._name = name_of(manifest)
        self._revision = digest(manifest["spec"])
        manifest["metadata"]["labels"][REVISION_LABEL] = self._revision
        self._wait = Wait(f"service {self._name}", deadline, report)
        self._diagnostics = PodDiagnostics(self._api, self._wait, SERVICE_LABEL, patience=patience)

    def run(self) -> Manifest:
        """Create or update the service, and return it once this very spec is ready."""
        older = self._submit()
        complaints = 0
        ready_before: frozenset[tuple[str, int]] | None = None
        while True:
            service = self._objects.existing(INFERENCE_SERVICE, self._name, self._wait)
            pods = self._revision_pods(older)
            complaint = _model_failure(service)
            complaints = complaints + 1 if complaint else 0
            looping = any(crash_loops(pod) for pod in pods or [])
            if looping or complaints >= COMPLAINTS:
                raise ClusterError(self._failure(service, complaint))
            # Ready once may be the moment before a crash: the same pods have to be so twice, not
            # restarted in between.
            ready_now = lives(pods or []) if _is_ready(service, pods) else None
            if ready_now is not None and ready_now == ready_before:
                self._wait.tell("state", f"service {self._name}: ready")
                return service
            ready_before = ready_now
            if pods is not None:
                self._diagnostics.explain(self._name, pods)
            state = service_line(service) if ready_now is None else "ready, looking once more"
            self._wait.tell("state", f"service {self._name}: {state}")
            self._wait.sleep(self._objects.poll)

    def _submit(self) -> set[str]:
        """Create or update the service.

        Returns the uids of the pods that belong to the spec before.
        """
        where = f"in namespace '{self._objects.namespace}'"
        while True:
            if self._api.create(INFERENCE_SERVICE, self._manifest, self._wait):
                self._wait.tell("submit", f"InferenceService {self._name} created {where}")
                return set()
            pods = self._api.pods(f"{SERVICE_LABEL}={self._name}", self._wait) or []
            existing = self._objects.settled(INFERENCE_SERVICE, self._name, self._wait)
            # it was changed or removed between our reading and writing
            if existing is None or not self._update(existing):
                continue
            self._wait.tell("submit", f"InferenceService {self._name} updated {where}")
            revision = existing["metadata"].get("labels", {}).get(REVISION_LABEL)
            if revision == self._revision:
                return set()
            return {pod["metadata"]["uid"] for pod in pods}

    def _update(self, existing: Manifest) -> bool:
        """Replace the spec, labels and annotations of an existing object; False if it has changed.

        Its other labels and annotations stay, as KServe keeps its deployment mode there.
        """
        metadata = copy.deepcopy(existing["metadata"])
        for place in ("labels", "annotations"):
            ours = self._manifest["metadata"].get(place, {})
            metadata[place] = {**metadata.get(place, {}), **ours}
        metadata.pop("managedFields", None)
        updated = {**self._manifest, "metadata": metadata}
        return self._api.replace(INFERENCE_SERVICE, updated, self._wait) is not None

    def _revision_pods(self, older: set[str]) -> list[Manifest] | None:
        """The service's pods of this spec, by their label. A pod without it counts if it is new.

        KServe says nothing reliable of which spec its status means: its observedGeneration is a
        child's (kserve#6081), and Ready stays true for a while after an update (kserve#4626).
        """

        def is_of_revision(pod: Manifest) -> bool:
            label = pod["metadata"]["labels"].get(REVISION_LABEL)
            return label == self._revision or (
                label is None and pod["metadata"]["uid"] not in older
            )

        pods = self._diagnostics.look([self._name], is_of_revision)
        return None if pods is None else pods[self._name]

    def _failure(self, service: Manifest, complaint: str) -> str:
        """Why a service will not come up: its predictor's crash, KServe's complaint, conditions."""
        ending = self._diagnostics.ending(self._name)
        lines = [f"service {self._name} failed: {ending.reason() if ending else complaint}"]
        for line in (service_line(service), complaint):
            if line and line not in lines[0]:
                lines.append(f"  {line}")
        if ending:
            lines.append(ending.text())
        return "\n".join(lines)


def addresses(service: Manifest, namespace: str) -> tuple[str, str]:
    """Base of the public address of a service (empty if it has none), and of the cluster's own.

    Without their paths: some versions append that of the old protocol, and all REST paths start at
    the root.
    """
    status = service.get("status", {})
    public = status.get("url") or ""
    own = (status.get("address") or {}).get("url")
    own = own or f"http://{name_of(service)}-predictor.{namespace}.svc.cluster.local"
    return _base(public), _base(own)


def _base(url: str) -> str:
    return urlsplit(url)._replace(path="", query="").geturl()


def describe(api: Api, name: str) -> str:
    """What to read when a service does not answer.

    The conditions of the service that are not true, and the last lines of its pods.
    """
    wait = Wait(f"a look at service {name}", DESCRIPTION_SECONDS, ignore)
    service = api.get(INFERENCE_SERVICE, name, wait)
    if service is None:
        return f"InferenceService {name} is gone"
    lines = [f"service {name}: {service_line(service)}"]
    for pod in api.pods(f"{SERVICE_LABEL}={name}", wait) or []:
        crash = crash_of(pod)
        container = crash.container if crash and crash.container else PREDICTOR
        log = api.log(
            name_of(pod),
            container,
            wait,
            lines=LOG_LINES,
            previous=bool(crash and crash.previous),
        )
        lines.append(
            f"last lines of pod {name_of(pod)}, container {container}"
            f" ({crash.reason if crash else phase_of(pod)}):"
        )
        lines += [f"  | {line}" for line in log or ["(no log to be had)"]]
    return "\n".join(lines)


def service_line(service: Manifest) -> str:
    """The conditions that are not yet true.

    As 'not ready: PredictorReady: MinimumReplicasUnavailable'.
    """
    missing = []
    for condition in service.get("status", {}).get("conditions") or []:
        if condition.get("status") == "True" or condition.get("severity") == "Info":
            continue
        # Ready only sums up the others
        if condition["type"] != "Ready":
            message = short(condition.get("message", ""), 200)
            words = (condition["type"], condition.get("reason"), message)
            missing.append(": ".join(word for word in words if word))
    if missing:
        return f"not ready: {'; '.join(missing)}"
    if is_true(service, "Ready"):
        return "KServe says ready, its pods are not yet"
    return "not ready: KServe has not looked at it yet"


def _is_ready(service: Manifest, pods: list[Manifest] | None) -> bool:
    """Whether KServe says Ready and a pod of this spec is ready.

    Without pods, only if the service may scale to zero and its revision has settled. If pods cannot
    be read (None), the settled revision is enough.
    """
    if not is_true(service, "Ready"):
        return False
    if pods:
        return any(ready(pod) for pod in pods)
    revisions = (service["status"].get("components") or {}).get("predictor") or {}
    settled = revisions.get("latestReadyRevision") == revisions.get("latestCreatedRevision")
    scales_to_zero = service["spec"]["predictor"].get("minReplicas") == 0
    return settled and (pods is None or scales_to_zero)


def _model_failure(service: Manifest) -> str:
    """What KServe says is wrong with the model; empty if it has no complaint (yet)."""
    model = service.get("status", {}).get("modelStatus") or {}
    status = model.get("transitionStatus")
    if status not in ("InvalidSpec", "BlockedByFailedLoad"):
        return ""
    info = model.get("lastFailureInfo") or {}
    return f"{status}: {info.get('reason', '')}: {short(info.get('message', ''))}"
