"""Collect why pods wait or fail, and their last log lines, before controllers delete them.

The training operator deletes all pods of a job that reached its backoff limit or deadline, and
Katib deletes the jobs of trials that are not retained. So the last log lines of a container are
read as soon as it has failed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

from clusters.api import Api
from clusters.protocol import Manifest
from clusters.reasons import (
    CREATING,
    NOT_SCHEDULED,
    Crash,
    crash_of,
    event_time,
    last_line,
    name_of,
    phase_of,
    short,
    stuck,
    waiting_of,
    warning_of,
)
from clusters.refusals import Refusal, refusal_of
from clusters.server_log import load_failure, useful_lines
from clusters.waiting import Wait
from common.errors import ClusterError, DeadlineError

NO_POD = "has no pod yet"
# every pod passes these states; only a pod that stays in one is reported
USUAL_REASONS = {NO_POD, NOT_SCHEDULED, CREATING}
LOG_LINES = 20  # lines of a failed container: the end of a traceback and what preceded it
SERVER = "kserve-container"
SERVER_LOG_LINES = 400  # more for a model server, which prints tables of options after the reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """A crash of a container, with its last log lines."""

    crash: Crash
    lines: list[str]
    cause: str = ""
    """Line of the log with the reason; empty if it is the last line."""

    def reason(self) -> str:
        """Return the reason in one line: 'exit code 1: error: the loss is not finite'.

        It does not depend on the name of the pod, so that equal failures have equal reasons.
        """
        cause = short(self.cause) or last_line("\n".join(self.lines), 200)
        if not cause or cause in self.crash.reason:
            return self.crash.reason
        return f"{self.crash.reason}: {cause}"

    def text(self) -> str:
        """Return the pod, the reason and the last lines, indented, for the end of an error."""
        container = f", container {self.crash.container}" if self.crash.container else ""
        head = f"last lines of pod {self.crash.pod}{container} ({self.crash.reason}):"
        lines = self.lines or ["(no log available)"]
        return "\n".join([head, *(f"  | {line}" for line in lines)])


def read_log(api: Api, crash: Crash, wait: Wait) -> tuple[list[str], str]:
    """Return the useful lines of a container's log, and the line with the reason.

    The second is empty if the last line is the reason.
    """
    if not crash.container:
        return [], ""
    count = SERVER_LOG_LINES if crash.container == SERVER else LOG_LINES
    lines = api.log(crash.pod, crash.container, wait, lines=count, previous=crash.previous)
    if crash.container != SERVER:
        return lines, ""
    return useful_lines(lines, LOG_LINES), load_failure(lines)


class PodDiagnostics:
    """Diagnoses the pods of one wait, and remembers how they ended."""

    def __init__(
        self,
        api: Api,
        wait: Wait,
        owner_label: str,
        *,
        patience: float,
        topic: str = "",
        replicas: int = 1,
        replica_set: str = "",
    ) -> None:
        """Diagnose pods with a label.

        Args:
            api: Access to the API server.
            wait: The wait that gets the reasons.
            owner_label: Label whose value names the owner of a pod (a job, a service).
            patience: Seconds that a pod may lack an image or a secret.
            topic: Beginning of lines about an owner.
            replicas: Number of pods of each owner, at least.
            replica_set: WORD of the ReplicaSet OWNER-WORD-HASH that creates the pods; empty if the
                owner itself does.
        """
        self._api = api
        self._wait = wait
        self._owner_label = owner_label
        self._patience = patience
        self._topic = topic
        self._replicas = replicas
        self._replica_set = replica_set
        self._refusals: dict[str, str] = {}
        self._endings: dict[str, list[Ending]] = {}
        self._known_crashes: set[tuple[str, str, int, str]] = set()
        self._read_owners: set[str] = set()
        self._stuck_since: dict[str, float] = {}
        self._last: dict[str, str] = {}

    def look(
        self, owners: Iterable[str], counts: Callable[[Manifest], bool] = lambda pod: True
    ) -> dict[str, list[Manifest]] | None:
        """Return the current pods of each owner for which `counts` is true; None if unreadable.

        Remembers the containers that failed.

        Raises:
            DeadlineError: If a pod could not start for `patience` seconds because an image or a
                secret is missing.
        """
        pods_by_owner: dict[str, list[Manifest]] = {owner: [] for owner in owners}
        if not pods_by_owner:
            return {}
        pods = self._api.pods(f"{self._owner_label} in ({', '.join(pods_by_owner)})", self._wait)
        if pods is None:
            return None
        for pod in filter(counts, pods):
            pods_by_owner[pod["metadata"]["labels"][self._owner_label]].append(pod)
            self._remember(pod)
            self._check_stuck(pod)
        return pods_by_owner

    def read_pods_of(self, owners: Iterable[str]) -> None:
        """Read the pods of failed trials or jobs, to remember how their containers ended.

        Each owner is read once successfully; later calls skip it.
        """
        unread = [owner for owner in owners if owner not in self._read_owners]
        if self.look(unread) is not None:
            self._read_owners.update(unread)

    def explain(self, owner: str, pods: list[Manifest], since: str = "") -> bool:
        """Report why the pods of an owner wait, and withdraw it when they no longer do.

        Args:
            owner: The owner.
            pods: Its pods.
            since: creationTimestamp of the owner; earlier events do not count.

        Returns:
            True while none of the pods has started.

        Raises:
            ClusterError: If its pods can never be created.
        """
        reasons = [self._waiting(pod) for pod in pods]
        refusal = None
        if len(pods) < self._replicas:
            events = [event for event in self._creation_events(owner) if event_time(event) >= since]
            refusal = refusal_of(events, since)
        if refusal:
            reasons = [refusal.text]
        elif not pods:
            reasons = [warning_of(events) or NO_POD]
        elif all(phase_of(pod) == "Succeeded" for pod in pods):
            # Katib waits for ever for a collector that reported nothing; the error at the deadline
            # then shows this reason.
            reasons = ["its pods have finished, the controller has not said so yet"]
        reason = next(filter(None, reasons), "")
        may_pass = reason in USUAL_REASONS and self._last.get(owner) != reason
        self._last[owner] = reason
        self._wait.obstacle(self._topic + owner, reason, quiet=may_pass)
        self._check_refusal(owner, refusal)
        return all(waiting_of(pod) for pod in pods)

    def settle(self, owner: str) -> None:
        """Withdraw the reason why an owner waited, because it has ended."""
        self._last.pop(owner, None)
        self._wait.obstacle(self._topic + owner, "")

    def ending(self, owner: str) -> Ending | None:
        """Return how the container ended that failed first in the last attempt of an owner.

        None if nothing is known. If there is no log of the last attempt, because its pod was
        deleted too early, an earlier attempt is returned.
        """
        endings = self._endings.get(owner, [])
        # sidecars count their attempts separately
        own = [ending for ending in endings if not ending.crash.sidecar] or endings
        with_log = [ending for ending in own if ending.lines]
        candidates = with_log or own
        latest = max((ending.crash.attempt for ending in candidates), default=0)
        return next((ending for ending in candidates if ending.crash.attempt == latest), None)

    def _remember(self, pod: Manifest) -> None:
        """Read the last lines of a container that failed, and report how it ended."""
        crash = crash_of(pod)
        if crash is None:
            return
        key = (pod["metadata"]["uid"], crash.container, crash.attempt, crash.reason)
        if key in self._known_crashes:
            return
        self._known_crashes.add(key)
        lines, cause = read_log(self._api, crash, self._wait)
        ending = Ending(crash=crash, lines=lines, cause=cause)
        endings = self._endings.setdefault(pod["metadata"]["labels"][self._owner_label], [])
        endings.append(ending)
        endings.sort(key=lambda ending: ending.crash.end_time)
        # a container may restart; the pod has ended only if no container is the cause
        what = f"container {crash.container} of pod" if crash.container else "pod"
        self._wait.tell(f"ending {crash.pod}", f"{what} {crash.pod} ended: {ending.reason()}")

    def _creation_events(self, owner: str) -> list[Manifest]:
        """Return the events of the object that creates the pods of an owner."""
        if self._replica_set:
            prefix = f"{owner}-{self._replica_set}-"
            return self._api.events_of("ReplicaSet", prefix, self._wait)
        return self._api.events(owner, self._wait)

    def _check_refusal(self, owner: str, refusal: Refusal | None) -> None:
        """Give up on pods that cannot be created, once a second attempt was refused.

        The refusal in an old event may no longer hold, and the next attempt of a ReplicaSet comes
        up to 17 minutes after the last one.
        """
        if refusal is None or not refusal.hopeless:
            self._refusals.pop(owner, None)
        elif self._refusals.setdefault(owner, refusal.occurrence) != refusal.occurrence:
            raise ClusterError(
                f"{self._wait.what} cannot start: {self._topic}{owner}: {refusal.text}"
            )

    def _check_stuck(self, pod: Manifest) -> None:
        uid = pod["metadata"]["uid"]
        if not stuck(pod):
            self._stuck_since.pop(uid, None)
            return
        since = self._stuck_since.setdefault(uid, time.monotonic())
        if time.monotonic() - since > self._patience:
            raise DeadlineError(
                f"{self._wait.what} cannot start: pod {name_of(pod)}: {waiting_of(pod)}"
            )

    def _waiting(self, pod: Manifest) -> str:
        reason = waiting_of(pod)
        if reason == CREATING:  # only events show a volume that cannot be mounted
            reason = warning_of(self._api.events(name_of(pod), self._wait)) or reason
        return reason
