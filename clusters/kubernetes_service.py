"""One InferenceService on a cluster: create or update it, and wait until its own pods are ready.

KServe does not say which spec its status means. In RawDeployment mode Ready and PredictorReady are
the Deployment's Available: through an update they stay True (0.15; also when the new pod never
comes) or are Unknown (0.16, 0.17), they follow Available again in 0.20, and the fields of a
revision are empty. So a service is ready once KServe says so *and* the pods of this very spec are:
by their label, or, where pods may not be listed, by the Deployment.
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
    last_line,
    lives,
    message_of,
    name_of,
    phase_of,
    ready,
    short,
    waiting_of,
    warning_of,
)
from clusters.waiting import Wait, ignore
from common.errors import ClusterError

DESCRIPTION_SECONDS = 30.0  # for reading why a service does not answer
# KServe's status may still be that of the spec before: it is believed when it says the same so
# many times.
COMPLAINTS = 3
KNATIVE_REVISION = "serving.knative.dev/revision"  # on pods of the Serverless mode
RAW_MODES = ("RawDeployment", "Standard")  # the name until and since KServe 0.16
PREDICTOR = "predictor"  # word of what KServe makes for a service in RawDeployment mode


class NoNodeError(ClusterError):
    """No node takes the pods of a service."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What is seen of a service at one moment."""

    service: Manifest
    pods: list[Manifest] | None
    """Those of this spec; None where pods may not be listed."""
    former_pods: list[Manifest]
    """Those of other specs, without pods that are being deleted."""
    deployment: Manifest | None = None
    """The predictor's Deployment, read only where pods may not be listed."""


