"""Metrics of predictions, as pure functions of arrays."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def regression_metrics(answer: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """AvgMSE and AvgMAE of answers (N,) to targets (N,)."""
    error = answer.astype(np.float64) - target
    return {"AvgMSE": float(np.mean(error**2)), "AvgMAE": float(np.mean(np.abs(error)))}


def class_metrics(scores: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """AvgAcc and AUC of scores (N, classes) of jets whose class numbers are `label` (N,)."""
    return {
        "AvgAcc": float(np.mean(scores.argmax(axis=1) == label)),
        "AUC": pairwise_auc(scores, label),
    }


def pairwise_auc(scores: np.ndarray, label: np.ndarray) -> float:
    """The area under the ROC curve, for more than two classes the mean over all ordered pairs of
    them.

    For the pair (i, j) jets of class i are told from those of class j by the score of i. D. Hand,
    R. Till, Machine Learning 45 (2001) 171. NaN where no two classes have jets.
    """
    present = [number for number in range(scores.shape[1]) if np.any(label == number)]
    areas = []
    for i, j in combinations(present, 2):
        pair = (label == i) | (label == j)
        areas += [auc(label[pair] == i, scores[pair, i]), auc(label[pair] == j, scores[pair, j])]
    return float(np.mean(areas)) if areas else float("nan")


def auc(is_signal: np.ndarray, score: np.ndarray) -> float:
    """Probability that a signal jet scores higher than a background jet, ties counting half; both
    must be present.
    """
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[place]  # mean rank of equal scores, from 1
    signal = np.count_nonzero(is_signal)
    background = len(is_signal) - signal
    return float((rank[is_signal].sum() - signal * (signal + 1) / 2) / (signal * background))
