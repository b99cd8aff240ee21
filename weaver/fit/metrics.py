"""Metrics of predictions, as pure functions of arrays."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from physics.ranks import auc


def regression_metrics(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """AvgMSE and AvgMAE of predictions (N,) for targets (N,).

    For several targets (N, k) the errors of a jet are summed, as in weaver-core.
    """
    error = (prediction.astype(np.float64) - target).reshape(len(target), -1)
    return {
        "AvgMSE": float(np.mean((error**2).sum(axis=1))),
        "AvgMAE": float(np.mean(np.abs(error).sum(axis=1))),
    }


def class_metrics(scores: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """AvgAcc and AUC of scores (N, classes) of jets whose class numbers are `label` (N,)."""
    return {
        "AvgAcc": float(np.mean(scores.argmax(axis=1) == label)),
        "AUC": pairwise_auc(scores, label),
    }


def pairwise_auc(scores: np.ndarray, label: np.ndarray) -> float:
    """Return area under the ROC curve; for more than two classes the mean over all ordered pairs.

    scores (N, classes), label (N,). For the pair (i, j) the score of class i separates jets of
    class i from those of class j. D. Hand, R. Till, Machine Learning 45 (2001) 171. NaN unless at
    least two classes have jets.
    """
    present = [number for number in range(scores.shape[1]) if np.any(label == number)]
    areas = []
    for i, j in combinations(present, 2):
        pair = (label == i) | (label == j)
        areas.append(auc(label[pair] == i, scores[pair, i]))
        areas.append(auc(label[pair] == j, scores[pair, j]))
    return float(np.mean(areas)) if areas else float("nan")
