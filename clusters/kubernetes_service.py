"""One InferenceService on a cluster: create or update it, and wait until its own pods are ready.

KServe does not say which spec its status refers to. In RawDeployment mode Ready and PredictorReady
copy the Deployment's Available: during an update they stay True (0.15; also if the new pod never
starts) or become Unknown (0.16, 0.17), and they follow Available again in 0.20; the fields of a
revision are empty. So a service counts as ready once KServe says so *and* the pods of the current
spec are ready: recognised by their label, or, if pods may not be listed, by the Deployment.
"""

from __future__ import annotations

import copy
import dataclasses
from urllib.parse import urlsplit

from clusters.api import INFERENCE_SERVICE, Api
from clusters.kubernetes_objects import REVISION_LABEL, SERVICE_LABEL, Objects
from clusters.pods import SERVER, PodDiagnostics, read_log
from clusters.protocol import Manifest, Report, Service
from clusters.reasons import (
    Crash,
    condition,
    crash_loops,
    crash_of,
    event_time,
    is_true,
    labels_of,
    last_line,
    message_of,
    name_of,
    phase_of,
    ready,
    restart_counts,
    short,
    waiting_of,
    warning_of,
)
from clusters.waiting import Wait, ignore
from common.errors import ClusterError

DESCRIPTION_SECONDS = 30.0  # limit of the requests that explain why a service is silent
# KServe's status may still refer to the previous spec: a complaint counts after so many
# repetitions.
NUM_COMPLAINTS = 3
KNATIVE_REVISION = "serving.knative.dev/revision"  # label of pods in Serverless mode
RAW_MODES = ("RawDeployment", "Standard")  # names of the mode before and since KServe 0.16
PREDICTOR = (
    "predictor"  # in the names of objects that KServe creates for a service in RawDeployment mode
)


