"""One wait of a cluster home: what it waits for, until when, what it has told, and why it is not
over yet.
"""

from __future__ import annotations

import time

from clusters.protocol import Report
from common.errors import DeadlineError
from common.progress import clock


class Wait:
    """A wait with a deadline, `seconds` from now, that tells each thing once.

    >>> wait = Wait("job x", 60, print)
    >>> wait.tell("state", "job x: running")  # a second call with the same line says nothing
    """

    def __init__(self, what: str, seconds: float, report: Report) -> None:
        self.what, self.seconds = what, seconds
        self._ends, self._report = time.monotonic() + seconds, report
        self._told: dict[str, str] = {}
        self._obstacles: dict[str, str] = {}

    def left(self) -> float:
        """Seconds until the deadline, negative after it."""
        return self._ends - time.monotonic()

    def tell(self, topic: str, line: str) -> None:
        """Report `line` unless it is what was last told about `topic`."""
        if self._told.get(topic) != line:
            self._told[topic] = line
            self._report(line)

    def obstacle(self, topic: str, reason: str, *, quiet: bool = False) -> None:
        """Note what holds the wait up now, and tell it unless `quiet`; an empty reason takes it
        back.

        The deadline's error lists what is left.
        """
        if reason:
            self._obstacles[topic] = reason
            if not quiet:
                self.tell(f"obstacle {topic}", f"{topic}: {reason}")
        elif self._obstacles.pop(topic, None):
            self._told.pop(f"obstacle {topic}", None)  # should it come back, it is news again

    def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline.

        Raises DeadlineError if that has passed; KeyboardInterrupt goes through.
        """
        left = self.left()
        if left <= 0:
            raise DeadlineError(self.overdue())
        time.sleep(min(seconds, left))

    def overdue(self) -> str:
        """The sentence of a wait that ran out of time: what was waited for, and what held it up."""
        text = f"{self.what} did not end within {clock(self.seconds)}"
        state = self._told.get("state")
        if state:
            text += f"; last seen: {state}"
        return "\n  ".join(
            [text, *(f"{topic}: {reason}" for topic, reason in self._obstacles.items())]
        )


def ignore(_: str) -> None:
    """A report to nobody, for waits without an audience."""
