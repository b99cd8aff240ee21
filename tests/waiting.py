"""Wait for a condition, with a deadline."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def wait_until(
    condition: Callable[[], object],
    *,
    seconds: float = 10.0,
    process: subprocess.Popen[Any] | None = None,
) -> None:
    """Return once the condition holds; fail after `seconds`, or if `process` ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            errors = process.stderr.read() if process.stderr else ""
            raise AssertionError(f"the process ended early: {errors}")
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.01)
