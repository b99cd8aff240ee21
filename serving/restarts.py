"""Restart the server of a served model when it ends by itself, a limited number of times."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from clusters.server_log import error_lines
from common.errors import ClusterError
from serving import triton

WATCH_SECONDS = 0.5  # pause between two checks of the server
MAX_RESTARTS = 3
FIRST_PAUSE = 1.0  # seconds before the first restart; doubled for each further one
STEADY_SECONDS = 600.0
"""After running for so long, the number of restarts counts from 0 again, as in Kubernetes."""


def keep_running(
    pid: int, restart: Callable[[], int], *, log: Path, report: Callable[[str], None]
) -> NoReturn:
    """Watch a server and restart it until it has ended by itself too often.

    Args:
        pid: pid of the server.
        restart: Starts it again at the same address, and returns its pid.
        log: Log of the server.
        report: Called with a line for each restart.

    Raises:
        ClusterError: After MAX_RESTARTS restarts, or from `restart`.
    """
    restarts = 0
    while True:
        start = time.monotonic()
        while triton.is_running(pid):
            time.sleep(WATCH_SECONDS)
        if time.monotonic() - start > STEADY_SECONDS:
            restarts = 0
        words = last_errors(log)
        triton.stop(pid)  # its backend processes and its shared memory
        if restarts == MAX_RESTARTS:
            raise ClusterError(
                f"the model server ended by itself, also after {restarts} restarts; the last lines"
                f" of its log:\n{words}"
            )
        pause = FIRST_PAUSE * 2**restarts
        restarts += 1
        report(
            f"the model server (pid {pid}) ended by itself; it is started again in {pause:g} s"
            f" ({restarts} of {MAX_RESTARTS})"
        )
        time.sleep(pause)
        pid = restart()


def last_errors(log: Path) -> str:
    """Return the error lines of a server's log, or its end if it has none."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return error_lines(text) or triton.last_lines(text)
