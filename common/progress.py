"""A progress bar with rate and time left.

On a terminal the bar moves; elsewhere (a pod's log, a file) a line is printed every ten seconds.
"""

from __future__ import annotations

import sys
import time

# between two lines where there is no terminal: often enough to see life, seldom enough for logs
QUIET_SECONDS = 10.0


class Progress:
    """Show on stderr how many of `total` items are done. Use as a context manager.

    >>> with Progress("decoding", total=3, unit="files") as progress:
    ...     progress.advance(1, note="a.root")
    """

    def __init__(self, label: str, *, total: int, unit: str = "it") -> None:
        """Start the clock; nothing is shown yet."""
        self.label = label
        self.total = total
        self.unit = unit
        self.num_done = 0
        self._num_resumed = 0
        self._start_time = time.monotonic()
        self._last_update = self._start_time
        self._note = ""
        self._tty = sys.stderr.isatty()
        self._width = 0

    def __enter__(self) -> Progress:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Show the last state; the bar ends with a line of its own if all went well."""
        self._show(final=kind is None)

    def resume(self, num_done: int) -> None:
        """Start with items that an earlier process has done; they do not count for the rate."""
        self.num_done = num_done
        self._num_resumed = num_done

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count more items as done; update the display if the last update is long enough ago."""
        self.num_done += count
        self._note = note or self._note
        now = time.monotonic()
        if now - self._last_update >= (0.1 if self._tty else QUIET_SECONDS):
            self._last_update = now
            self._show()

    def text(self) -> str:
        """Return the line now: label, bar, count, rate, time left."""
        seconds = max(time.monotonic() - self._start_time, 1e-9)
        rate = (self.num_done - self._num_resumed) / seconds
        share = min(self.num_done / self.total, 1.0) if self.total else 1.0
        remaining_seconds = (self.total - self.num_done) / rate if rate > 0 else 0.0
        bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
        time_part = f"{clock(remaining_seconds)} left" if share < 1 else f"in {clock(seconds)}"
        note = f"  {self._note}" if self._note else ""
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        count = f"{self.num_done:,}/{self.total:,} {self.unit}"
        return f"{self.label} {bar} {count}  {speed} {self.unit}/s  {time_part}{note}"

    def _show(self, final: bool = False) -> None:
        text = self.text()
        if self._tty:
            end = "\n" if final else ""
            print("\r" + text.ljust(self._width), end=end, file=sys.stderr, flush=True)
            self._width = len(text)
        else:
            print(text, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return the seconds as people write them: 8 s, 3 min 05 s, 2 h 10 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
