"""The boosted trees learn the median, and are reproducible."""

import dataclasses

import numpy as np
import pytest

from physics.boosted_trees import Jets, fit_and_predict


def make(number: int, seed: int) -> Jets:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(number, 3)).astype(np.float32)
    target = np.where(features[:, 0] > 0, 0.2, -0.2) + rng.normal(0, 0.02, number)
    # A few far jets, as the tails of a response: the median does not follow them.
    target[rng.random(number) < 0.2] += 3
    return Jets(features=features, target=target, weights=np.ones(number))


def test_trees_learn_the_median_and_are_reproducible():
    train, val = make(3000, 1), make(800, 2)
    features = np.float32([[1, 0, 0], [-1, 0, 0]])
    answers, num_trees = fit_and_predict(train, val, [features], seed=1)
    assert answers == pytest.approx([0.2, -0.2], abs=0.05)
    assert 1 < num_trees < 1000
    again, _ = fit_and_predict(train, val, [features], seed=1)
    assert np.array_equal(again, answers)


def test_jets_without_a_finite_target_are_left_out():
    jets = make(10, 1)
    jets.target[3], jets.target[5] = np.nan, np.inf
    assert len(jets.finite().target) == 8
    spread = jets.finite(most=4)
    assert spread.features.tolist() == jets.features[[0, 2, 6, 8]].tolist()
    assert len(spread.weights) == 4


def test_prediction_for_no_jets_is_empty():
    answers, _ = fit_and_predict(make(600, 1), make(100, 2), [np.zeros((0, 3), np.float32)], seed=0)
    assert answers.shape == (0,)


def test_jets_answered_in_parts_have_the_same_answers():
    train, val, features = make(1000, 1), make(200, 2), make(500, 3).features
    whole, _ = fit_and_predict(train, val, [features], seed=1)
    parts, _ = fit_and_predict(train, val, (features[:7], features[7:7], features[7:]), seed=1)
    assert np.array_equal(parts, whole)
    doubled = dataclasses.replace(train, features=train.features.astype(np.float64))
    of_doubled, _ = fit_and_predict(doubled, val, [features], seed=1)
    assert np.array_equal(of_doubled, whole)