class NoNodeError(ClusterError):
    """No node accepts the pods of a service."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """State of a service at one moment."""

    service: Manifest
    pods: list[Manifest] | None
    """Pods of this spec; None if pods may not be listed."""
    former_pods: list[Manifest]
    """Pods of other specs that are not being deleted."""
    deployment: Manifest | None = None
    """Deployment of the predictor, read only if pods may not be listed."""


class Deployment:
    """One InferenceService, from its creation or update until it is ready."""

    def __init__(
        self,
        objects: Objects,
        manifest: Manifest,
        *,
        patience: float,
        deadline: float,
        report: Report,
        no_node_seconds: float | None = None,
    ) -> None:
        """Prepare the deployment; nothing is sent yet. Times are in seconds.

        `no_node_seconds`: raise NoNodeError if no node has accepted a pod for so long.
        """
        self._objects = objects
        self._api = objects.api
        self._manifest = manifest
        self._name = name_of(manifest)
        self._revision: str = manifest["metadata"]["labels"][REVISION_LABEL]
        self._wait = Wait(f"service {self._name}", deadline, report)
        self._diagnostics = PodDiagnostics(
            self._api, self._wait, SERVICE_LABEL, patience=patience, replica_set=PREDICTOR
        )
        self._no_node_seconds = no_node_seconds
        self._no_node_since: float | None = None
        self._is_new = False
        self._certain = True
        self._old_pods: set[str] = set()
        self._old_revision = ""

    @property
    def certain(self) -> bool:
        """Whether the readiness that `run` observed is certainly that of this spec."""
        return self._certain

    def run(self) -> Manifest:
        """Create or update the service and return it once this spec is ready.

        Raises:
            ClusterError: If it cannot become ready.
            NoNodeError: If no node accepts its pod.
            DeadlineError: At the deadline.
        """
        self._submit()
        complaints = 0
        ready_before: frozenset[tuple[str, int]] | None = None
        while True:
            view = self._look()
            complaint = self._complaint(view)
            complaints = complaints + 1 if complaint else 0
            looping = any(crash_loops(pod) for pod in view.pods or [])
            if looping or complaints >= NUM_COMPLAINTS:
                raise ClusterError(self._failure(view.service, complaint))
            # A pod may be ready for a moment before it crashes: the same pods must be ready twice,
            # without a restart in between.
            is_ready = self._is_ready(view)
            ready_now = restart_counts(view.pods or []) if is_ready else None
            if ready_now is not None and ready_now == ready_before:
                self._certain = view.pods is not None or self._is_new or _names_served_spec(view)
                self._wait.tell("state", f"service {self._name}: ready")
                return view.service
            ready_before = ready_now
            self._explain(view)
            self._wait.tell("state", f"service {self._name}: {_progress(view, is_ready)}")
            self._wait.sleep(self._objects.poll)

    def _submit(self) -> None:
        """Create or update the service, and remember the pods and the revision of the old spec."""
        where = f"in namespace '{self._objects.namespace}'"
        while True:
            if self._api.create(INFERENCE_SERVICE, self._manifest, self._wait):
                self._is_new = True
                self._wait.tell("submit", f"InferenceService {self._name} created {where}")
                return
            pods = self._api.pods(f"{SERVICE_LABEL}={self._name}", self._wait) or []
            existing = self._objects.find(INFERENCE_SERVICE, self._name, self._wait)
            # it was changed or deleted between read and write
            if existing is None or not self._update(existing):
                continue
            self._wait.tell("submit", f"InferenceService {self._name} updated {where}")
            revision = existing["metadata"].get("labels", {}).get(REVISION_LABEL)
            if revision != self._revision:
                self._old_revision = _revisions(existing)[0]
                self._old_pods = {pod["metadata"]["uid"] for pod in pods}
            return

    def _update(self, existing: Manifest) -> bool:
        """Replace spec, labels and annotations of an existing object; return False if it changed.

        Its other labels and annotations stay, because KServe stores its deployment mode there.
        """
        metadata = copy.deepcopy(existing["metadata"])
        for place in ("labels", "annotations"):
            ours = self._manifest["metadata"].get(place, {})
            metadata[place] = {**metadata.get(place, {}), **ours}
        metadata.pop("managedFields", None)
        new_service = {**self._manifest, "metadata": metadata}
        return self._api.replace(INFERENCE_SERVICE, new_service, self._wait) is not None

    def _look(self) -> View:
        """Request the service, its pods of this spec and those of others."""
        service = self._objects.existing(INFERENCE_SERVICE, self._name, self._wait)
        former_pods: list[Manifest] = []

        def is_of_revision(pod: Manifest) -> bool:
            # by the label, which KServe copies; a pod without the label counts if it is new
            label = pod["metadata"]["labels"].get(REVISION_LABEL)
            new = pod["metadata"]["uid"] not in self._old_pods
            ours = label == self._revision or (label is None and new)
            if not ours and not pod["metadata"].get("deletionTimestamp"):
                former_pods.append(pod)
            return ours and not pod["metadata"].get("deletionTimestamp")

        pods = self._diagnostics.look([self._name], is_of_revision)
        return View(
            service=service,
            pods=None if pods is None else pods[self._name],
            former_pods=former_pods,
            deployment=(
                self._api.deployment(predictor_name(self._name), self._wait)
                if pods is None
                else None
            ),
        )

    def _is_ready(self, view: View) -> bool:
        """Return whether KServe says Ready, a pod of this spec is ready, and no former one is."""
        if not is_true(view.service, "Ready"):
            return False
        if view.pods:
            serving_former_pods = [
                pod for pod in view.former_pods if KNATIVE_REVISION not in labels_of(pod)
            ]
            return any(map(ready, view.pods)) and not any(map(ready, serving_former_pods))
        created_revision, ready_revision = _revisions(view.service)
        is_new_revision_ready = created_revision == ready_revision != self._old_revision
        if view.pods is not None:
            # Only in Serverless mode can a revision be ready without a pod.
            scales_to_zero = view.service["spec"]["predictor"].get("minReplicas") == 0
            return bool(created_revision) and is_new_revision_ready and scales_to_zero
        if view.deployment is not None:
            return _rolled_out(view.deployment, self._revision)
        # RawDeployment names no revisions: Ready of a new service is its own; after an update it
        # may refer to the former pod (see `certain`).
        return is_new_revision_ready if created_revision else True

    def _complaint(self, view: View) -> str:
        """Return what KServe reports as wrong with this spec; empty if no complaint counts.

        KServe computes modelStatus from the first of all pods, and does not update it while that
        pod has no container yet. So BlockedByFailedLoad counts only if a pod of this spec crashed,
        or if the service is new and has no other pods.
        """
        if view.deployment and _gave_up(view.deployment, self._revision):
            return f"its Deployment: {message_of(view.deployment, 'Progressing')}"
        complaint, is_load_failure = _model_failure(view.service)
        if not is_load_failure:
            return complaint
        ended_badly = any(crash_of(pod) for pod in view.pods or [])
        alone = self._is_new and not view.former_pods
        return complaint if ended_badly or alone else ""

    def _explain(self, view: View) -> None:
        """Report why the pods wait.

        Raises:
            ClusterError: If waiting cannot help.
        """
        if view.pods is None:
            return
        creation_time = view.service["metadata"].get("creationTimestamp", "")
        self._diagnostics.explain(self._name, view.pods, creation_time)
        own_events = [] if view.pods else self._api.events(self._name, self._wait)
        recent = [event for event in own_events if event_time(event) >= creation_time]
        self._wait.obstacle(f"InferenceService {self._name}", warning_of(recent))
        self._check_node(view)

    def _check_node(self, view: View) -> None:
        """Report a rollout that the former pods block.

        Raises:
            NoNodeError: If no node has accepted the pod for `no_node_seconds`.
        """
        waiting = [waiting_of(pod) for pod in view.pods or []]
        no_node = next((reason for reason in waiting if reason.startswith("no node")), "")
        is_blocked = no_node and view.former_pods
        self._wait.obstacle(
            f"{self._name}, rollout",
            "the former pod keeps its CPUs and GPUs until the new one is ready;"
            " with --rollout recreate it goes first"
            if is_blocked
            else "",
        )
        if not no_node:
            self._no_node_since = None
            return
        seconds_left = self._wait.seconds_left()
        self._no_node_since = seconds_left if self._no_node_since is None else self._no_node_since
        seconds_without_node = self._no_node_since - seconds_left
        if self._no_node_seconds is not None and seconds_without_node > self._no_node_seconds:
            raise NoNodeError(f"service {self._name}: {no_node}")

    def _failure(self, service: Manifest, complaint: str) -> str:
        """Return why a service cannot become ready: its predictor's crash, or KServe's message."""
        ending = self._diagnostics.ending(self._name)
        reason = ending.reason() if ending else complaint
        lines = [f"service {self._name} failed: {reason}"]
        conditions = untrue_conditions(service)
        if conditions and conditions not in reason:
            lines.append(f"  not ready: {conditions}")
        if ending:
            lines.append(ending.text())
        return "\n".join(lines)


def predictor_name(name: str) -> str:
    """Return the name of KServe's Deployment and Service for a predictor in RawDeployment mode."""
    return f"{name}-{PREDICTOR}"


