"""Index arithmetic for groups of unequal size kept in flat arrays.

Groups are an event's particles or a jet's candidates. A grouping is either `counts` (G,) with the
members of group 0 first, then those of group 1, ..., or an array that gives the group of each
member. Everything is vectorised over all groups.
"""

from __future__ import annotations

import numpy as np


def starts(counts: np.ndarray) -> np.ndarray:
    """Return the position of the first member of each group: (G,) int64."""
    return np.cumsum(counts) - counts


def ranges(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the runs first[g], first[g] + 1, ..., counts[g] long each, one after the other.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]

    Args:
        first: (G,) whole numbers.
        counts: (G,) whole numbers from 0.

    Returns:
        (sum(counts),).
    """
    return np.repeat(np.asarray(first) - starts(counts), counts) + np.arange(int(np.sum(counts)))


def counts_of(group: np.ndarray, groups: int) -> np.ndarray:
    """Return how many members each group has: (groups,) int64."""
    return np.bincount(group, minlength=groups)


def total(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    """Return the sum of the values in each group: (groups,) float64."""
    return np.bincount(group, weights=values, minlength=groups)


def pairs(
    left_event: np.ndarray, right_event: np.ndarray, events: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of a left and a right entry that share an event.

    Args:
        left_event: (L,), event of each left entry.
        right_event: (R,), event of each right entry, sorted.
        events: number of events.

    Returns:
        Indices of the left and of the right entries, (pairs,) each, in the order of `left_event`.
    """
    counts = counts_of(right_event, events)
    number = counts[left_event]
    return np.repeat(np.arange(len(left_event)), number), ranges(starts(counts)[left_event], number)


def first_in_group(group: np.ndarray, order: np.ndarray, groups: int) -> np.ndarray:
    """Index of the member with the smallest `order` in each group: (groups,) int64.

    -1 for a group without members.

    >>> first_in_group(np.array([0, 0, 2]), np.array([3.0, 1.0, 7.0]), 3).tolist()
    [1, -1, 2]
    """
    by_group = np.lexsort((order, group))
    with_members, position = np.unique(group[by_group], return_index=True)
    best = np.full(groups, -1, dtype=np.int64)
    best[with_members] = by_group[position]
    return best


def rank_in_group(group: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Place (0 = smallest `order`) of each member within its group: (N,) int64."""
    by_group = np.lexsort((order, group))
    sorted_group = group[by_group]
    is_first = np.ones(len(sorted_group), dtype=bool)
    is_first[1:] = sorted_group[1:] != sorted_group[:-1]
    # The place of each group's first member, carried on to the others.
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(sorted_group)), 0))
    rank = np.empty(len(group), dtype=np.int64)
    rank[by_group] = np.arange(len(sorted_group)) - first
    return rank


def delta_phi(a: np.ndarray, b: np.ndarray | float = 0.0) -> np.ndarray:
    """Return azimuth a - b brought into [-pi, pi).

    Args:
        a: radians, of any shape.
        b: radians, of a shape that broadcasts with `a`.
    """
    return (a - b + np.pi) % (2 * np.pi) - np.pi


def take(values: np.ndarray, index: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """Return values[index], and `otherwise` (a number or (N,)) where the index is negative: (N,).

    >>> take(np.array([7, 8]), np.array([1, -1]), 0).tolist()
    [8, 0]
    """
    has_index = index >= 0
    result = np.full(len(index), otherwise, dtype=np.result_type(values, otherwise))
    result[has_index] = values[index[has_index]]
    return result
