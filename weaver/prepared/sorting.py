"""Sorting the particles of each jet, for `order_by` of a data config."""

from __future__ import annotations

import numpy as np

# sorting rows of equal length takes a third to a half of the time of one long sort, unless most of
# them is padding
MOST_PADDING = 8


def falling(values: np.ndarray) -> np.ndarray:
    """Sort keys that give the opposite order, with NaN still last.

    For whole numbers ~x is -x - 1, which does not overflow; for true and false it is `not`.
    """
    return -values if values.dtype.kind == "f" else ~values


def sort_within(keys: list[np.ndarray], counts: np.ndarray) -> np.ndarray:
    """The positions (particles,) that sort flat entries within each jet by `keys`.

    keys: (particles,) each; the first one decides first. Rising, stable, NaN last.
    counts: (N,) entries of each jet.
    """
    most = int(counts.max(initial=0))
    # one jet with very many particles among small ones
    if len(counts) * most > MOST_PADDING * max(int(counts.sum()), 1):
        jets = np.repeat(np.arange(len(counts)), counts)
        return np.lexsort((*reversed(keys), jets))

    inside = np.arange(most) < counts[:, None]  # (N, most)
    order = None
    # by the last key first: each sort keeps the order that the one before gave to equal values
    for key in reversed(keys):
        # no value of the type is sorted behind this one
        if key.dtype.kind == "f":
            last: float = np.nan
        else:
            last = True if key.dtype.kind == "b" else np.iinfo(key.dtype).max
        padded = np.full(inside.shape, last, key.dtype)
        padded[inside] = key
        if order is None:
            order = np.argsort(padded, axis=1, kind="stable")
        else:
            in_order = np.take_along_axis(padded, order, axis=1)
            again = np.argsort(in_order, axis=1, kind="stable")
            order = np.take_along_axis(order, again, axis=1)
    first = np.cumsum(counts) - counts  # of each jet, among the flat entries
    return (order + first[:, None])[inside]
