"""Why a pod waits or died, read from its status and events.

Pure functions over the dicts that the API server gives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from clusters.protocol import Manifest

# they fail because the pod's own container did
SIDECARS = {"istio-proxy", "istio-init", "metrics-logger-and-collector", "queue-proxy"}
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
    name: str = thing["metadata"]["name"]
    return name


def phase_of(pod: Manifest) -> str:
    phase: str = pod.get("status", {}).get("phase", "Pending")
    return phase


def condition(thing: Manifest, kind: str) -> Manifest | None:
    """The condition of this type in a status, whatever its value; None if there is none."""
    conditions: list[Manifest] = thing.get("status", {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == kind), None)


def is_true(thing: Manifest, kind: str) -> bool:
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

    None if none did.
    """
    ends = [_container_crash(pod, status) for status in _containers(pod)]
    crashes = [crash for crash in ends if crash]
    first = min(
        crashes, key=lambda crash: (crash.container in SIDECARS, crash.finished), default=None
    )
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


def _container_crash(pod: Manifest, status: Manifest) -> Crash | None:
    for place, previous in (("state", False), ("lastState", True)):
        end = (status.get(place) or {}).get("terminated")
        if end and end.get("exitCode", 0) != 0:
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
        if waiting.get("reason", "") not in STARTING:
            what = (
                "its image cannot be pulled"
                if waiting["reason"] in IMAGE
                else "its container cannot be created"
            )
            return (
                f"{what}: {waiting['reason']}:"
                f" {short(waiting.get('message') or status.get('image', ''))}"
            )
    scheduled = condition(pod, "PodScheduled")
    if scheduled and scheduled.get("status") == "False":
        return f"no node takes it: {short(scheduled.get('message') or scheduled.get('reason', ''))}"
    return NOT_SCHEDULED if scheduled is None else CREATING


def stuck(pod: Manifest) -> bool:
    """Whether the pod waits for an image, a secret or a config map that does not exist."""
    reasons = {
        ((status.get("state") or {}).get("waiting") or {}).get("reason")
        for status in _containers(pod)
    }
    return phase_of(pod) == "Pending" and bool(reasons & (IMAGE | CONFIG))


def warning_of(events: Iterable[Manifest]) -> str:
    """The newest warning of events that are listed oldest first; empty if there is none."""
    warnings = [
        event
        for event in events
        if event.get("type") == "Warning"
        and CONFLICT not in event.get("message", "")
        and event.get("reason") not in SUMMARIES
    ]
    if not warnings:
        return ""
    reason = warnings[-1].get("reason", "")
    message = short(warnings[-1].get("message", ""))
    if "exceeded quota" in message:
        return f"quota: {message[message.index('exceeded quota') :]}"
    return f"{reason}: {message}"


def ready(pod: Manifest) -> bool:
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
