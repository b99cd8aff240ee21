"""The machine that a speed was measured on, in words."""

from __future__ import annotations

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
