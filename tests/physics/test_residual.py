"""The residual correction: it closes unseen jets, and stays small, smooth and rising."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from physics import residual as res
from physics import response as r
from physics.metrics import record_of, sample_of
from physics.residual import (
    IDENTITY,
    WIDTHS,
    Curve,
    Point,
    Residual,
    curve_through,
    fit,
    from_json,
    measure,
    smooth,
    width_shares,
)
from physics.residual_effect import residual_effect
from tests.physics.jets import make_jets, target_of

BINS = [bin_ for bin_ in r.bins(r.FINE_PT_EDGES) if r.CLOSURE_FROM <= bin_.low < 1000]


def bias_of_network(jets: dict[str, np.ndarray]) -> np.ndarray:
    """log of the factor by which a network is off: falling with pT in the endcap."""
    endcap = np.abs(jets["genJetEta"]) >= 1.3
    return np.where(endcap, -0.005 - 0.006 * np.log(jets["jetPt"] / 60), 0.004)


def answers(jets: dict[str, np.ndarray]) -> np.ndarray:
    """A network that knows a tenth of each jet's error, and does not close."""
    return 0.1 * target_of(jets) + bias_of_network(jets)


def fit_residual(jets: dict[str, np.ndarray], output: np.ndarray) -> Residual:
    residual = fit(r.calibrated_pt(jets["jetPt"], output), jets["genJetPt"], jets["genJetEta"])
    assert residual is not None
    return residual


def corrected(jets: dict[str, np.ndarray], output: np.ndarray, residual: Residual) -> np.ndarray:
    return residual.apply(output[:, None], jets["jetPt"], jets["genJetEta"])[:, 0]


def biases(jets: dict[str, np.ndarray], output: np.ndarray) -> dict[str, tuple[float, float]]:
    """Bin -> median response - 1, and its standard deviation."""
    values = r.response(r.calibrated_pt(jets["jetPt"], output), jets["genJetPt"])
    result = {}
    for bin_ in BINS:
        inside = values[bin_.contains(jets["genJetPt"], jets["genJetEta"])]
        q = r.quantiles(inside)
        error = 1.253 * (q[3] - q[1]) / 1.349 / len(inside) ** 0.5
        result[bin_.name] = (float(r.bias(q)), float(error))
    return result


@pytest.fixture(scope="module")
def validation():
    return make_jets(100_000, seed=1)


@pytest.fixture(scope="module")
def test():
    return make_jets(400_000, seed=2)


@pytest.fixture(scope="module")
def residual(validation):
    return fit_residual(validation, answers(validation))


def test_the_correction_closes_jets_of_an_independent_sample(test, residual):
    before = biases(test, answers(test))
    after = biases(test, corrected(test, answers(test), residual))
    assert max(abs(bias) for bias, _ in before.values()) > 0.012
    assert all(abs(bias) < 0.005 for bias, _ in after.values()), after


def test_a_network_that_closes_gets_a_correction_of_one(validation):
    noise = np.random.default_rng(0).normal(0, 0.1, len(validation["genJetPt"]))
    closing = {**validation, "jetPt": validation["genJetPt"] * np.exp(noise)}
    for curve in fit_residual(closing, np.zeros(len(noise))).curves.values():
        assert np.abs(curve(curve.sample())).max() < 0.004
    for curve in fit_residual(closing, np.full(len(noise), 0.02)).curves.values():
        np.testing.assert_allclose(curve(curve.sample()), -0.02, atol=0.004)


def test_an_overfitted_network_is_corrected_by_validation_jets(test):
    """It memorises its training jets, and is the best of 30 checkpoints on the validation jets."""
    training, validation = make_jets(20_000, seed=3), make_jets(20_000, seed=4)
    by_heart = fit_residual(training, target_of(training))
    for curve in by_heart.curves.values():
        assert np.abs(curve(curve.sample())).max() < 1e-3, "there is nothing to see on these jets"

    def checkpoint(jets, seed):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(jets["jetPt"]))
        return answers(jets) + noise

    def loss(seed):
        return np.abs(checkpoint(validation, seed) - target_of(validation)).mean()

    best = min(range(30), key=loss)
    residual = fit_residual(validation, checkpoint(validation, best))
    output = checkpoint(test, best + 1000)
    after = biases(test, corrected(test, output, residual))
    # The remaining bias is the error of the fit, as for a network not selected on these jets.
    errors = {
        name: 1.3 * error * (len(test["jetPt"]) / len(validation["jetPt"])) ** 0.5
        for name, (_, error) in after.items()
    }
    pulls = [bias / errors[name] for name, (bias, _) in after.items()]
    assert np.abs(pulls).max() < 3
    assert np.mean(np.square(pulls)) < 1.5


