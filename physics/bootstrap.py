"""Statistical intervals of quantiles by the bootstrap: jets are drawn again, with replacement, and
everything is measured again.

One draw serves all calibrations, bins and flavours at once. So any function of several of them,
such as the gain of one calibration over another on the same jets, has its interval *paired*: what
moves both does not widen it.

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

from physics.response import QUANTILES, Floats

LEVEL = 0.95
"""Coverage of every interval: wide enough that a gate made of a dozen bins does not fail by chance
alone.
"""

REPLICATES = 500
"""Draws: 2.5 % tails then rest on 12 draws each, which moves an interval's end by a tenth of its
length.
"""


def bootstrap_quantiles(
    values: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    weights: np.ndarray | None = None,
    at: np.ndarray = QUANTILES,
    advance: Callable[[], None] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """Quantiles of each of `values` in each group of jets, in the sample and in each bootstrap draw
    of it.

    values: name of a calibration -> responses (N,), finite. groups: name -> which jets (N,) bool,
    none of them empty. Returns calibration -> group -> (replicates + 1, len(at)): row 0 is the
    sample itself, the others are draws; the columns are the quantiles at the shares `at`, those of
    physics.response unless others are given. Draw r is the same set of jets everywhere. The same
    seed gives the same numbers. `weights` (N,), positive: a jet counts so many times; jets are
    drawn without regard to them, so that heavy ones widen the interval. `advance` is called after
    each draw.
    """
    num_jets = len(next(iter(values.values())))
    index = {group: np.flatnonzero(mask) for group, mask in groups.items()}
    order = {
        (name, group): found[np.argsort(values[name][found])]
        for name in values
        for group, found in index.items()
    }
    ordered = {(name, group): values[name][found] for (name, group), found in order.items()}
    result = {
        name: {group: np.empty((replicates + 1, len(at))) for group in groups} for name in values
    }
    rng = np.random.default_rng(seed)
    for row in range(replicates + 1):
        counts = np.ones(num_jets, dtype=np.int32) if row == 0 else draw(rng, num_jets)
        for (name, group), found in order.items():
            if weights is None:
                result[name][group][row] = counted_quantiles(
                    ordered[name, group], counts[found], at
                )
            else:
                result[name][group][row] = weighted_quantiles(
                    ordered[name, group], counts[found] * weights[found], at
                )
        if advance:
            advance()
    return result


def draw(rng: np.random.Generator, num_jets: int) -> np.ndarray:
    """How often each jet comes up when `num_jets` are drawn with replacement: (num_jets,) int32."""
    return np.bincount(rng.integers(0, num_jets, num_jets), minlength=num_jets).astype(np.int32)


def counted_quantiles(ordered: Floats, counts: np.ndarray, at: Floats = QUANTILES) -> Floats:
    """Quantiles of the sample in which `ordered[i]` stands `counts[i]` times: what np.quantile
    gives for np.repeat(ordered, counts).

    ordered: (N,) ascending; counts: (N,) integers >= 0. Returns one value for each of `at`; NaN if
    all counts are zero.
    """
    cumulative = np.cumsum(counts)
    last = cumulative[-1] - 1
    if last < 0:
        return np.full(len(at), np.nan)
    position = at * last
    below = np.floor(position).astype(np.int64)
    found = np.searchsorted(
        cumulative, np.concatenate([below, np.minimum(below + 1, last)]), side="right"
    )
    low, high = ordered[found].reshape(2, -1)
    quantiles: Floats = low + (position - below) * (high - low)
    return quantiles


def weighted_quantiles(ordered: Floats, weights: Floats, at: Floats = QUANTILES) -> Floats:
    """The values at which the cumulative weight first reaches each share `at` of the whole (the
    inverse of the weighted distribution).

    ordered: (N,) ascending; weights: (N,) >= 0. Returns one value for each of `at`; NaN if all
    weights are zero.
    """
    cumulative = np.cumsum(weights, dtype=np.float64)
    if not len(cumulative) or cumulative[-1] <= 0:
        return np.full(len(at), np.nan)
    found = np.searchsorted(cumulative, at * cumulative[-1], side="left")
    quantiles: Floats = ordered[np.minimum(found, len(ordered) - 1)]
    return quantiles


def interval(rows: np.ndarray, level: float = LEVEL) -> dict[str, float]:
    """{"value", "low", "high"}: row 0, and the central `level` of the other rows (percentile
    interval). rows: (replicates + 1,), finite.
    """
    low, high = np.quantile(rows[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(rows[0]), "low": float(low), "high": float(high)}
