"""Choose representative jets of a dataset."""

from __future__ import annotations

import numpy as np


def spread(length: int, count: int) -> np.ndarray:
    """Return indices of at most `count` jets, evenly spread over a dataset of `length`.

    The files of a dataset may differ in pT, so that its first jets are not representative.
    """
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))