def service_record(service: Manifest, namespace: str, *, inside: bool, certain: bool) -> Service:
    """Return a service with the address that answers from here, and how to reach it from outside.

    The address inside the cluster needs no login at the gateway. In RawDeployment mode status.url
    is the host of an Ingress, which need not exist; from outside, `kubectl port-forward` always
    works.
    """
    name, status = name_of(service), service.get("status", {})
    public = _without_path(status.get("url") or "")
    own = cluster_address(service)
    raw = status.get("deploymentMode") in RAW_MODES
    details = {"namespace": namespace, "public_url": public, "cluster_url": own}
    if raw or not public:
        details["from_outside"] = (
            f"kubectl -n {namespace} port-forward service/{predictor_name(name)} 8080:80, then"
            " http://127.0.0.1:8080"
        )
    else:
        details["from_outside"] = public
    return Service(
        name=name,
        url=own if inside or raw or not public else public,
        kind="kserve",
        details=details,
        certain=certain,
    )


def cluster_address(service: Manifest) -> str:
    """Return the address of a service inside the cluster."""
    address = (service.get("status", {}).get("address") or {}).get("url")
    namespace = service["metadata"]["namespace"]
    host = f"{predictor_name(name_of(service))}.{namespace}.svc.cluster.local"
    return _without_path(address or f"http://{host}")


def _without_path(url: str) -> str:
    """Return a URL without its path; some versions of KServe append the path of protocol v1."""
    return urlsplit(url)._replace(path="", query="").geturl()


