"""The importance of parameters: what mattered, apart from what chance shows."""

import numpy as np
import pytest

from reporting.importance import importances


def test_importance_tells_what_mattered_from_what_did_not():
    generator = np.random.default_rng(1)
    rate, noise = generator.uniform(size=40), generator.uniform(size=40)
    losses = (rate - 0.3) ** 2 + 0.01 * generator.normal(size=40)
    kinds = np.where(generator.uniform(size=40) < 0.5, "adam", "ranger")
    columns = {
        "noise": [str(v) for v in noise],
        "rate": [str(v) for v in rate],
        "kind": list(kinds),
        "fixed": ["1"] * 40,
    }
    by_name = {one.name: one for one in importances(columns, list(losses))}
    assert next(iter(by_name)) == "rate"
    assert set(by_name) == {"noise", "rate", "kind"}, "what does not vary has no importance"
    assert by_name["rate"].beyond_chance
    assert by_name["rate"].share > 0.5
    assert not by_name["noise"].beyond_chance


def test_chance_is_what_the_formula_says():
    """For k groups of N trials without any effect, the share is (k - 1) / (N - 1) on average."""
    generator = np.random.default_rng(2)
    columns = {f"p{i}": [str(v) for v in generator.integers(0, 3, size=30)] for i in range(200)}
    measured = importances(columns, list(generator.normal(size=30)))
    assert np.mean([one.share for one in measured]) == pytest.approx(2 / 29, rel=0.15)
    assert np.mean([one.beyond_chance for one in measured]) == pytest.approx(0.05, abs=0.04)


def test_with_few_trials_nothing_is_claimed():
    assert importances({"a": ["1", "2", "3"]}, [0.1, 0.2, 0.3]) == []


def test_equal_losses_make_nothing_important():
    measured = importances({"a": ["1", "2"] * 5}, [0.5] * 10)
    assert [one.share for one in measured] == [0.0]
