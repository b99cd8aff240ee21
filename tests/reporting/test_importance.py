"""The importance of parameters, compared with that by chance."""

import numpy as np
import pytest

from reporting.importance import importances


def test_importance_exceeds_chance_only_for_parameters_with_an_effect():
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
    by_name = {parameter.name: parameter for parameter in importances(columns, list(losses))}
    assert next(iter(by_name)) == "rate"
    assert set(by_name) == {"noise", "rate", "kind"}, "a constant parameter has no importance"
    assert by_name["rate"].beyond_chance
    assert by_name["rate"].share > 0.5
    assert not by_name["noise"].beyond_chance


def test_the_share_by_chance_follows_its_formula():
    """For k groups of N trials without any effect, the share is (k - 1) / (N - 1) on average."""
    generator = np.random.default_rng(2)
    columns = {f"p{i}": [str(v) for v in generator.integers(0, 3, size=30)] for i in range(200)}
    parameters = importances(columns, list(generator.normal(size=30)))
    assert np.mean([parameter.share for parameter in parameters]) == pytest.approx(2 / 29, rel=0.15)
    assert np.mean([parameter.beyond_chance for parameter in parameters]) == pytest.approx(
        0.05, abs=0.04
    )


def test_few_trials_give_no_importance():
    assert importances({"a": ["1", "2", "3"]}, [0.1, 0.2, 0.3]) == []


def test_equal_losses_give_an_importance_of_zero():
    parameters = importances({"a": ["1", "2"] * 5}, [0.5] * 10)
    assert [parameter.share for parameter in parameters] == [0.0]
