"""The step in response at the edges of the range."""

from __future__ import annotations

import numpy as np
import pytest

from physics.range_edges import MIN_JETS, edges_of, median, steps


def test_the_bands_touch_at_each_edge():
    edges = edges_of(20.0, 1000.0, 2.5)
    low, high, eta = edges
    assert (low.inside, low.outside) == ((20, pytest.approx(22)), (18, 20))
    assert (high.inside, high.outside) == ((900, 1000), (1000, pytest.approx(1100)))
    assert (eta.inside, eta.outside) == ((pytest.approx(2.4), 2.5), (2.5, pytest.approx(2.6)))
    assert len(edges_of(20.0, 1000.0, None)) == 2


def test_steps_compare_the_model_inside_with_the_standard_correction_outside():
    rng = np.random.default_rng(1)
    pt = rng.uniform(15, 25, 4000)
    response = rng.normal(1.2, 0.1, 4000)
    valid = pt >= 20
    results = steps(
        edges_of(20.0, 1000.0, 2.5),
        pt=pt,
        abs_eta=np.full(4000, 1.0),
        generated_pt=pt / response,
        correction=np.full(4000, -0.2),
        valid=valid,
        level=0.95,
    )
    low, high, eta = results
    assert low.num_inside == ((pt >= 20) & (pt <= 22)).sum()
    assert low.num_outside == ((pt >= 18) & (pt < 20)).sum()
    assert low.model_inside.value == pytest.approx(1.2 * np.exp(-0.2), abs=0.02)
    assert low.standard_inside.value == pytest.approx(1.2, abs=0.02)
    assert low.standard_outside.low < 1.2 < low.standard_outside.high
    for empty in (high, eta):
        assert (empty.num_inside, empty.num_outside) == (0, 0)
        assert empty.model_inside is None
        assert empty.standard_outside is None


def test_without_eta_its_edge_is_left_out():
    ones = np.ones(3)
    results = steps(
        edges_of(20.0, 1000.0, 2.5),
        pt=ones,
        abs_eta=None,
        generated_pt=ones,
        correction=ones,
        valid=ones > 0,
        level=0.95,
    )
    assert len(results) == 2


def test_the_interval_of_the_median_covers_as_often_as_its_level():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        interval = median(rng.exponential(size=MIN_JETS), 0.95)
        covered += interval.low <= np.log(2) <= interval.high
    assert 935 <= covered <= 985


def test_too_few_jets_have_no_median():
    assert median(np.ones(MIN_JETS - 1), 0.95) is None
