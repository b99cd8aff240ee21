"""One wait of the Kubernetes backend: what it waits for, its deadline, and why it is not over."""

from __future__ import annotations

import time

from clusters.protocol import Report
from common.errors import DeadlineError
from common.progress import clock


class Wait:
    """A wait with a deadline, `seconds` from now, that reports each change once.

    >>> wait = Wait("job x", 60, print)
    >>> wait.tell("state", "job x: running")  # a second call with the same line says nothing
    """

    def __init__(self, what: str, seconds: float, report: Report, *, quiet: float = 0.0) -> None:
        """`quiet`: seconds from now in which no obstacle is reported, as it may pass."""
        self.what = what
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._quiet_until = time.monotonic() + quiet
        self._report = report
        self._lines: dict[str, str] = {}
        self._obstacles: dict[str, str] = {}
        self._reported: dict[str, list[str]] = {}

    def left(self) -> float:
        """Seconds until the deadline, negative after it."""
        return self._ends - time.monotonic()

    def tell(self, topic: str, line: str) -> None:
        """Report `line`, unless it is the last line that was reported about `topic`."""
        if self._lines.get(topic) != line:
            self._lines[topic] = line
            self._report(line)

    def obstacle(self, topic: str, reason: str, *, quiet: bool = False) -> None:
        """Note what holds the wait up now, and report each reason once unless `quiet`.

        An empty reason takes it back. The deadline's error lists what is left.
        """
        if reason:
            reported = self._reported.setdefault(topic, [])
            # the beginning of a reason that was reported says nothing new
            reason = next((line for line in reported if line.startswith(reason)), reason)
            self._obstacles[topic] = reason
            quiet = quiet or time.monotonic() < self._quiet_until
            if not quiet and reason not in reported:
                reported.append(reason)
                self._report(f"{topic}: {reason}")
        elif self._obstacles.pop(topic, None):
            # should it come back, it is reported again
            self._reported.pop(topic, None)

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline.

        Raises DeadlineError if that has passed; KeyboardInterrupt goes through.
        """
        left = self.left()
        if left <= 0:
            raise DeadlineError(self.overdue())
        time.sleep(min(seconds, left))

    def overdue(self) -> str:
        """The deadline's error: what was waited for, and what held it up."""
        text = f"{self.what} did not end within {clock(self.seconds)}"
        state = self._lines.get("state")
        if state:
            text += f"; last seen: {state}"
        obstacles = [f"{topic}: {reason}" for topic, reason in self._obstacles.items()]
        return "\n  ".join([text, *obstacles])


def ignore(_: str) -> None:
    """Discard progress messages."""
