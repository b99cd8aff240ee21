"""This machine: its processor in words, and the cores that this process may use."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path


def processor() -> tuple[str, list[str]]:
    """Model and flags of the processor.

    On systems without /proc it is the platform's name for the model, and no flags.
    """
    try:
        fields = dict(
            re.findall(
                r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
            )
        )
    except OSError:
        fields = {}
    return (
        fields.get("model name") or platform.processor() or platform.machine(),
        fields.get("flags", "").split(),
    )


def cores() -> int:
    """Cores that this process may use; where the system does not say (macOS), all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
