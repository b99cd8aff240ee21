"""The metrics file for Katib's collector, and the records of epochs from which it is written.

A line is `<RFC 3339 time> <name>=<plain decimal>`, one for each metric of the validation. Katib
takes the smallest value over *all* lines with the objective's name, ignores `nan`, and in some
versions cuts off exponents (kubeflow/katib#2723, #1702). So only finite numbers of the validation
are written, without exponents. The text is a function of the trial's history: a resumed trial
writes the same lines again. Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TypedDict

from common.storage.local import explain

DIGITS = 8  # significant digits: more than float32 has, so that rounding makes no two trials equal


class EpochRecord(TypedDict):
    """One epoch in a trial's history: history.json is a list of them."""

    epoch: int
    train_loss: float
    val_loss: float
    learning_rate: float
    """At the last step of the epoch."""
    jets_per_second: float
    """In training."""
    seconds: float
    """Training and validation together."""
    time: str
    metrics: dict[str, float]
    """The values in metrics.log: metrics of the validation, learning_rate and jets_per_second."""


def now() -> str:
    """Return the current time in Katib's format: RFC 3339 in UTC, with milliseconds and a Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: float) -> str:
    """Format a finite number without an exponent: 0.00005 rather than 5e-05."""
    return format(Decimal(f"{value:.{DIGITS}g}"), "f")


def lines(history: Sequence[EpochRecord]) -> str:
    """Return the text of the metrics file for a history.

    Values that are not finite are left out.
    """
    text = ""
    for record in history:
        for name, value in record["metrics"].items():
            if math.isfinite(value):
                text += f"{record['time']} {name}={plain(value)}\n"
    return text


def write(path: str | os.PathLike, history: Sequence[EpochRecord]) -> None:
    """Update the collector's file.

    Missing lines are appended; only a file with other lines is rewritten. Raises
    InputError or StorageError where the disk refuses.
    """
    path = Path(path)
    text = lines(history)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        present = path.read_text() if path.exists() else ""
        # A collector follows the file while it grows: it would read rewritten lines a second time.
        if text.startswith(present):
            with path.open("a") as file:
                file.write(text[len(present) :])
        else:
            path.write_text(text)
    except OSError as error:
        raise explain(error, str(path), "write") from error
