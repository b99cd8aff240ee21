"""--lr-finder: find the learning rate at which the loss falls fastest.

A training whose learning rate rises by equal factors from step to step shows where the loss falls
and where it breaks. L. Smith, Cyclical Learning Rates for Training Neural Networks,
arXiv:1506.01186. Nothing of it is kept but lr_finder.json.
"""

from __future__ import annotations

import contextlib
import math
from typing import TypedDict

from common import storage
from common.errors import InputError
from common.progress import Progress
from weaver.fit.fit import Fit

SMOOTHING = 0.9  # of the running mean of the losses
DIVERGED = 4.0  # times the smallest running mean


class Finding(TypedDict):
    """Content of lr_finder.json: rate and loss of each step, None where it is not finite."""

    learning_rate: list[float]
    loss: list[float | None]
    proposed: float


def find(fit: Fit, words: str) -> Finding:
    """Run the test and write its result as lr_finder.json into the trial's folder.

    words: "START,END,STEPS", first and last rate and how many steps to make. The rate proposed is
    the one at which the running mean of the loss fell fastest. Raises InputError for impossible
    numbers.
    """
    first, last, steps = _numbers(words)
    rates: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    mean = 0.0
    fit.model.train()
    fit.steps = steps
    with (
        Progress("learning rates", total=steps, unit="steps") as progress,
        contextlib.closing(fit.batches()) as batches,
    ):
        for number, (batch, place) in enumerate(batches):
            rates.append(first * (last / first) ** (number / (steps - 1)))
            loss = fit.step_at(batch, place, rates[-1])
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            losses.append(loss)
            # the mean begins at zero, which the first steps still hold a share of
            means.append(mean / (1 - SMOOTHING ** (number + 1)))
            progress.advance(1, note=f"rate {rates[-1]:.2e}, loss {means[-1]:.5f}")
            if not math.isfinite(loss) or means[-1] > DIVERGED * min(means):
                break
    finding: Finding = {
        "learning_rate": rates,
        "loss": [x if math.isfinite(x) else None for x in losses],  # JSON has no NaN
        "proposed": proposed(rates, means),
    }
    if fit.world.is_main:
        where = fit.folder.path("lr_finder.json")
        storage.write_json(where, finding)
        print(
            f"the loss falls fastest at a learning rate of {finding['proposed']:.3g}; all"
            f" {len(rates)} steps are in {where}",
            flush=True,
        )
    return finding


def proposed(rates: list[float], means: list[float]) -> float:
    """The rate at which the smoothed loss falls fastest with the logarithm of the rate."""
    falls = [
        (after - before, rate)
        for before, after, rate in zip(means, means[1:], rates[1:], strict=False)
        if math.isfinite(after)
    ]
    return min(falls)[1] if falls else rates[0]


def _numbers(words: str) -> tuple[float, float, int]:
    try:
        first, last, steps = words.split(",")
        values = float(first), float(last), int(steps)
    except ValueError:
        raise InputError(
            f"--lr-finder must be START,END,STEPS as in 1e-5,1,100, not '{words}'"
        ) from None
    if not 0 < values[0] < values[1] < math.inf or values[2] < 2:
        raise InputError(
            f"--lr-finder {words}: START must be above 0 and below END, STEPS at least 2"
        )
    return values
