"""The errors of the normal core, compared with the scatter of many samples."""

from __future__ import annotations

import numpy as np
import pytest

from physics import response as r
from physics.core import core_errors, counted_cores


def test_counts_of_one_give_the_core_of_gaussian_core():
    values = np.sort(np.random.default_rng(1).normal(1, 0.1, 900))
    (core,) = counted_cores(values, np.ones((1, 900), int))
    assert core == pytest.approx(r.gaussian_core(values), abs=1e-6)


@pytest.mark.parametrize("number", [500, 5000])
def test_errors_equal_the_scatter_of_independent_samples(number):
    rng = np.random.default_rng(2)
    cores = [r.gaussian_core(rng.normal(1, 0.1, number)) for _ in range(400)]
    errors = [core_errors(rng.normal(1, 0.1, number), rng) for _ in range(10)]
    # The scatter of 400 samples is known to 3.5 %, that of 1,000 draws to 2 %.
    assert np.mean(errors, axis=0) == pytest.approx(np.std(cores, axis=0), rel=0.12)
    # The error of an untruncated normal sample would be too small.
    assert np.mean(errors, axis=0)[1] > 1.4 * 0.1 / np.sqrt(2 * number)


def test_values_without_a_core_have_no_errors():
    assert np.isnan(core_errors(np.ones(60), np.random.default_rng(3))).all()
