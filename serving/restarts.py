"""Start a served model's server again where it ends by itself, a limited number of times."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from clusters.server_log import error_lines
from common.errors import ClusterError
from serving import triton

WATCH_SECONDS = 0.5  # between two looks whether the server lives
MOST_RESTARTS = 3
FIRST_PAUSE = 1.0  # seconds before the first restart; doubled for each further one
STEADY_SECONDS = 600.0
"""A server that has run for so long is restarted as if for the first time, as Kubernetes does."""


def keep_running(
    pid: int, restart: Callable[[], int], *, log: Path, report: Callable[[str], None]
) -> NoReturn:
    """Watch a server until it has ended by itself too often.

    restart: starts it again at the same address, and returns its pid. log: the server's output.
    report: gets one line for each restart. Raises ClusterError after MOST_RESTARTS restarts, and
    what `restart` raises.
    """
    restarts = 0
    while True:
        began = time.monotonic()
        while triton.is_running(pid):
            time.sleep(WATCH_SECONDS)
        if time.monotonic() - began > STEADY_SECONDS:
            restarts = 0
        words = last_words(log)
        triton.stop(pid)  # its backend processes and its shared memory
        if restarts == MOST_RESTARTS:
            raise ClusterError(
                f"the model server ended by itself, also after {restarts} restarts; the last lines"
                f" of its log:\n{words}"
            )
        pause = FIRST_PAUSE * 2**restarts
        restarts += 1
        report(
            f"the model server (pid {pid}) ended by itself; it is started again in {pause:g} s"
            f" ({restarts} of {MOST_RESTARTS})"
        )
        time.sleep(pause)
        pid = restart()


def last_words(log: Path) -> str:
    """The error lines of a server's log, or its end where it has none."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return error_lines(text) or triton.last_lines(text)
