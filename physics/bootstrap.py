"""Statistical intervals of quantiles by the bootstrap.

Jets are drawn again, with replacement, and everything is measured again. One draw serves all
calibrations, bins and flavours at once. So a function of several of them, such as the gain of one
calibration over another on the same jets, has a *paired* interval: a fluctuation that moves both
calibrations does not widen it.

Groups without a common jet, such as the bins of pT or the slices of eta, make up a family. The jets
of a family are sorted only once, by group and response. A draw is the number of times that each jet
occurs (a histogram of N random integers). One cumulative sum of these counts and one bisection then
give all quantiles of all groups of the family.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile
interval).
"""

from __future__ import annotations

import dataclasses
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
"""Number of draws. Each 2.5 % tail then has 12 draws.

Their noise moves an interval's end by about a tenth of the interval's length.
"""

FAMILIES_BYTES = 2**27
"""Bytes of the sorted jets in memory. Where all families need more, they are sorted one part after
another, and the draws are repeated for each part.
"""

Counts = NDArray[np.int32]
"""How often each jet occurs in a draw: (N,)."""


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
    """Compute quantiles of `values` in each group of jets, for the sample and for each draw.

    Draw r is the same set of jets for all calibrations and groups. The same seed gives the same
    numbers.

    Args:
        values: calibration -> responses (N,), finite.
        groups: name -> which jets (N,) bool, none of them empty.
        replicates: number of draws.
        seed: of the random draws.
        weights: (N,), positive: how many times each jet counts. The draws ignore them, so that
            heavy jets widen the interval.
        at: shares at which quantiles are computed, those of physics.response by default.
        advance: called as often as there are rows, evenly spread.

    Returns:
        Calibration -> group -> (replicates + 1, len(at)): row 0 is the sample itself, the other
        rows are draws; the columns are the quantiles at the shares `at`.
    """
    names = list(groups)
    sizes = [int(np.count_nonzero(groups[name])) for name in names]
    parts = _parts(disjoint_families(groups), sizes)
    quantiles: dict[str, dict[str, Floats]] = {}
    steps = 0
    # One calibration after the other, so that only its sorted jets are in memory.
    for name, responses in values.items():
        rows = np.empty((len(names), replicates + 1, len(at)))
        for part in parts:
            sorted_families = [sorted_family(responses, groups, family) for family in part]
            rng = np.random.default_rng(seed)
            for row in range(replicates + 1):
                # Row 0 is the sample: every jet once.
                num_jets = len(responses)
                counts = np.ones(num_jets, dtype=np.int32) if row == 0 else draw(rng, num_jets)
                for family in sorted_families:
                    rows[family.numbers, row] = _family_quantiles(family, counts, weights, at)
                steps += 1
                if advance and steps % (len(values) * len(parts)) == 0:
                    advance()
            del sorted_families
        quantiles[name] = dict(zip(names, rows, strict=True))
    return quantiles


def _parts(families: list[list[int]], sizes: list[int]) -> list[list[list[int]]]:
    """Divide families into parts whose sorted jets need at most FAMILIES_BYTES, or a single family.

    Args:
        families: for each family the numbers of its groups.
        sizes: jets of each group.
    """
    parts: list[list[list[int]]] = []
    num_bytes = 0
    for family in families:
        of_family = sum(sizes[number] for number in family) * np.dtype(np.int32).itemsize
        if not parts or num_bytes + of_family > FAMILIES_BYTES:
            parts.append([])
            num_bytes = 0
        parts[-1].append(family)
        num_bytes += of_family
    return parts


