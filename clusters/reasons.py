"""Why a pod waits or died, read from its status and events.

Pure functions over the dicts that the API server gives.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from clusters.protocol import Manifest

# beside the pod's own container; they fail because it did, or because it has not started
SIDECARS = {"istio-proxy", "metrics-logger-and-collector", "queue-proxy"}
# a pod with one of these has no other container of its own, whatever else was injected
MAIN = {"pytorch", "kserve-container", "main", "suggestion", "early-stopping"}
# not reasons: on the way up, or down (see crash_of)
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
# A controller met its own older write (409) and tries again: harmless, and no reason.
CONFLICT = "the object has been modified"
# of KServe: a service's conditions say the same, with reasons
SUMMARIES = {"InferenceServiceNotReady"}
# characters of a message from a pod or event: enough for a scheduler's sentence, short enough for a
# line
LONGEST = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crash:
    """The end of a container that should not have ended so."""

    pod: str
    container: str
    """Empty if the pod ended without a container to blame."""
    reason: str
    """As 'exit code 1', 'OOMKilled (exit code 137)' or 'Evicted: <the message>'."""
    finished: str
    previous: bool
    """Whether the container runs again since, so that the log to read is the previous one's."""
    restarts: int
    sidecar: bool = False

    @property
    def attempt(self) -> int:
        """Which start of the container this was the end of, from 0."""
        return self.restarts - self.previous


def short(text: str, limit: int = LONGEST) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def last_line(text: str, limit: int = LONGEST) -> str:
    """The last line of a text that is not blank, shortened.

    A termination message may hold the end of a whole log; the exception is its last line.
    """
    lines = [line for line in str(text).splitlines() if line.strip()]
    return short(lines[-1], limit) if lines else ""


def name_of(thing: Manifest) -> str:
    """Name of an object."""
    name: str = thing["metadata"]["name"]
    return name


def phase_of(pod: Manifest) -> str:
    """Phase of a pod; Pending before it has one."""
    phase: str = pod.get("status", {}).get("phase", "Pending")
    return phase


def condition(thing: Manifest, kind: str) -> Manifest | None:
    """The condition of this type in a status, whatever its value; None if there is none."""
    conditions: list[Manifest] = thing.get("status", {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == kind), None)


def is_true(thing: Manifest, kind: str) -> bool:
    """Whether a condition of an object is True."""
    entry = condition(thing, kind)
    return entry is not None and entry.get("status") == "True"


def message_of(thing: Manifest, kind: str) -> str:
    """The message of a condition in one line; empty if there is none."""
    return short((condition(thing, kind) or {}).get("message", ""))


def reason_of(thing: Manifest, kind: str) -> str:
    """The reason of a condition, one word; empty if there is none."""
    return str((condition(thing, kind) or {}).get("reason", ""))


def crash_of(pod: Manifest) -> Crash | None:
    """The first of the pod's own containers that ended badly, now or before its last restart.

    If none of them did, the first sidecar that ended badly while they ran or after them. Katib's
    collector, for one, ends with 255 for as long as the training's container has not started.
    None if none did.
    """
    own = [status for status in _containers(pod) if not _is_sidecar(pod, status["name"])]
    beside = [status for status in _containers(pod) if _is_sidecar(pod, status["name"])]
    crashes = [crash for status in own if (crash := _container_crash(pod, status))]
    if not crashes:
        started = max((_started(status) for status in own), default="")
        ends = [_container_crash(pod, status) for status in beside]
        crashes = [
            dataclasses.replace(crash, sidecar=True)
            for crash in ends
            if crash and started <= crash.finished
        ]
    first = min(crashes, key=lambda crash: crash.finished, default=None)
    status = pod.get("status", {})
    if phase_of(pod) != "Failed" or not status.get("reason"):
        return first
    # The pod as a whole was ended (Evicted, Preempting, NodeLost, DeadlineExceeded): the containers
    # only obeyed.
    message = f": {short(status['message'])}" if status.get("message") else ""
    if first:
        return dataclasses.replace(first, reason=status["reason"] + message)
    return Crash(
        pod=name_of(pod),
        container="",
        reason=status["reason"] + message,
        finished="",
        previous=False,
        restarts=0,
    )


def _containers(pod: Manifest) -> list[Manifest]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _is_sidecar(pod: Manifest, name: str) -> bool:
    """Whether a container was put beside the pod's own. Init containers that end are its own."""
    if name in SIDECARS:
        return True
    for container in pod.get("spec", {}).get("initContainers") or []:
        if container["name"] == name:
            return bool(container.get("restartPolicy") == "Always")
    names = {status["name"] for status in pod["status"].get("containerStatuses") or []}
    return name in names and bool(names & MAIN) and name not in MAIN


def _started(status: Manifest) -> str:
    """When a container last started; 'never' comes after every time."""
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
            return None  # it ended well, whatever happened before
        if end:
            return Crash(
                pod=name_of(pod),
                container=status["name"],
                reason=_exit_reason(end),
                finished=end.get("finishedAt") or "",
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
    """Whether a container of the pod ended badly again and again.

    It was restarted `restarts` times and is not ready since.
    """
    unwell = (
        status
        for status in _containers(pod)
        if not status.get("ready") and status.get("restartCount", 0) >= restarts
    )
    return any(_container_crash(pod, status) for status in unwell)


def waiting_of(pod: Manifest) -> str:
    """Why a pod has not started yet; empty if it has.

    CREATING may hide a volume that cannot be mounted, which only events show.
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
    """The same text for ErrImagePull and ImagePullBackOff, which alternate.

    The second one repeats the first one's message since Kubernetes 1.32, and has none before.
    """
    text = f"its image {image} cannot be pulled (check its name, and the pull secret of its"
    text += " registry)"
    detail = short(BACK_OFF.sub("", message))
    return f"{text}: {detail}" if detail else text


def stuck(pod: Manifest) -> bool:
    """Whether the pod waits for an image, a secret or a config map that does not exist."""
    reasons = {
        ((status.get("state") or {}).get("waiting") or {}).get("reason")
        for status in _containers(pod)
    }
    return phase_of(pod) == "Pending" and bool(reasons & (IMAGE | CONFIG))


def event_time(event: Manifest) -> str:
    """When an event was last seen, as '2026-01-01T00:00:00Z' to the second; empty if unknown."""
    series = (event.get("series") or {}).get("lastObservedTime")
    time = event.get("lastTimestamp") or series or event.get("eventTime") or ""
    return f"{time[:19]}Z" if time else ""


def warning_of(events: Iterable[Manifest]) -> str:
    """The newest warning of events that are listed oldest first; empty if there is none.

    Warnings about a sidecar are left out: they do not say why the pod's own container waits.
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
    """The container that an event of a pod is about; empty if it is about the whole pod."""
    path = (event.get("involvedObject") or {}).get("fieldPath") or ""
    match = re.fullmatch(r"spec\.\w+\{(.+)\}", path)
    return match[1] if match else ""


def ready(pod: Manifest) -> bool:
    """Whether a pod runs and is ready."""
    return phase_of(pod) == "Running" and is_true(pod, "Ready")


def lives(pods: Iterable[Manifest]) -> frozenset[tuple[str, int]]:
    """Each pod's uid with the number of its restarts.

    The answer is equal at two times if no container ended in between.
    """
    restarts = []
    for pod in pods:
        count = sum(status.get("restartCount", 0) for status in _containers(pod))
        restarts.append((pod["metadata"]["uid"], count))
    return frozenset(restarts)