def points(log_pt, log_r, error) -> list[Point]:
    result = []
    for x, y in zip(log_pt, log_r, strict=True):
        result.append(Point(region="barrel", log_pt=x, log_r=y, error=error, num_jets=100))
    return result


def test_points_with_large_errors_are_shrunk_towards_one():
    log_pt, log_r = [4.2, 5.0, 6.0], [0.01, 0.012, 0.015]
    samples = [points(log_pt, log_r, error) for error in (1e-4, 0.03)]
    precise, vague = (smooth(sample, width_shares([sample])) for sample in samples)
    np.testing.assert_allclose(precise, log_r, rtol=0.01)
    assert (np.abs(vague) < 0.5 * np.abs(log_r)).all()
    assert (vague > 0).all()


@pytest.mark.parametrize("size", [0.001, 0.005, 0.03], ids=str)
def test_the_width_of_the_prior_follows_the_deviations(size):
    log_pt = np.linspace(4, 8, 9)
    trends = (size * (log_pt - 6) / 2, size * np.ones(9), -size * np.ones(9))
    shares = width_shares([points(log_pt, trend, size / 10) for trend in trends])
    assert shares.sum() == pytest.approx(1)
    assert size / 3 < np.exp(shares @ np.log(WIDTHS)) < 3 * size
    # Deviations as large as the errors do not determine a width.
    rng = np.random.default_rng(0)
    noise = [points(log_pt, size * rng.normal(size=9), size) for _ in range(2)]
    assert np.abs(smooth(noise[0], width_shares(noise))).max() < size / 2


def test_a_bin_with_few_jets_is_merged_with_the_next():
    gen_pt = np.concatenate([np.full(30, 70.0), np.full(30, 100.0), np.full(60, 130.0), [200.0]])
    points_of_bins = measure("barrel", np.log(gen_pt) + 0.01, gen_pt)
    assert [point.num_jets for point in points_of_bins] == [60, 60]
    np.testing.assert_allclose([point.log_r for point in points_of_bins], -0.01)


def mean_bias(jets: dict[str, np.ndarray], output: np.ndarray) -> float:
    return float(np.mean([abs(bias) for bias, _ in biases(jets, output).values()]))


@pytest.mark.parametrize(
    ("scale", "draws", "number", "at_most"),
    [(0.002, 25, 1000, 1.1), (0.02, 5, 1000, 0.4), (0.02, 3, 10_000, 0.25)],
    ids=["nearly closed", "off by 2 %", "off by 2 %, many jets"],
)
def test_few_validation_jets_do_not_worsen_closure(test, scale, draws, number, at_most):
    """The mean |bias| on independent jets, of what it is without the correction."""
    independent = {name: values[:60_000] for name, values in test.items()}

    # The bias of the jets' formula is subtracted, so that the bias is `scale` everywhere.
    def network(jets):
        gluon = np.where(jets["partonFlav"] == 21, 0.99, 1.01)
        return 0.1 * target_of(jets) - 0.9 * np.log(gluon) + scale

    output = network(independent)
    before = mean_bias(independent, output)
    after = []
    for seed in range(draws):
        few = make_jets(number, seed=100 + seed)
        residual = fit_residual(few, network(few))
        after.append(mean_bias(independent, corrected(independent, output, residual)))
    assert np.mean(after) < at_most * before


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.05, 1), st.floats(-3, 3)), min_size=2, max_size=10),
    st.floats(1e-4, 1),
)
def test_any_curve_is_bounded_monotonic_and_constant_outside(steps, error):
    log_pt = 4 + np.cumsum([step for step, _ in steps])
    points_of_curve = points(log_pt, [y for _, y in steps], error)
    curve = curve_through(points_of_curve, width_shares([points_of_curve]))
    x = np.linspace(log_pt[0] - 2, log_pt[-1] + 2, 5000)
    log_r = curve(x)
    assert np.abs(np.expm1(log_r)).max() <= res.MAX_CORRECTION + 1e-9
    assert (np.diff(x + log_r) > 0).all()
    assert (log_r[x <= log_pt[0]] == log_r[0]).all()
    assert (log_r[x >= log_pt[-1]] == log_r[-1]).all()


def test_all_columns_get_the_r_of_the_median_and_remove_reverts_it(residual):
    rng = np.random.default_rng(0)
    output = rng.normal(0, 0.1, (500, 3))
    reference_pt, eta = np.exp(rng.uniform(2, 8, 500)), rng.uniform(-3, 3, 500)
    log_r = residual.log_r(np.log(reference_pt) + output[:, 0], eta)
    applied = residual.apply(output, reference_pt, eta)
    np.testing.assert_allclose(applied - output, np.repeat(log_r[:, None], 3, axis=1), atol=1e-12)
    assert np.abs(log_r).max() > 0.01
    np.testing.assert_allclose(residual.remove(applied, reference_pt, eta), output, atol=1e-12)


