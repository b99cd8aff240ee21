import math

import numpy as np
import pytest

from physics import response as r

NORMAL = np.random.default_rng(1).normal(1.02, 0.08, 400_000)


def test_widths_of_a_normal_response_are_multiples_of_its_sigma():
    q = r.quantiles(NORMAL)
    assert r.resolution(q) == pytest.approx(1.349 * 0.08 / 1.02, rel=0.01)
    assert r.half_width(q) == pytest.approx(0.08 / 1.02, rel=0.01)
    assert r.bias(q) == pytest.approx(0.02, abs=5e-4)


def test_resolution_equals_a_value_computed_by_hand():
    # 0, 1, ..., 8: quartiles 2 and 6, median 4.
    q = r.quantiles(np.arange(9.0))
    assert r.resolution(q) == pytest.approx((6 - 2) / 4)
    assert r.median(q) == 4


def test_a_common_scale_changes_the_bias_and_not_the_resolution():
    q, scaled = r.quantiles(NORMAL), r.quantiles(1.05 * NORMAL)
    assert r.resolution(scaled) == pytest.approx(r.resolution(q))
    assert r.gain(scaled, q) == pytest.approx(0, abs=1e-9)
    assert r.bias(scaled) == pytest.approx(1.05 * 1.02 - 1, abs=1e-3)


def test_gain_is_the_relative_reduction_of_the_width():
    narrow = r.quantiles(1 + 0.75 * (NORMAL / 1.02 - 1))
    assert r.gain(narrow, r.quantiles(NORMAL)) == pytest.approx(25, abs=0.1)


def test_formulas_keep_the_leading_axes():
    q = np.tile(r.quantiles(NORMAL), (7, 3, 1))
    for formula in (r.median, r.resolution, r.half_width, r.bias):
        assert formula(q).shape == (7, 3)
    assert r.gain(q, q).shape == (7, 3)


def test_calibrated_pt_is_pt_times_exp_of_the_output():
    assert r.calibrated_pt(np.array([100.0]), np.array([math.log(1.1)])) == pytest.approx([110])


@pytest.mark.parametrize("output", [np.nan, np.inf, 1e4], ids=["nan", "infinite", "overflow"])
def test_a_jet_without_finite_answer_has_no_calibrated_pt(output):
    assert np.isnan(r.calibrated_pt(np.array([100.0]), np.array([output]))).all()


def test_response_without_generator_jet_is_nan():
    assert np.isnan(r.response(np.array([50.0, 50.0]), np.array([0.0, 40.0]))).tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("parton", "hadron", "expected"),
    [
        (21, 5, "b"),
        (4, 4, "c"),
        (-2, 0, "uds"),
        (3, 0, "uds"),
        (21, 0, "g"),
        (0, 0, ""),
        (5, 0, ""),
    ],
    ids=[
        "gluon to b",
        "charm",
        "antiup",
        "strange",
        "gluon",
        "no parton",
        "b quark without b hadron",
    ],
)
def test_flavour_of_a_jet_from_parton_and_hadron_flavour(parton, hadron, expected):
    assert r.flavour(np.array([parton]), np.array([hadron])).tolist() == [expected]


def test_regions_split_the_detector():
    gen_eta = np.array([0.0, -1.2999, 1.3, -2.4999, 2.5])
    assert r.in_region(gen_eta, "barrel").tolist() == [True, True, False, False, False]
    assert r.in_region(gen_eta, "endcap").tolist() == [False, False, True, True, False]
    assert r.in_region(gen_eta, "all").tolist() == [True, True, True, True, False]


def test_bins_have_no_gap_and_no_overlap():
    gen_pt = np.array([29.9, 30.0, 99.9, 100.0, 1000.0, 9000.0])
    inside = np.array(
        [bin_.contains(gen_pt, np.zeros(6)) for bin_ in r.bins(r.PT_EDGES, ("barrel",))]
    )
    assert inside.sum(axis=0).tolist() == [0, 1, 1, 1, 1, 1]
    assert [bin_.range for bin_ in r.bins(r.PT_EDGES, ("barrel",))] == [
        "30-100",
        "100-300",
        "300-1000",
        ">1000",
    ]


def test_the_spread_of_equal_flavours_is_zero_on_average():
    """A largest minus a smallest median would be 1.0 % here, and more for rarer flavours."""
    rng = np.random.default_rng(1)
    squared, ranges = [], []
    for _ in range(400):
        noise = 0.005 * rng.normal(size=4)
        draws = noise + 0.005 * rng.normal(size=(100, 4))
        medians = 1 + np.vstack([noise, draws])
        squared.append(r.spread_squared(medians))
        ranges.append(np.ptp(noise))
    squared = np.array(squared)
    assert np.mean(ranges) > 0.009
    # The mean of 400 has an error of 1e-6; the noise alone would give 25e-6.
    assert np.mean(squared[:, 0]) == pytest.approx(0, abs=4e-6)
    # The draws lie about the sample's value, not above it.
    assert np.mean(squared[:, 1:]) == pytest.approx(np.mean(squared[:, 0]), abs=1e-6)


def test_the_spread_of_flavours_is_their_standard_deviation():
    rng = np.random.default_rng(2)
    true = np.array([1.01, 1.0, 0.98, 0.99])
    squared = []
    for _ in range(300):
        sample = true + 0.004 * rng.normal(size=4)
        squared.append(
            r.spread_squared(np.vstack([sample, sample + 0.004 * rng.normal(size=(100, 4))]))[0]
        )
    assert np.mean(squared) == pytest.approx(np.var(true, ddof=1), rel=0.05)
    assert r.signed_root(np.array([4.0, -9.0])).tolist() == [2, -3]


def test_far_jets_are_counted_on_both_sides_and_nan_is_far():
    assert r.num_far(np.array([1.0, math.e * 1.01, 0.99 / math.e, 2.7, 0.37, np.nan, 0.0])) == 4
