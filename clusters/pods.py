"""Collect why pods wait or fail, and their last log lines, before controllers delete them.

The training operator deletes every pod of a job that reached its backoff limit or deadline, and
Katib deletes the jobs of trials that are not retained. So the last lines of a container are read as
soon as it is seen to have ended badly.
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
from clusters.server_log import load_failure, worth_reading
from clusters.waiting import Wait
from common.errors import ClusterError, DeadlineError

NO_POD = "has no pod yet"
# every pod goes through these; only one that stays there is worth a line
PASSING = {NO_POD, NOT_SCHEDULED, CREATING}
LOG_LINES = 20  # of a container that ended badly: a traceback's end and what led to it
SERVER = "kserve-container"
SERVER_LOG_LINES = 400  # of a model server, whose reason stands above its tables of options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """A crash and the last lines before it."""

    crash: Crash
    lines: list[str]
    cause: str = ""
    """The line of the log that names the reason, where it is not the last one."""

    def reason(self) -> str:
        """As 'exit code 1: error: the loss is not finite'.

        The text is the same for the same failure, whatever the pod's name.
        """
        cause = short(self.cause) or last_line("\n".join(self.lines), 200)
        if not cause or cause in self.crash.reason:
            return self.crash.reason
        return f"{self.crash.reason}: {cause}"

    def text(self) -> str:
        """The pod, the reason and the last lines, indented, for the end of an error."""
        container = f", container {self.crash.container}" if self.crash.container else ""
        head = f"last lines of pod {self.crash.pod}{container} ({self.crash.reason}):"
        lines = self.lines or ["(no log available)"]
        return "\n".join([head, *(f"  | {line}" for line in lines)])


def read_log(api: Api, crash: Crash, wait: Wait) -> tuple[list[str], str]:
    """The lines of a container's log that are worth reading, and the one that names the reason.

    The second is empty where the last line is the reason.
    """
    if not crash.container:
        return [], ""
    count = SERVER_LOG_LINES if crash.container == SERVER else LOG_LINES
    lines = api.log(crash.pod, crash.container, wait, lines=count, previous=crash.previous)
    if crash.container != SERVER:
        return lines, ""
    return worth_reading(lines, LOG_LINES), load_failure(lines)


class PodDiagnostics:
    """Follow the pods of one wait.

    The value of the label `owner_label` names the object that a pod belongs to (a job, a service).
    Lines about an owner begin with `topic`. Each owner has `replicas` pods at least. Where they are
    made for a ReplicaSet OWNER-WORD-HASH, and not for the owner itself, `replica_set` is the word.
    """

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
        """Watch the pods with this label; `patience` (s) is how long one may wait."""
        self._api = api
        self._wait = wait
        self._owner_label = owner_label
        self._patience = patience
        self._topic = topic
        self._replicas = replicas
        self._replica_set = replica_set
        self._refusals: dict[str, str] = {}
        self._endings: dict[str, list[Ending]] = {}
        self._seen: set[tuple[str, str, int, str]] = set()
        self._looked_back: set[str] = set()
        self._stuck_since: dict[str, float] = {}
        self._last: dict[str, str] = {}

    def look(
        self, owners: Iterable[str], counts: Callable[[Manifest], bool] = lambda pod: True
    ) -> dict[str, list[Manifest]] | None:
        """The pods of each owner now, without those that do not count; None if pods cannot be read.

        Remembers the containers that ended badly. Raises DeadlineError for a pod that could not
        start for `patience` seconds because an image or a secret is missing.
        """
        grouped: dict[str, list[Manifest]] = {owner: [] for owner in owners}
        if not grouped:
            return {}
        pods = self._api.pods(f"{self._owner_label} in ({', '.join(grouped)})", self._wait)
        if pods is None:
            return None
        for pod in filter(counts, pods):
            grouped[pod["metadata"]["labels"][self._owner_label]].append(pod)
            self._remember(pod)
            self._check_stuck(pod)
        return grouped

    def look_back(self, owners: Iterable[str]) -> None:
        """Read the pods of owners that have ended badly, once for each owner."""
        unread = [owner for owner in owners if owner not in self._looked_back]
        if self.look(unread) is not None:
            self._looked_back.update(unread)

    def explain(self, owner: str, pods: list[Manifest], since: str = "") -> bool:
        """Report why the pods of an owner wait, and take it back when they no longer do.

        Events before `since`, the owner's creationTimestamp, do not count. Returns True while none
        of the pods has started. Raises ClusterError if no pod can be created, however long we
        wait.
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
            # Katib waits for ever for a collector that reported nothing. Then the deadline's error
            # names this.
            reasons = ["its pods have finished, the controller has not said so yet"]
        reason = next(filter(None, reasons), "")
        passing = reason in PASSING and self._last.get(owner) != reason
        self._last[owner] = reason
        self._wait.obstacle(self._topic + owner, reason, quiet=passing)
        self._check_refusal(owner, refusal)
        return all(waiting_of(pod) for pod in pods)

    def settle(self, owner: str) -> None:
        """Take back why an owner waited, because it has ended."""
        self._last.pop(owner, None)
        self._wait.obstacle(self._topic + owner, "")

    def ending(self, owner: str) -> Ending | None:
        """How the container ended that failed first in the owner's last attempt.

        None if nothing is known. An earlier attempt if there is no log of the last one, because a
        pod may be deleted between its last crash and our reading it.
        """
        endings = self._endings.get(owner, [])
        # the attempts of a sidecar are not those of the pod's own container
        own = [ending for ending in endings if not ending.crash.sidecar] or endings
        with_log = [ending for ending in own if ending.lines]
        candidates = with_log or own
        latest = max((ending.crash.attempt for ending in candidates), default=0)
        return next((ending for ending in candidates if ending.crash.attempt == latest), None)

    def _remember(self, pod: Manifest) -> None:
        """Read the last lines of a container that ended badly, and report how it ended."""
        crash = crash_of(pod)
        if crash is None:
            return
        key = (pod["metadata"]["uid"], crash.container, crash.attempt, crash.reason)
        if key in self._seen:
            return
        self._seen.add(key)
        lines, cause = read_log(self._api, crash, self._wait)
        ending = Ending(crash=crash, lines=lines, cause=cause)
        endings = self._endings.setdefault(pod["metadata"]["labels"][self._owner_label], [])
        endings.append(ending)
        endings.sort(key=lambda ending: ending.crash.finished)
        # a container may start again; the pod has ended only where none is to blame
        what = f"container {crash.container} of pod" if crash.container else "pod"
        self._wait.tell(f"ending {crash.pod}", f"{what} {crash.pod} ended: {ending.reason()}")

    def _creation_events(self, owner: str) -> list[Manifest]:
        """The events of what creates an owner's pods."""
        if self._replica_set:
            prefix = f"{owner}-{self._replica_set}-"
            return self._api.events_of("ReplicaSet", prefix, self._wait)
        return self._api.events(owner, self._wait)

    def _check_refusal(self, owner: str, refusal: Refusal | None) -> None:
        """Give up on pods that cannot be created, once another attempt was refused as well.

        A refusal that we only read about may be older than its cure: a ReplicaSet's next attempt
        comes up to 17 minutes after the last one.
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
        if reason == CREATING:  # a volume that cannot be mounted shows in events only
            reason = warning_of(self._api.events(name_of(pod), self._wait)) or reason
        return reason