class Deployment:
    """One InferenceService, from its submission until it is ready.

    `no_node_seconds`: give up with NoNodeError when no node has taken a pod for so long.
    """

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
        """Nothing is sent yet; the times are in seconds."""
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
        self._older: set[str] = set()
        self._older_revision = ""

    @property
    def certain(self) -> bool:
        """Whether the readiness that `run` saw was surely that of this spec."""
        return self._certain

    def run(self) -> Manifest:
        """Create or update the service, and return it once this very spec is ready."""
        self._submit()
        complaints = 0
        ready_before: frozenset[tuple[str, int]] | None = None
        while True:
            view = self._look()
            complaint = self._complaint(view)
            complaints = complaints + 1 if complaint else 0
            looping = any(crash_loops(pod) for pod in view.pods or [])
            if looping or complaints >= COMPLAINTS:
                raise ClusterError(self._failure(view.service, complaint))
            # Ready once may be the moment before a crash: the same pods have to be so twice, not
            # restarted in between.
            is_ready = self._is_ready(view)
            ready_now = lives(view.pods or []) if is_ready else None
            if ready_now is not None and ready_now == ready_before:
                self._certain = view.pods is not None or self._is_new or _can_tell(view)
                self._wait.tell("state", f"service {self._name}: ready")
                return view.service
            ready_before = ready_now
            self._explain(view)
            self._wait.tell("state", f"service {self._name}: {_progress(view, is_ready)}")
            self._wait.sleep(self._objects.poll)

    def _submit(self) -> None:
        """Create or update the service, and note what belongs to the spec before."""
        where = f"in namespace '{self._objects.namespace}'"
        while True:
            if self._api.create(INFERENCE_SERVICE, self._manifest, self._wait):
                self._is_new = True
                self._wait.tell("submit", f"InferenceService {self._name} created {where}")
                return
            pods = self._api.pods(f"{SERVICE_LABEL}={self._name}", self._wait) or []
            existing = self._objects.settled(INFERENCE_SERVICE, self._name, self._wait)
            # it was changed or removed between our reading and writing
            if existing is None or not self._update(existing):
                continue
            self._wait.tell("submit", f"InferenceService {self._name} updated {where}")
            revision = existing["metadata"].get("labels", {}).get(REVISION_LABEL)
            if revision != self._revision:
                self._older_revision = _revisions(existing)[0]
                self._older = {pod["metadata"]["uid"] for pod in pods}
            return

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

    def _look(self) -> View:
        """The service, its pods of this spec and those of others."""
        service = self._objects.existing(INFERENCE_SERVICE, self._name, self._wait)
        former_pods: list[Manifest] = []

        def is_of_revision(pod: Manifest) -> bool:
            # by the label, which KServe copies; a pod without it counts if it is new
            label = pod["metadata"]["labels"].get(REVISION_LABEL)
            new = pod["metadata"]["uid"] not in self._older
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
        """Whether KServe says Ready, a pod of this spec is ready, and no former pod answers."""
        if not is_true(view.service, "Ready"):
            return False
        if view.pods:
            former = [pod for pod in view.former_pods if KNATIVE_REVISION not in _labels(pod)]
            return any(map(ready, view.pods)) and not any(map(ready, former))
        created, latest_ready = _revisions(view.service)
        settled = created == latest_ready != self._older_revision
        if view.pods is not None:
            # Only a revision of the Serverless mode may be ready without a pod.
            scales_to_zero = view.service["spec"]["predictor"].get("minReplicas") == 0
            return bool(created) and settled and scales_to_zero
        if view.deployment is not None:
            return _rolled_out(view.deployment, self._revision)
        # RawDeployment names no revisions: Ready of a new service is its own, that of another may
        # be the former pod's (see `certain`).
        return settled if created else True

    def _complaint(self, view: View) -> str:
        """What KServe says is wrong with this spec; empty if it has no complaint that counts.

        KServe computes modelStatus from the first of all pods, and leaves it as it was while that
        one has no container yet: BlockedByFailedLoad counts only if a pod of this spec ended badly,
        or if the service is new and has no other pods.
        """
        if view.deployment and _gave_up(view.deployment, self._revision):
            return f"its Deployment: {message_of(view.deployment, 'Progressing')}"
        complaint, blocked = _model_failure(view.service)
        if not blocked:
            return complaint
        ended_badly = any(crash_of(pod) for pod in view.pods or [])
        alone = self._is_new and not view.former_pods
        return complaint if ended_badly or alone else ""

    def _explain(self, view: View) -> None:
        """Report what holds the pods up. Raises ClusterError for what no waiting cures."""
        if view.pods is None:
            return
        made = view.service["metadata"].get("creationTimestamp", "")
        self._diagnostics.explain(self._name, view.pods, made)
        own_events = [] if view.pods else self._api.events(self._name, self._wait)
        recent = [event for event in own_events if event_time(event) >= made]
        self._wait.obstacle(f"InferenceService {self._name}", warning_of(recent))
        self._check_node(view)

    def _check_node(self, view: View) -> None:
        """Report a rollout that the former pods block. Raises NoNodeError after long."""
        waiting = [waiting_of(pod) for pod in view.pods or []]
        no_node = next((reason for reason in waiting if reason.startswith("no node")), "")
        blocked = no_node and view.former_pods
        self._wait.obstacle(
            f"{self._name}, rollout",
            "the former pod keeps its CPUs and GPUs until the new one is ready;"
            " with --rollout recreate it goes first"
            if blocked
            else "",
        )
        if not no_node:
            self._no_node_since = None
            return
        left = self._wait.left()
        self._no_node_since = left if self._no_node_since is None else self._no_node_since
        waited = self._no_node_since - left
        if self._no_node_seconds is not None and waited > self._no_node_seconds:
            raise NoNodeError(f"service {self._name}: {no_node}")

    def _failure(self, service: Manifest, complaint: str) -> str:
        """Why a service will not come up: its predictor's crash, or what KServe says."""
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
    """Of the Deployment and the Service that KServe makes for a predictor in RawDeployment mode."""
    return f"{name}-{PREDICTOR}"


