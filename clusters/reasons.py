"""Why a pod waits or failed, read from its status and events.

Pure functions of the dicts that the API server returns.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from clusters.protocol import Manifest

# containers beside the pod's own; they fail because it failed or has not started
SIDECARS = {"istio-proxy", "metrics-logger-and-collector", "queue-proxy"}
# if a pod has one of these, all its other containers were injected
MAIN = {"pytorch", "kserve-container", "main", "suggestion", "early-stopping"}
# states of containers that start or restart, which are no reasons (see crash_of)
STARTING = {"", "ContainerCreating", "PodInitializing", "CrashLoopBackOff"}
IMAGE = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    "ImageInspectError",
}
BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*"(: \w+)?(: |$)')
CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
NOT_SCHEDULED, CREATING = "not scheduled yet", "its containers are being created"
# A controller repeats a conflicting write (409): harmless, and no reason.
CONFLICT = "the object has been modified"
# events of KServe that only repeat the conditions of a service
SUMMARIES = {"InferenceServiceNotReady"}
# characters of a message of a pod or event: long enough for a sentence of the scheduler
LONGEST = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crash:
    """The unsuccessful end of a container."""

    pod: str
    container: str
    """Empty if no container was the cause."""
    reason: str
    """'exit code 1', 'OOMKilled (exit code 137)' or 'Evicted: <the message>'."""
    end_time: str
    previous: bool
    """Whether the container has restarted since, so that its log is the previous one."""
    restarts: int
    sidecar: bool = False

    @property
    def attempt(self) -> int:
        """Number of the attempt that ended, from 0."""
        return self.restarts - self.previous


def short(text: str, limit: int = LONGEST) -> str:
    """Return text as one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def last_line(text: str, limit: int = LONGEST) -> str:
    """Return the last line of a text that is not blank, shortened.

    A termination message may hold the end of a whole log; the exception is its last line.
    """
    lines = [line for line in str(text).splitlines() if line.strip()]
    return short(lines[-1], limit) if lines else ""


def name_of(thing: Manifest) -> str:
    """Return the name of an object."""
    name: str = thing["metadata"]["name"]
    return name


def labels_of(thing: Manifest) -> dict[str, str]:
    """Return the labels of an object; empty if it has none."""
    return thing["metadata"].get("labels") or {}


def phase_of(pod: Manifest) -> str:
    """Return the phase of a pod; Pending before it has one."""
    phase: str = pod.get("status", {}).get("phase", "Pending")
    return phase


def condition(thing: Manifest, kind: str) -> Manifest | None:
    """Return the condition of this type, whatever its value; None if there is none."""
    conditions: list[Manifest] = thing.get("status", {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == kind), None)


def is_true(thing: Manifest, kind: str) -> bool:
    """Return whether a condition of an object is True."""
    entry = condition(thing, kind)
    return entry is not None and entry.get("status") == "True"


def message_of(thing: Manifest, kind: str) -> str:
    """Return the message of a condition in one line; empty if there is none."""
    return short((condition(thing, kind) or {}).get("message", ""))


def reason_of(thing: Manifest, kind: str) -> str:
    """Return the reason of a condition, one word; empty if there is none."""
    return str((condition(thing, kind) or {}).get("reason", ""))


def crash_of(pod: Manifest) -> Crash | None:
    """Return the first of the pod's own containers that failed, now or before its last restart.

    If none of them failed, the first sidecar that failed while they ran or after them: Katib's
    collector, for example, exits with 255 until the container of the training has started. None if
    no container failed.
    """
    own = [status for status in _containers(pod) if not _is_sidecar(pod, status["name"])]
    beside = [status for status in _containers(pod) if _is_sidecar(pod, status["name"])]
    crashes = [crash for status in own if (crash := _container_crash(pod, status))]
    if not crashes:
        last_start = max((_start_time(status) for status in own), default="")
        ends = [_container_crash(pod, status) for status in beside]
        crashes = [
            dataclasses.replace(crash, sidecar=True)
            for crash in ends
            if crash and last_start <= crash.end_time
        ]
    first = min(crashes, key=lambda crash: crash.end_time, default=None)
    status = pod.get("status", {})
    if phase_of(pod) != "Failed" or not status.get("reason"):
        return first
    # The whole pod was ended (Evicted, Preempting, NodeLost, DeadlineExceeded), so that its
    # containers were not the cause.
    message = f": {short(status['message'])}" if status.get("message") else ""
    if first:
        return dataclasses.replace(first, reason=status["reason"] + message)
    return Crash(
        pod=name_of(pod),
        container="",
        reason=status["reason"] + message,
        end_time="",
        previous=False,
        restarts=0,
    )


def _containers(pod: Manifest) -> list[Manifest]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _is_sidecar(pod: Manifest, name: str) -> bool:
    """Return whether a container was injected. Init containers that end belong to the pod."""
    if name in SIDECARS:
        return True
    for container in pod.get("spec", {}).get("initContainers") or []:
        if container["name"] == name:
            return bool(container.get("restartPolicy") == "Always")
    names = {status["name"] for status in pod["status"].get("containerStatuses") or []}
    return name in names and bool(names & MAIN) and name not in MAIN


