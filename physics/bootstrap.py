"""Statistical intervals of quantiles by the bootstrap.

Jets are drawn again, with replacement, and everything is measured again. One draw serves all
calibrations, bins and flavours at once. So any function of several of them, such as the gain of one
calibration over another on the same jets, has its interval *paired*: what moves both does not widen
it.

It is quick because nothing is sorted twice. The responses of a group of jets are sorted once; a
draw is the number of times each jet came up (a histogram of N random integers), and a quantile of
the drawn sample is found in the cumulative sum of these counts by bisection. 300,000 jets, two
calibrations and a hundred groups take about 20 ms a draw.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile
interval).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from physics.interval import Interval
from physics.response import QUANTILES, Floats, Mask

LEVEL = 0.95
"""Coverage of every interval.

Wide enough that a gate made of a dozen bins does not fail by chance alone.
"""

REPLICATES = 500
"""Draws: 2.5 % tails then rest on 12 draws each.

That moves an interval's end by a tenth of its length.
"""

Counts = NDArray[np.int32]
"""How often each jet came up in a draw: (N,)."""


def bootstrap_quantiles(
    values: Mapping[str, Floats],
    groups: Mapping[str, Mask],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    weights: Floats | None = None,
    at: Floats = QUANTILES,
    advance: Callable[[], None] | None = None,
) -> dict[str, dict[str, Floats]]:
    """Quantiles of `values` in each group of jets, in the sample and in each draw of it.

    values: name of a calibration -> responses (N,), finite. groups: name -> which jets (N,) bool,
    none of them empty. Returns calibration -> group -> (replicates + 1, len(at)): row 0 is the
    sample itself, the others are draws; the columns are the quantiles at the shares `at`, those of
    physics.response by default. Draw r is the same set of jets everywhere. The same seed gives the
    same numbers. `weights` (N,), positive: a jet counts so many times; jets are drawn without
    regard to them, so that heavy ones widen the interval. `advance` is called after each draw.
    """
    # (calibration, group, jets by rising response, these responses): sorted once, not in each draw.
    ordered = []
    result: dict[str, dict[str, Floats]] = {}
    for name, responses in values.items():
        result[name] = {}
        for group, mask in groups.items():
            jets = np.flatnonzero(mask)
            jets = jets[np.argsort(responses[jets])]
            ordered.append((name, group, jets, responses[jets]))
            result[name][group] = np.empty((replicates + 1, len(at)))

    num_jets = len(next(iter(values.values())))
    rng = np.random.default_rng(seed)
    for row in range(replicates + 1):
        # Row 0 is the sample: every jet once.
        counts = np.ones(num_jets, dtype=np.int32) if row == 0 else draw(rng, num_jets)
        for name, group, jets, sorted_responses in ordered:
            if weights is None:
                quantiles = counted_quantiles(sorted_responses, counts[jets], at)
            else:
                quantiles = weighted_quantiles(sorted_responses, counts[jets] * weights[jets], at)
            result[name][group][row] = quantiles
        if advance:
            advance()
    return result


def draw(rng: np.random.Generator, num_jets: int) -> Counts:
    """How often each jet comes up when `num_jets` are drawn with replacement: (num_jets,) int32."""
    return np.bincount(rng.integers(0, num_jets, num_jets), minlength=num_jets).astype(np.int32)


def counted_quantiles(ordered: Floats, counts: Counts, at: Floats = QUANTILES) -> Floats:
    """Quantiles of the sample in which `ordered[i]` stands `counts[i]` times.

    They are what np.quantile gives for np.repeat(ordered, counts). ordered: (N,) ascending; counts:
    (N,) integers >= 0. Returns one value for each of `at`; NaN if all counts are zero.
    """
    cumulative = np.cumsum(counts)
    last = cumulative[-1] - 1
    if last < 0:
        return np.full(len(at), np.nan)
    # A quantile lies between two order statistics of the repeated sample: `below` and the next.
    position = at * last
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, last)
    # One search for both; cumulative[i] is the number of entries up to and including ordered[i].
    index = np.searchsorted(cumulative, np.concatenate([below, above]), side="right")
    low, high = ordered[index].reshape(2, -1)  # (2 len(at),) -> (2, len(at))
    quantiles: Floats = low + (position - below) * (high - low)
    return quantiles


def weighted_quantiles(ordered: Floats, weights: Floats, at: Floats = QUANTILES) -> Floats:
    """The values at which the cumulative weight first reaches each share `at` of the whole.

    This is the inverse of the weighted distribution. ordered: (N,) ascending; weights: (N,) >= 0.
    Returns one value for each of `at`; NaN if all weights are zero.
    """
    cumulative = np.cumsum(weights, dtype=np.float64)
    if not len(cumulative) or cumulative[-1] <= 0:
        return np.full(len(at), np.nan)
    index = np.searchsorted(cumulative, at * cumulative[-1], side="left")
    # Rounding of the cumulative sum can put the last share behind the end.
    quantiles: Floats = ordered[np.minimum(index, len(ordered) - 1)]
    return quantiles


def interval(rows: Floats, level: float = LEVEL) -> Interval:
    """{"value", "low", "high"}: row 0, and the central `level` of the other rows.

    rows: (replicates + 1,), finite. The percentile interval.
    """
    low, high = np.quantile(rows[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(rows[0]), "low": float(low), "high": float(high)}
