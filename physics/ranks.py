"""Ranks of values, and the area under the ROC curve."""

from __future__ import annotations

import numpy as np


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks (N,) of values (N,), from 1; equal values share the mean of theirs.

    The same as scipy.stats.rankdata, which the images do not have.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)  # rank of the last of each group of equal values
    return (last - (counts - 1) / 2)[place]


def auc(is_signal: np.ndarray, score: np.ndarray) -> float:
    """Return area under the ROC curve: is_signal (N,) bool, score (N,).

    It is the probability that a signal jet scores higher than a background jet, ties counting half
    (the Mann-Whitney U statistic: H. Mann, D. Whitney, Ann. Math. Statist. 18 (1947) 50). NaN where
    one of the two kinds is missing.
    """
    signal = np.count_nonzero(is_signal)
    background = len(is_signal) - signal
    if not signal or not background:
        return float("nan")
    rank_sum = mean_ranks(score)[is_signal].sum()
    return float((rank_sum - signal * (signal + 1) / 2) / (signal * background))