def describe(api: Api, name: str) -> str:
    """Explain why a service does not answer: untrue conditions and last lines of its pods."""
    wait = Wait(f"a look at service {name}", DESCRIPTION_SECONDS, ignore)
    service = api.get(INFERENCE_SERVICE, name, wait)
    if service is None:
        return f"InferenceService {name} is gone"
    conditions = untrue_conditions(service)
    state = f"not ready: {conditions}" if conditions else "KServe says ready"
    lines = [f"service {name}: {state}"]
    for pod in api.pods(f"{SERVICE_LABEL}={name}", wait) or []:
        crash = crash_of(pod)
        if crash is None or not crash.container:
            crash = Crash(
                pod=name_of(pod),
                container=SERVER,
                reason=crash.reason if crash else phase_of(pod),
                end_time="",
                previous=False,
                restarts=0,
            )
        log, _ = read_log(api, crash, wait)
        lines.append(
            f"last lines of pod {crash.pod}, container {crash.container} ({crash.reason}):"
        )
        lines += [f"  | {line}" for line in log or ["(no log available)"]]
    return "\n".join(lines)


def untrue_conditions(service: Manifest) -> str:
    """Return the conditions that are not true: 'PredictorReady: MinimumReplicasUnavailable'."""
    untrue = []
    for entry in service.get("status", {}).get("conditions") or []:
        if entry.get("status") == "True" or entry.get("severity") == "Info":
            continue
        # Ready only sums up the others
        if entry["type"] != "Ready":
            message = short(entry.get("message", ""), 200)
            words = (entry["type"], entry.get("reason"), message)
            untrue.append(": ".join(word for word in words if word))
    return "; ".join(untrue)


def _progress(view: View, is_ready: bool) -> str:
    """Return the state of a service that is not ready yet, for a line of progress."""
    if is_ready:
        return "ready, checking once more"
    conditions = untrue_conditions(view.service)
    if conditions:
        return f"not ready: {conditions}"
    if not is_true(view.service, "Ready"):
        return "not ready: KServe has not processed it yet"
    if any(ready(pod) for pod in view.pods or []):
        return "its new pods are ready, the former ones still answer"
    return "its new pods are not ready yet"


def _names_served_spec(view: View) -> bool:
    """Return whether the Deployment, or KServe's revisions, say which spec is being served.

    Then readiness is certain even if the pods cannot be listed.
    """
    return view.deployment is not None or bool(_revisions(view.service)[0])


def _revisions(service: Manifest) -> tuple[str, str]:
    """Return the latest created and the latest ready revision; empty in RawDeployment mode."""
    components = service.get("status", {}).get("components") or {}
    predictor = components.get("predictor") or {}
    return predictor.get("latestCreatedRevision") or "", predictor.get("latestReadyRevision") or ""


def _rolled_out(deployment: Manifest, revision: str) -> bool:
    """Return whether all replicas of a Deployment have this spec and are available, and no others.

    This is the rule of `kubectl rollout status`.
    """
    if not _is_of(deployment, revision):
        return False
    replicas = deployment["spec"].get("replicas", 1)
    status = deployment.get("status", {})
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    return counts == [replicas, replicas, replicas]


def _gave_up(deployment: Manifest, revision: str) -> bool:
    """Return whether the Deployment of this spec made no progress within its own deadline."""
    progressing = condition(deployment, "Progressing") or {}
    return _is_of(deployment, revision) and progressing.get("status") == "False"


def _is_of(deployment: Manifest, revision: str) -> bool:
    """Return whether the Deployment has this spec and its controller has observed it."""
    observed_generation = deployment.get("status", {}).get("observedGeneration", 0)
    template = deployment["spec"]["template"]
    generation = deployment["metadata"].get("generation", 0)
    is_of_revision = labels_of(template).get(REVISION_LABEL) == revision
    return is_of_revision and observed_generation >= generation


def _model_failure(service: Manifest) -> tuple[str, bool]:
    """Return what KServe reports as wrong with the model, and whether it failed to load in a pod.

    The text is empty without a complaint.
    """
    model = service.get("status", {}).get("modelStatus") or {}
    status = model.get("transitionStatus")
    if status not in ("InvalidSpec", "BlockedByFailedLoad"):
        return "", False
    info = model.get("lastFailureInfo") or {}
    text = f"{status}: {info.get('reason', '')}: {last_line(info.get('message', ''))}"
    return text, status == "BlockedByFailedLoad"