def _start_time(status: Manifest) -> str:
    """Return when a container last started; 'never' sorts after all times."""
    for place, state in (
        ("state", "running"),
        ("state", "terminated"),
        ("lastState", "terminated"),
    ):
        start = ((status.get(place) or {}).get(state) or {}).get("startedAt")
        if start:
            return str(start)
    return "never"


def _container_crash(pod: Manifest, status: Manifest) -> Crash | None:
    for place, previous in (("state", False), ("lastState", True)):
        end = (status.get(place) or {}).get("terminated")
        if end and end.get("exitCode", 0) == 0:
            return None  # its last attempt succeeded
        if end:
            return Crash(
                pod=name_of(pod),
                container=status["name"],
                reason=_exit_reason(end),
                end_time=end.get("finishedAt") or "",
                previous=previous,
                restarts=status.get("restartCount", 0),
            )
    return None


def _exit_reason(end: Manifest) -> str:
    code, reason = end["exitCode"], end.get("reason") or "Error"
    if reason == "OOMKilled":
        return f"OOMKilled (exit code {code}): it used more memory than its limit"
    message = f": {last_line(end['message'])}" if end.get("message") else ""
    if reason == "Error":
        return f"exit code {code}{message}"
    return f"{reason} (exit code {code}){message}"


def crash_loops(pod: Manifest, restarts: int = 2) -> bool:
    """Return whether a container failed, was restarted `restarts` times and is still not ready."""
    unwell = (
        status
        for status in _containers(pod)
        if not status.get("ready") and status.get("restartCount", 0) >= restarts
    )
    return any(_container_crash(pod, status) for status in unwell)


def waiting_of(pod: Manifest) -> str:
    """Return why a pod has not started yet; empty if it has.

    CREATING may mean a volume that cannot be mounted, which only events show.
    """
    if phase_of(pod) != "Pending":
        return ""
    for status in _containers(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in IMAGE:
            return _image_missing(status.get("image", ""), waiting.get("message") or "")
        if reason not in STARTING:
            detail = short(waiting.get("message") or status.get("image", ""))
            return f"its container {status['name']} cannot be created: {reason}: {detail}"
    scheduled = condition(pod, "PodScheduled")
    if scheduled and scheduled.get("status") == "False":
        return f"no node takes it: {short(scheduled.get('message') or scheduled.get('reason', ''))}"
    return NOT_SCHEDULED if scheduled is None else CREATING


def _image_missing(image: str, message: str) -> str:
    """Return the same text for ErrImagePull and ImagePullBackOff, which alternate.

    The second repeats the message of the first since Kubernetes 1.32, and has none before.
    """
    text = f"its image {image} cannot be pulled (check its name, and the pull secret of its"
    text += " registry)"
    detail = short(BACK_OFF.sub("", message))
    return f"{text}: {detail}" if detail else text


def stuck(pod: Manifest) -> bool:
    """Return whether a pod waits for an image, a secret or a config map that does not exist."""
    reasons = {
        ((status.get("state") or {}).get("waiting") or {}).get("reason")
        for status in _containers(pod)
    }
    return phase_of(pod) == "Pending" and bool(reasons & (IMAGE | CONFIG))


def event_time(event: Manifest) -> str:
    """Return the time of an event, as '2026-01-01T00:00:00Z'; empty if unknown."""
    series = (event.get("series") or {}).get("lastObservedTime")
    time = event.get("lastTimestamp") or series or event.get("eventTime") or ""
    return f"{time[:19]}Z" if time else ""


def warning_of(events: Iterable[Manifest]) -> str:
    """Return the newest warning of events that are listed oldest first; empty if there is none.

    Warnings about a sidecar do not count, since they do not say why the pod's own container waits.
    """
    warnings = [
        event
        for event in events
        if event.get("type") == "Warning"
        and _container_of(event) not in SIDECARS
        and CONFLICT not in event.get("message", "")
        and event.get("reason") not in SUMMARIES
    ]
    if not warnings:
        return ""
    return f"{warnings[-1].get('reason', '')}: {short(warnings[-1].get('message', ''))}"


def _container_of(event: Manifest) -> str:
    """Return the container of an event of a pod; empty if it is about the whole pod."""
    path = (event.get("involvedObject") or {}).get("fieldPath") or ""
    match = re.fullmatch(r"spec\.\w+\{(.+)\}", path)
    return match[1] if match else ""


def ready(pod: Manifest) -> bool:
    """Return whether a pod runs and is ready."""
    return phase_of(pod) == "Running" and is_true(pod, "Ready")


def restart_counts(pods: Iterable[Manifest]) -> frozenset[tuple[str, int]]:
    """Return (uid, number of restarts of all containers) of each pod.

    The result changes whenever a container restarts or a pod is replaced.
    """
    restarts = []
    for pod in pods:
        count = sum(status.get("restartCount", 0) for status in _containers(pod))
        restarts.append((pod["metadata"]["uid"], count))
    return frozenset(restarts)
