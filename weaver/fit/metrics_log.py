"""The metrics file that Katib's collector reads, and the history that it is made of.

A line is `<RFC 3339 time> <name>=<plain decimal>`, one for each metric of validation. Katib takes
the smallest value over *all* lines with the objective's name, records `nan` as nothing and cuts
exponents off in some versions (kubeflow/katib#2723, #1702). So only finite numbers are written,
without exponent, and nothing but validation. The text is a function of the trial's history: a
restarted trial writes the same lines again. Imports no torch.
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

DIGITS = 8  # significant: more than float32 holds, so that two trials never tie by rounding


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
    """What metrics.log holds: the metrics of validation, learning_rate and jets_per_second."""


def now() -> str:
    """The time as Katib wants it: RFC 3339 in UTC, with milliseconds and a Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: float) -> str:
    """A finite number without exponent: 0.00005 rather than 5e-05."""
    return format(Decimal(f"{value:.{DIGITS}g}"), "f")


def lines(history: Sequence[EpochRecord]) -> str:
    """The whole text for the epochs so far, without numbers that are not finite."""
    text = ""
    for record in history:
        for name, value in record["metrics"].items():
            if math.isfinite(value):
                text += f"{record['time']} {name}={plain(value)}\n"
    return text


def write(path: str | os.PathLike, history: Sequence[EpochRecord]) -> None:
    """Bring the collector's file up to date.

    What is missing is appended; only a file that holds something else is written anew. Raises
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
