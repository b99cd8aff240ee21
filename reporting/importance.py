"""How much each parameter of a search mattered for its objective, by itself.

Each importance comes with what chance alone would show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from physics.ranks import mean_ranks

# With fewer, chance explains more than half of the ranks' variance for almost any grouping.
LEAST_TRIALS = 8
PERMUTATIONS = 1000
CHANCE = 0.95  # quantile of what permuted losses show
GROUPS = 3  # of a range: low, middle, high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """One parameter's share of the variance of the losses' ranks, from 0 to 1."""

    name: str
    share: float
    chance: float
    """The share that chance reaches in 1 of 20 searches."""

    @property
    def beyond_chance(self) -> bool:
        """Whether the parameter explains more than a shuffled one would."""
        return self.share > self.chance


def importances(columns: Mapping[str, Sequence[str]], losses: Sequence[float]) -> list[Importance]:
    """The importance of each parameter, largest first; none with fewer than LEAST_TRIALS trials.

    `columns` gives each parameter's values as text, one a trial; parameters that do not vary are
    left out. The measure is eta squared of the losses' ranks over groups of the parameter's values
    (a range is cut into thirds): the part of their variance that lies between groups. Ranks,
    because one diverged trial would otherwise decide. The same losses in 1,000 random orders
    (always the same ones) show what chance gives: for k groups of N trials it is (k - 1) / (N - 1)
    on average.
    """
    if len(losses) < LEAST_TRIALS:
        return []
    ranks = mean_ranks(np.asarray(losses, dtype=float)) - 1
    generator = np.random.default_rng(0)
    orders = np.stack([ranks, *(generator.permutation(ranks) for _ in range(PERMUTATIONS))])
    measured = []
    for name, values in columns.items():
        groups = _groups(values)
        if len(set(groups)) > 1:
            share, *by_chance = _eta_squared(orders, groups)
            chance = float(np.quantile(by_chance, CHANCE))
            measured.append(Importance(name=name, share=float(share), chance=chance))
    return sorted(measured, key=lambda one: -one.share)


def _groups(values: Sequence[str]) -> NDArray[np.int64]:
    """The group of each trial: by its value where there are few, else by thirds of the order."""
    distinct, groups = np.unique(list(values), return_inverse=True)
    if len(distinct) <= 2 * GROUPS - 1:
        return groups
    try:
        numbers = np.asarray([float(value) for value in values])
    except ValueError:
        return groups
    return np.searchsorted(np.quantile(numbers, np.arange(1, GROUPS) / GROUPS), numbers)


def _eta_squared(orders: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Between-group share of the variance; orders (M, N), groups (N,) -> (M,).

    All zero where the losses are all equal.
    """
    centred = orders - orders.mean(axis=1, keepdims=True)
    total = (centred**2).sum(axis=1)
    between = np.zeros_like(total)
    for group in np.unique(groups):
        members = groups == group
        between += centred[:, members].sum(axis=1) ** 2 / np.count_nonzero(members)
    shares: NDArray[np.float64] = np.divide(
        between, total, out=np.zeros_like(total), where=total > 0
    )
    return shares
