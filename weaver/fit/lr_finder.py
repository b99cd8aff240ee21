"""--lr-finder: find the learning rate at which the loss falls fastest.

The learning rate rises by the same factor at each step, which shows at which rates the loss falls
and at which it diverges. L. Smith, Cyclical Learning Rates for Training Neural Networks,
arXiv:1506.01186. Only lr_finder.json is written.
"""

from __future__ import annotations

import contextlib
import math
from typing import TypedDict

from common import storage
from common.progress import Progress
from weaver.fit.fit import Fit
from weaver.fit.options import lr_range

SMOOTHING = 0.9  # weight of the earlier losses in their running mean
DIVERGENCE = 4.0  # stop when the running mean exceeds its minimum by this factor


class LrFinderResult(TypedDict):
    """Content of lr_finder.json: rate and loss of each step, None where it is not finite."""

    learning_rate: list[float]
    loss: list[float | None]
    proposed: float


def run_lr_finder(fit: Fit, words: str) -> LrFinderResult:
    """Run the test and write its result as lr_finder.json into the trial's folder.

    words: "START,END,STEPS", the first and the last rate and the number of steps. "proposed" in the
    result is `steepest_rate`. Raises InputError for numbers that make no sense.
    """
    first, last, steps = lr_range(words)
    rates: list[float] = []
    losses: list[float] = []
    means: list[float] = []
    mean = 0.0
    fit.model.train()
    fit.steps = steps
    with (
        fit.compiling(),
        Progress("learning rates", total=steps, unit="steps") as progress,
        contextlib.closing(fit.batches()) as batches,
    ):
        for number, (batch, place) in enumerate(batches):
            rates.append(first * (last / first) ** (number / (steps - 1)))
            loss = fit.step_at(batch, place, rates[-1])
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            losses.append(loss)
            # the mean starts at zero; the division removes the bias of the first steps
            means.append(mean / (1 - SMOOTHING ** (number + 1)))
            progress.advance(1, note=f"rate {rates[-1]:.2e}, loss {means[-1]:.5f}")
            if not math.isfinite(loss) or means[-1] > DIVERGENCE * min(means):
                break
    result: LrFinderResult = {
        "learning_rate": rates,
        "loss": [x if math.isfinite(x) else None for x in losses],  # JSON has no NaN
        "proposed": steepest_rate(rates, means),
    }
    if fit.world.is_main:
        where = fit.folder.path("lr_finder.json")
        storage.write_json(where, result)
        print(
            f"the loss falls fastest at a learning rate of {result['proposed']:.3g}; all"
            f" {len(rates)} steps are in {where}",
            flush=True,
        )
    return result


def steepest_rate(rates: list[float], means: list[float]) -> float:
    """Return the rate at which the smoothed loss falls fastest from one step to the next.

    rates, means: learning rate and running mean of the loss at each step.
    """
    falls = [
        (after - before, rate)
        for before, after, rate in zip(means, means[1:], rates[1:], strict=False)
        if math.isfinite(after)
    ]
    return min(falls)[1] if falls else rates[0]
