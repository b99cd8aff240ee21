"""Importance of each parameter of a search for its objective, taken by itself.

Each importance comes with the value that chance alone would reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from physics.ranks import mean_ranks

# With fewer trials, chance explains more than half of the ranks' variance for almost any grouping.
MIN_TRIALS = 8
PERMUTATIONS = 1000
CHANCE = 0.95  # quantile of the shares of permuted losses
GROUPS = 3  # parts of a range: low, middle, high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Share of the variance of the losses' ranks that one parameter explains, from 0 to 1."""

    name: str
    share: float
    chance: float
    """Share that a parameter without influence exceeds in 1 of 20 searches."""

    @property
    def beyond_chance(self) -> bool:
        """Whether the parameter explains more than a shuffled one would."""
        return self.share > self.chance


def importances(columns: Mapping[str, Sequence[str]], losses: Sequence[float]) -> list[Importance]:
    """Return the importance of each parameter, largest first.

    The measure is eta squared of the losses' ranks over groups of the parameter's values, that is
    the share of their variance that lies between groups; a range of numbers is cut into thirds.
    Ranks are used because one diverged trial would otherwise decide. The losses in 1,000 random
    orders (the same ones each time) give the share that chance reaches: for k groups of N trials it
    is (k - 1) / (N - 1) on average.

    Args:
        columns: Values of each parameter as text, one a trial. Parameters that do not vary are left
            out of the result.
        losses: Objective of each trial.

    Returns:
        The importances; empty with fewer than MIN_TRIALS trials.
    """
    if len(losses) < MIN_TRIALS:
        return []
    ranks = mean_ranks(np.asarray(losses, dtype=float)) - 1
    generator = np.random.default_rng(0)
    orders = np.stack([ranks, *(generator.permutation(ranks) for _ in range(PERMUTATIONS))])
    results = []
    for name, values in columns.items():
        groups = _groups(values)
        if len(set(groups)) > 1:
            share, *by_chance = _eta_squared(orders, groups)
            chance = float(np.quantile(by_chance, CHANCE))
            results.append(Importance(name=name, share=float(share), chance=chance))
    return sorted(results, key=lambda result: -result.share)


def _groups(values: Sequence[str]) -> NDArray[np.int64]:
    """Return the number of each trial's group, (N,).

    Few distinct values are a group each; more numbers are cut into thirds by their order.
    """
    distinct, groups = np.unique(list(values), return_inverse=True)
    if len(distinct) <= 2 * GROUPS - 1:
        return groups
    try:
        numbers = np.asarray([float(value) for value in values])
    except ValueError:
        return groups
    return np.searchsorted(np.quantile(numbers, np.arange(1, GROUPS) / GROUPS), numbers)


def _eta_squared(orders: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of the variance between groups: orders (M, N), groups (N,) -> (M,).

    It is zero where all losses are equal.
    """
    deviations = orders - orders.mean(axis=1, keepdims=True)
    total = (deviations**2).sum(axis=1)
    between = np.zeros_like(total)
    for group in np.unique(groups):
        members = groups == group
        between += deviations[:, members].sum(axis=1) ** 2 / np.count_nonzero(members)
    shares: NDArray[np.float64] = np.divide(
        between, total, out=np.zeros_like(total), where=total > 0
    )
    return shares
