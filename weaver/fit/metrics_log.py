"""The metrics file that Katib's collector reads: `<RFC 3339 time> <name>=<plain decimal>`, one line
a metric, validation only.

Katib takes the smallest value over *all* lines with the objective's name, records `nan` as nothing
and cuts exponents off in some versions (kubeflow/katib#2723, #1702). So only finite numbers are
written, without exponent, and nothing but validation. The text is a function of the trial's
history: a restarted trial writes the same lines again. Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

DIGITS = 8  # significant: more than float32 holds, so that two trials never tie by rounding


def now() -> str:
    """The time as Katib wants it: RFC 3339 in UTC, with milliseconds and a Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: float) -> str:
    """A finite number without exponent: 0.00005 rather than 5e-05."""
    return format(Decimal(f"{value:.{DIGITS}g}"), "f")


def lines(history: Sequence[Mapping[str, Any]]) -> str:
    """The whole text for the epochs so far: each record has "time" and "metrics" (name -> number).

    What is not finite is left out.
    """
    return "".join(
        f"{record['time']} {name}={plain(value)}\n"
        for record in history
        for name, value in record["metrics"].items()
        if math.isfinite(value)
    )


def write(path: str | os.PathLike, history: Sequence[Mapping[str, Any]]) -> None:
    """Bring the collector's file up to date: append what is missing, and start over only where it
    holds something else.

    A collector follows the file while it grows; rewriting lines that it has read would make it read
    them twice.
    """
    path, text = Path(path), lines(history)
    path.parent.mkdir(parents=True, exist_ok=True)
    there = path.read_text() if path.exists() else ""
    same = text.startswith(there)
    with path.open("a" if same else "w") as file:
        file.write(text[len(there) :] if same else text)
