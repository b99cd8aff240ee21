"""Note a signal, so that the training can stop after its current step, with a checkpoint.

A step that compiles the network is not finished.
"""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from common.errors import InterruptedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopCompiling(KeyboardInterrupt):
    """A signal arrived while torch.compile compiles.

    Parts of it continue after any Exception, such as a check of what the CPU can do.
    """


class StopSignal:
    """Context manager that notes SIGTERM (preemption) and SIGINT (Ctrl-C).

    A second signal has its usual effect.
    """

    def __init__(self) -> None:
        """Start without a signal."""
        self.signal_number = 0
        """The signal, or 0."""
        self._previous_handlers: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """A shell's exit code for a process that the signal ended: 143 for SIGTERM.

        It is also 143 on a rank that stopped because another one got a signal.
        """
        return 128 + (self.signal_number or signal.SIGTERM)

    def __enter__(self) -> StopSignal:
        """Install the handlers, if this is the main thread: Python allows it only there."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {
                number: signal.signal(number, self.receive) for number in SIGNALS
            }
        return self

    def __exit__(self, *_) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def receive(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal, and restore the previous handlers for the next one.

        Raises StopCompiling while torch.compile compiles, which may take minutes.
        """
        self.signal_number = number
        self.__exit__()
        guards = sys.modules.get("torch._guards")  # this module is imported without torch, too
        if guards is not None and guards.CompileContext.try_get() is not None:
            raise StopCompiling

    def while_compiling(self) -> InterruptedRun:
        """Return the error for a signal that has stopped torch.compile."""
        error = InterruptedRun(
            "stopped by a signal while the network was compiled; the same command resumes after"
            " the last checkpoint"
        )
        error.exit_code = self.exit_code
        return error