def test_json_preserves_the_curves(residual):
    assert from_json(residual.as_json()).curves == residual.curves


def test_jets_without_numbers_are_left_out(validation):
    output = answers(validation)
    clean = fit_residual(validation, output)
    with_bad_jets = dict(validation)
    for column, value in (("jetPt", np.nan), ("genJetPt", 0.0), ("jetPt", -1.0)):
        with_bad_jets[column] = np.append(with_bad_jets[column], value)
        for other in set(with_bad_jets) - {column}:
            with_bad_jets[other] = np.append(with_bad_jets[other], 100.0)
    output = np.append(output, [0.0, 0.0, np.inf])
    assert fit_residual(with_bad_jets, output) == clean
    assert np.isnan(clean.apply(np.array([[np.nan]]), np.array([50.0]), np.array([0.0]))).all()


def test_too_few_jets_give_no_correction():
    few = make_jets(60)
    assert fit(few["jetPt"], few["genJetPt"], few["genJetEta"]) is None
    of_one_region = make_jets(5000)
    of_one_region["genJetEta"] = of_one_region["genJetEta"] / 2.5
    residual = fit_residual(of_one_region, answers(of_one_region))
    assert residual.curves["endcap"] == IDENTITY
    assert {point.region for point in residual.points} == {"barrel"}


@pytest.mark.parametrize(
    "change",
    [
        {"knots": (5.0, 4.0)},
        {"knots": (4.0,), "pieces": ()},
        {"knots": (4.0, 5.0, 6.0)},
        {"pieces": ((0.2, 0.0, 0.0, 0.0),)},
        {"pieces": ((0.0, 0.0, -20.0, 20.0 / 1.0),), "knots": (4.0, 4.1)},
        {"pieces": ((0.0, -1.5, 0.0, 0.0),), "knots": (4.0, 4.05)},
        {"knots": (4.0, np.nan)},
    ],
    ids=["falling", "one knot", "pieces", "too large", "too steep inside", "steep", "nan"],
)
def test_an_invalid_curve_is_refused(change):
    with pytest.raises(ValueError, match="residual correction"):
        dataclasses.replace(IDENTITY, **change)


def test_a_network_with_large_errors_gets_a_valid_curve(validation):
    rng = np.random.default_rng(0)
    for output in (rng.normal(0, 3, len(validation["jetPt"])), 2 * target_of(validation) + 1):
        residual = fit_residual(validation, output)
        for curve in residual.curves.values():
            assert isinstance(curve, Curve)


def test_the_effect_is_measured_on_the_same_jets(validation, residual):
    small = {name: values[:8000] for name, values in validation.items()}
    output = answers(small)
    sample = sample_of(small, corrected(small, output, residual), replicates=50, seed=1)
    effect = residual_effect(sample, output)
    whole = {entry["region"]: entry for entry in effect["bins"] if entry["pt_high"] is None}
    endcap = whole["endcap"]
    assert endcap["without"]["value"] < -0.008
    assert abs(endcap["with_residual"]["value"]) < abs(endcap["without"]["value"]) / 2
    assert effect["gain"]["difference"]["value"] == pytest.approx(
        effect["gain"]["with_residual"]["value"] - effect["gain"]["without"]["value"]
    )
    by_bin = {
        (entry["region"], entry["pt_low"], entry["pt_high"]): entry for entry in effect["bins"]
    }
    assert by_bin["barrel", 60, None]["measured"]
    assert not by_bin["endcap", 650, 1000]["measured"], "fewer than 150 jets"


def test_the_gain_with_residual_is_the_gain_of_the_gate(validation, residual):
    small = {name: values[:2000] for name, values in validation.items()}
    output = answers(small)
    # The earlier model has no answer for some jets: these are left out everywhere.
    baseline = np.where(np.arange(2000) % 7 == 0, np.nan, 0.0)
    jets = corrected(small, output, residual)
    sample = sample_of(small, jets, baseline=baseline, replicates=50, seed=1)
    effect = residual_effect(sample, output)
    record = record_of(sample)
    assert effect["gain"]["with_residual"] == record["gain"]
    closure = {(entry["region"], entry["pt_range"]): entry for entry in record["closure"]["bins"]}
    assert len(effect["bins"]) == len(closure)
    for entry in effect["bins"]:
        place = closure[entry["region"], entry["pt_range"]]
        assert (entry["num_jets"], entry["with_residual"]) == (place["num_jets"], place["model"])


def test_without_jets_there_is_no_residual_effect():
    none = {name: values[:10] for name, values in make_jets(10).items()}
    assert residual_effect(sample_of(none, np.zeros(10), replicates=20), np.zeros(10)) is None
