"""A wait of the Kubernetes backend, with its deadline and the reasons why it has not ended."""

from __future__ import annotations

import time

from clusters.protocol import Report
from common.errors import DeadlineError
from common.progress import clock


class Wait:
    """A wait with a deadline, `seconds` from now, that reports each change once.

    >>> wait = Wait("job x", 60, print) >>> wait.tell("state", "job x: running")  # a second call
    with the same line reports nothing
    """

    def __init__(self, what: str, seconds: float, report: Report, *, quiet: float = 0.0) -> None:
        """Start the wait.

        Args:
            what: What is waited for, for messages.
            seconds: Time until the deadline.
            report: Called with each line of progress.
            quiet: Seconds from now during which obstacles are not reported, because they may pass.
        """
        self.what = what
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._quiet_until = time.monotonic() + quiet
        self._report = report
        self._lines: dict[str, str] = {}
        self._obstacles: dict[str, str] = {}
        self._reported_reasons: dict[str, list[str]] = {}

    def seconds_left(self) -> float:
        """Return the seconds until the deadline, negative after it."""
        return self._ends - time.monotonic()

    def tell(self, topic: str, line: str) -> None:
        """Report `line`, unless it is the last line that was reported about `topic`."""
        if self._lines.get(topic) != line:
            self._lines[topic] = line
            self._report(line)

    def obstacle(self, topic: str, reason: str, *, quiet: bool = False) -> None:
        """Record why the wait has not ended, and report each reason once unless `quiet`.

        An empty reason withdraws it. The error at the deadline lists the reasons that remain.
        """
        if reason:
            reported_reasons = self._reported_reasons.setdefault(topic, [])
            # a reason that is the beginning of a reported one is not new
            reason = next((line for line in reported_reasons if line.startswith(reason)), reason)
            self._obstacles[topic] = reason
            quiet = quiet or time.monotonic() < self._quiet_until
            if not quiet and reason not in reported_reasons:
                reported_reasons.append(reason)
                self._report(f"{topic}: {reason}")
        elif self._obstacles.pop(topic, None):
            # if it comes back, it is reported again
            self._reported_reasons.pop(topic, None)

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline. KeyboardInterrupt passes through.

        Raises:
            DeadlineError: If the deadline has passed.
        """
        seconds_left = self.seconds_left()
        if seconds_left <= 0:
            raise DeadlineError(self.overdue())
        time.sleep(min(seconds, seconds_left))

    def overdue(self) -> str:
        """Return the message of the deadline error: what was waited for, and the obstacles."""
        text = f"{self.what} did not end within {clock(self.seconds)}"
        state = self._lines.get("state")
        if state:
            text += f"; last seen: {state}"
        obstacles = [f"{topic}: {reason}" for topic, reason in self._obstacles.items()]
        return "\n  ".join([text, *obstacles])


def ignore(_: str) -> None:
    """Discard progress messages."""
