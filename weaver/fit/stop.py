"""Being told to stop: a signal is remembered, and the training stops at the end of its step, with a
checkpoint.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Remembers SIGTERM (preemption) and SIGINT (Ctrl-C) while it is entered.

    A second one acts as it would without.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell reports for a process ended by that signal: 143 for SIGTERM, also on a rank
        that only heard of it.
        """
        return 128 + (self.received or signal.SIGTERM)

    def __enter__(self) -> StopSignal:
        # Python delivers signals there only
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _frame: Any) -> None:
        self.received = number
        self.__exit__()