def described(service: Manifest, namespace: str, *, inside: bool, certain: bool) -> Service:
    """The service with the address that answers from here, and how to reach it from elsewhere.

    Its own address answers inside the cluster, without the gateway's log-in. In RawDeployment mode
    status.url is the host of an Ingress, which need not exist: from outside `kubectl port-forward`
    always works.
    """
    name, status = name_of(service), service.get("status", {})
    public = _base(status.get("url") or "")
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
    """The address of a service inside the cluster."""
    address = (service.get("status", {}).get("address") or {}).get("url")
    namespace = service["metadata"]["namespace"]
    host = f"{predictor_name(name_of(service))}.{namespace}.svc.cluster.local"
    return _base(address or f"http://{host}")


def _base(url: str) -> str:
    """Without a path: some versions append that of the old protocol, ours start at the root."""
    return urlsplit(url)._replace(path="", query="").geturl()


def describe(api: Api, name: str) -> str:
    """What to read when a service does not answer.

    The conditions of the service that are not true, and the last lines of its pods.
    """
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
                finished="",
                previous=False,
                restarts=0,
            )
        log, _ = read_log(api, crash, wait)
        lines.append(
            f"last lines of pod {crash.pod}, container {crash.container} ({crash.reason}):"
        )
        lines += [f"  | {line}" for line in log or ["(no log to be had)"]]
    return "\n".join(lines)


def untrue_conditions(service: Manifest) -> str:
    """The conditions that are not true, as 'PredictorReady: MinimumReplicasUnavailable'."""
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
    """The state of a service that is not yet ready twice, for a line of progress."""
    if is_ready:
        return "ready, looking once more"
    conditions = untrue_conditions(view.service)
    if conditions:
        return f"not ready: {conditions}"
    if not is_true(view.service, "Ready"):
        return "not ready: KServe has not looked at it yet"
    if any(ready(pod) for pod in view.pods or []):
        return "its new pods are ready, the former ones still answer"
    return "its new pods are not ready yet"


def _can_tell(view: View) -> bool:
    """Whether it can be seen without pods that the former model no longer answers."""
    return view.deployment is not None or bool(_revisions(view.service)[0])


def _revisions(service: Manifest) -> tuple[str, str]:
    """The predictor's latest created and latest ready revision; empty in RawDeployment mode."""
    components = service.get("status", {}).get("components") or {}
    predictor = components.get("predictor") or {}
    return predictor.get("latestCreatedRevision") or "", predictor.get("latestReadyRevision") or ""


def _rolled_out(deployment: Manifest, revision: str) -> bool:
    """Whether all replicas of a Deployment are of this spec and available, and no other is left.

    The rule of `kubectl rollout status`.
    """
    if not _is_of(deployment, revision):
        return False
    replicas = deployment["spec"].get("replicas", 1)
    status = deployment.get("status", {})
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    return counts == [replicas, replicas, replicas]


def _gave_up(deployment: Manifest, revision: str) -> bool:
    """Whether the Deployment of this spec made no progress within its own deadline."""
    progressing = condition(deployment, "Progressing") or {}
    return _is_of(deployment, revision) and progressing.get("status") == "False"


def _is_of(deployment: Manifest, revision: str) -> bool:
    """Whether the Deployment has this spec and its controller has seen it."""
    observed = deployment.get("status", {}).get("observedGeneration", 0)
    template = deployment["spec"]["template"]
    return _labels(template).get(REVISION_LABEL) == revision and observed >= deployment[
        "metadata"
    ].get("generation", 0)


def _labels(thing: Manifest) -> dict[str, str]:
    return thing["metadata"].get("labels") or {}


def _model_failure(service: Manifest) -> tuple[str, bool]:
    """What KServe says is wrong with the model, and whether it says so because of a pod.

    The text is empty if it has no complaint (yet).
    """
    model = service.get("status", {}).get("modelStatus") or {}
    status = model.get("transitionStatus")
    if status not in ("InvalidSpec", "BlockedByFailedLoad"):
        return "", False
    info = model.get("lastFailureInfo") or {}
    text = f"{status}: {info.get('reason', '')}: {last_line(info.get('message', ''))}"
    return text, status == "BlockedByFailedLoad"
