"""Weights, residuals and the normal core: the numbers beside the headline."""

from __future__ import annotations

import numpy as np
import pytest

from physics import response
from physics.bootstrap import (
    bootstrap_quantiles,
    counted_quantiles,
    one_group,
    weighted_quantiles,
)
from physics.metrics import measure
from tests.physics.jets import make_jets, target_of


def test_quantiles_with_whole_weights_equal_those_of_a_sample_with_repeats():
    """Whole weights repeat a value; the inverse of the distribution needs no interpolation, so
    neighbours bound it.
    """
    rng = np.random.default_rng(1)
    ordered, weights = np.sort(rng.normal(size=501)), rng.integers(0, 5, 501)
    sample = np.repeat(ordered, weights)
    group = one_group(ordered)
    quantiles = weighted_quantiles(group, weights)[0]
    assert quantiles == pytest.approx(
        np.quantile(sample, response.QUANTILES, method="inverted_cdf")
    )
    assert quantiles == pytest.approx(counted_quantiles(group, weights)[0], abs=0.05)
    assert np.isnan(weighted_quantiles(group, np.zeros(501))).all()


def test_a_heavy_jet_widens_the_interval():
    values = {"model": np.random.default_rng(2).normal(1, 0.1, 400)}
    groups = {"all": np.ones(400, dtype=bool)}
    heavy = np.r_[np.full(10, 100.0), np.ones(390)]
    equal = bootstrap_quantiles(values, groups, replicates=60, seed=1, weights=np.ones(400))[
        "model"
    ]["all"][1:, 2]
    uneven = bootstrap_quantiles(values, groups, replicates=60, seed=1, weights=heavy)["model"][
        "all"
    ][1:, 2]
    assert np.std(uneven) > 2 * np.std(equal)


def test_the_core_excludes_the_tails_of_a_normal_distribution():
    rng = np.random.default_rng(3)
    values = np.r_[rng.normal(1.02, 0.1, 20_000), rng.uniform(0.2, 0.6, 400)]
    mean, sigma = response.gaussian_core(values)
    assert mean == pytest.approx(1.02, abs=0.003)
    assert sigma == pytest.approx(0.1, rel=0.03)
    assert abs(np.std(values) - 0.1) > 0.01  # the tails widen the plain standard deviation
    assert np.isnan(response.gaussian_core(values[:10])).all()


def test_the_weighted_gain_depends_only_on_jets_with_weight():
    """The model helps below 100 GeV only; without the weight of these jets there is no gain."""
    jets = make_jets(6000)
    low = jets["genJetPt"] < 100
    output = np.where(low, 0.3, 0.0) * target_of(jets)
    metrics = measure(jets | {"eventWeight": np.where(low, 1e-6, 1.0)}, output, replicates=40)
    assert metrics["gain"]["low"] > 5
    assert metrics["weighted"]["gain"]["value"] == pytest.approx(0, abs=0.5)
    assert metrics["weighted"]["effective_jets"] == pytest.approx(np.count_nonzero(~low), rel=0.01)


@pytest.mark.parametrize("weights", [np.ones(600), np.r_[-1.0, np.arange(1, 600.0)]])
def test_unusable_weights_give_no_weighted_numbers(weights):
    jets = make_jets(600)
    assert (
        measure(jets | {"eventWeight": weights}, 0.1 * target_of(jets), replicates=20)["weighted"]
        is None
    )


def test_residuals_show_a_bias_that_closure_hides():
    """A response that rises with pile-up averages out in pT and stands out against rho."""
    jets = make_jets(8000)
    rho = np.random.default_rng(4).uniform(5, 35, 8000)
    jets = jets | {"rhoAll": rho, "jetPt": jets["jetPt"] * (1 + 0.004 * (rho - 20))}
    metrics = measure(jets, np.zeros(8000), replicates=40)
    slices = metrics["residuals"]["rhoAll"]
    assert len(slices) == 8
    assert sum(entry["num_jets"] for entry in slices) == pytest.approx(
        np.count_nonzero(jets["genJetPt"] >= 60), abs=2
    )
    assert slices[0]["model"]["high"] < -0.02
    assert slices[-1]["model"]["low"] > 0.02


def test_residuals_of_whole_numbers_lose_no_jet():
    jets = make_jets(3000) | {"PV_npvsGood": np.random.default_rng(5).integers(0, 4, 3000)}
    slices = measure(jets, np.zeros(3000), replicates=20)["residuals"]["PV_npvsGood"]
    assert sum(entry["num_jets"] for entry in slices) == np.count_nonzero(jets["genJetPt"] >= 60)
