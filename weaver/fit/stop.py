"""Stop on a signal, with a checkpoint.

The signal is remembered, and the training stops at the end of its step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Remembers SIGTERM (preemption) and SIGINT (Ctrl-C) while it is entered.

    A second signal has its usual effect.
    """

    def __init__(self) -> None:
        """Begin without a signal."""
        self.received = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """The code that a shell reports for a process that the signal ended: 143 for SIGTERM.

        Also on a rank that another one told to stop.
        """
        return 128 + (self.received or signal.SIGTERM)

    def __enter__(self) -> StopSignal:
        # Python delivers signals there only
        """Listen to the signals, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self.receive) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        """Restore the handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal, and give the next one back to its usual handler."""
        self.received = number
        self.__exit__()
