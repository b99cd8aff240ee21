"""Processes of this machine by their pids: whether one is alive, and when it started."""

from __future__ import annotations

import psutil


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended. A zombie has ended.

    A process that is ending counts as alive, because it may hold its ports for a moment.
    """
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except (psutil.Error, ValueError, OverflowError):  # no pid of this machine
        return False


def start_time(pid: int) -> str:
    """Return when a process started, which identifies it together with its pid; else empty."""
    try:
        return str(psutil.Process(pid).create_time())
    except (psutil.Error, ValueError, OverflowError):  # no pid of this machine
        return ""