def _family_quantiles(family: Family, counts: Counts, weights: Floats | None, at: Floats) -> Floats:
    """Compute the quantiles of each group of a family in one draw; counts, weights: (N,)."""
    if weights is None:
        return counted_quantiles(family, counts[family.jets], at)
    return weighted_quantiles(family, counts[family.jets] * weights[family.jets], at)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Groups without a common jet; their jets are sorted by group, then by rising response."""

    numbers: NDArray[np.int64]
    """Which groups: (G,)."""
    jets: NDArray[np.int32]
    """Numbers of the jets of all groups, (M,): one group after another, each by rising response."""
    responses: Floats
    """Responses of the whole sample: (N,)."""
    ends: NDArray[np.int64]
    """Where each group ends among the M jets: (G,)."""


def disjoint_families(groups: Mapping[str, Mask]) -> list[list[int]]:
    """Divide the groups into families without a common jet.

    Args:
        groups: name -> (N,) bool, the jets of the group.

    Returns:
        For each family the positions of its groups in `groups`.
    """
    families: list[list[int]] = []
    occupied: list[NDArray[np.uint8]] = []  # of each family, in one bit a jet
    for number, name in enumerate(groups):
        bits = np.packbits(groups[name])
        free = [place for place, jets in enumerate(occupied) if not np.any(jets & bits)]
        if free:
            families[free[0]].append(number)
            occupied[free[0]] |= bits
        else:
            families.append([number])
            occupied.append(bits)
    return families


def sorted_family(responses: Floats, groups: Mapping[str, Mask], numbers: list[int]) -> Family:
    """Build the family of the groups with these numbers; responses: (N,)."""
    names = list(groups)
    jets = []
    for number in numbers:
        members = np.flatnonzero(groups[names[number]])
        in_order = members[np.argsort(responses[members])]
        jets.append(in_order.astype(np.int32))  # half the memory, of which large samples need much
    sizes = [len(members) for members in jets]
    return Family(
        numbers=np.array(numbers),
        jets=np.concatenate(jets),
        responses=responses,
        ends=np.cumsum(sizes),
    )


def draw(rng: np.random.Generator, num_jets: int) -> Counts:
    """Draw `num_jets` jets with replacement; return how often each occurs: (num_jets,) int32."""
    return np.bincount(rng.integers(0, num_jets, num_jets), minlength=num_jets).astype(np.int32)


def one_group(responses: Floats) -> Family:
    """Return the family of one group that holds all jets; responses: (N,), ascending, N > 0."""
    number = len(responses)
    return Family(
        numbers=np.array([0]),
        jets=np.arange(number, dtype=np.int32),
        responses=responses,
        ends=np.array([number]),
    )


def counted_quantiles(family: Family, counts: Counts, at: Floats = QUANTILES) -> Floats:
    """Compute the quantiles of each group where jet `i` of the family occurs `counts[i]` times.

    They equal np.quantile of np.repeat(responses, counts) of the group. counts: (M,)
    integers >= 0. Returns (G, len(at)); NaN for a group whose counts are all zero.
    """
    cumulative = np.cumsum(counts)
    ends = cumulative[family.ends - 1]  # (G,): jets drawn up to the end of each group
    starts = np.concatenate([[0], ends[:-1]])
    last = ends - starts - 1  # number of a group's last drawn jet, counted from 0
    # A quantile lies between two order statistics of the repeated sample: `below` and the next.
    position = np.maximum(last, 0)[:, None] * at  # (G, len(at))
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, last[:, None])
    # One search for both; cumulative[i] is the number of entries up to and including jet i.
    places = np.stack([below, above]) + starts[:, None]
    index = np.searchsorted(cumulative, places, side="right")
    jets = family.jets[np.minimum(index, len(cumulative) - 1)]
    low, high = family.responses[jets]
    quantiles: Floats = low + (position - below) * (high - low)
    quantiles[last < 0] = np.nan
    return quantiles


def weighted_quantiles(family: Family, weights: Floats, at: Floats = QUANTILES) -> Floats:
    """Find where a group's cumulative weight first reaches each share `at` of the group's total.

    This inverts the weighted distribution function. weights: (M,) >= 0. Returns (G, len(at)); NaN
    for a group whose weights are all zero.
    """
    quantiles = np.full((len(family.ends), len(at)), np.nan)
    start = 0
    # Each group has a sum of its own: weights differ by so many powers of ten that light groups
    # would be lost in the rounding of a sum over all.
    for number, end in enumerate(family.ends):
        cumulative = np.cumsum(weights[start:end], dtype=np.float64)
        if cumulative[-1] > 0:
            index = np.searchsorted(cumulative, at * cumulative[-1], side="left")
            # Rounding of the cumulative sum can put the last share behind the end.
            index = np.minimum(index, len(cumulative) - 1)
            quantiles[number] = family.responses[family.jets[start:end][index]]
        start = end
    return quantiles


def interval(rows: Floats, level: float = LEVEL) -> Interval:
    """Return row 0 with the percentile interval that holds the central `level` of the other rows.

    rows: (replicates + 1,), finite. Returns {"value", "low", "high"}.
    """
    low, high = np.quantile(rows[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"value": float(rows[0]), "low": float(low), "high": float(high)}
