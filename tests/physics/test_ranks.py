"""Ranks with ties, and the area under the ROC curve."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from physics.ranks import auc, mean_ranks


@pytest.mark.parametrize(
    "values",
    [[3.0, 1.0, 2.0], [2.0, 1.0, 2.0, 2.0], [5.0], [0.0, 0.0]],
    ids=["distinct", "ties", "one", "all equal"],
)
def test_ranks_equal_those_of_scipy(values):
    assert mean_ranks(np.asarray(values)).tolist() == scipy.stats.rankdata(values).tolist()


def test_auc_is_the_probability_that_signal_scores_higher():
    rng = np.random.default_rng(2)
    label = rng.random(200) < 0.4
    score = rng.integers(0, 20, 200).astype(float)  # many ties
    pairs = score[label][:, None] - score[~label]
    assert auc(label, score) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


@pytest.mark.parametrize("label", [np.zeros(4, bool), np.ones(4, bool)])
def test_auc_of_one_class_is_nan(label):
    assert np.isnan(auc(label, np.arange(4.0)))
