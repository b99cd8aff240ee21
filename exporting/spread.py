"""Which jets of a dataset represent it."""

from __future__ import annotations

import numpy as np


def spread(length: int, count: int) -> np.ndarray:
    """Indices of at most `count` jets, evenly spread over a dataset of `length`.

    The files of a dataset may differ in pT, so its first jets say little about the rest.
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))
