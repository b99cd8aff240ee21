"""The corrections, and their derivation from a known response."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import InputError
from data.generator import derive, jec
from data.generator.derive import ResponseJets
from data.generator.quark_gluon import Shape


@pytest.fixture
def corrections() -> jec.StandardJEC:
    return jec.StandardJEC(
        eta_edges=np.array([0.0, 1.0, 2.0]),
        l1_intercept=np.array([0.0, 1.0]),
        l1_slope=np.array([0.5, 0.5]),
        log_pt=(np.log([10.0, 1000.0]), np.log([20.0])),
        factor=(np.array([1.2, 1.0]), np.array([1.1])),
    )


def test_l1_subtracts_area_times_density(corrections):
    factor = corrections.l1(
        np.array([50.0, 50.0]), np.array([0.5, -1.5]), np.array([0.5, 0.5]), np.array([20.0, 20.0])
    )
    assert factor == pytest.approx([1 - 0.5 * 10 / 50, 1 - 0.5 * 11 / 50])


def test_l1_of_a_jet_of_pileup_is_positive(corrections):
    assert corrections.l1(
        np.array([5.0]), np.zeros(1), np.ones(1), np.array([50.0])
    ) == pytest.approx([jec.MIN_L1])


def test_l2l3_is_linear_in_log_pt_and_constant_outside(corrections):
    pt, eta = np.array([1.0, 100.0, 5000.0, 50.0]), np.array([0.0, -0.5, 0.5, 3.0])
    assert corrections.l2l3(pt, eta) == pytest.approx([1.2, 1.1, 1.0, 1.1])


def test_the_correction_is_the_product_of_both_steps(corrections):
    pt, eta, area, rho = np.array([100.0]), np.array([0.0]), np.array([0.5]), np.array([20.0])
    l1 = corrections.l1(pt, eta, area, rho)
    assert corrections.correction(pt, eta, area, rho) == pytest.approx(
        l1 * corrections.l2l3(pt * l1, eta)
    )


def test_constants_are_the_same_after_their_file(corrections, tmp_path):
    path = tmp_path / "jec.json"
    path.write_text(json.dumps(jec.content(corrections, {"seed": 1})))
    copy = jec.load(path)
    pt, eta = np.geomspace(5, 3000, 20), np.linspace(-2.5, 2.5, 20)
    assert copy.correction(pt, eta, 0.5 * np.ones(20), 20 * np.ones(20)) == pytest.approx(
        corrections.correction(pt, eta, 0.5 * np.ones(20), 20 * np.ones(20)), rel=1e-4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "python -m data.derive"), ("{}", "does not hold"), ("[", "does not hold")],
)
def test_unusable_constants_are_refused(tmp_path, text, message):
    path = tmp_path / "jec.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        jec.load(path)


def test_the_constants_of_the_repository_are_near_one():
    shipped = jec.load()
    pt, eta = (
        grid.ravel() for grid in np.meshgrid(np.geomspace(20, 2000, 30), np.linspace(-2.5, 2.5, 21))
    )
    factor = shipped.correction(pt, eta, np.full(pt.shape, 0.5), np.full(pt.shape, 20.0))
    assert ((factor > 0.6) & (factor < 1.4)).all()


def test_the_offset_fit_reproduces_the_line():
    rng = np.random.default_rng(1)
    rho = rng.uniform(5, 40, 2000)
    slopes = 0.4 + 0.05 * np.arange(len(derive.ETA_EDGES) - 1)
    density = 1.5 + rho[:, None] * slopes + rng.normal(0, 0.5, (2000, len(slopes)))
    corrections_of_fit = derive.fit_l1(np.column_stack([rho, density]))
    assert corrections_of_fit.l1_slope == pytest.approx(slopes, abs=0.01)
    assert corrections_of_fit.l1_intercept == pytest.approx(np.full(len(slopes), 1.5), abs=0.2)


def test_too_few_jets_for_a_derivation_are_an_error():
    nothing = np.zeros(0)
    with pytest.raises(InputError, match="more --events"):
        derive.fit_l2l3(
            jec.no_corrections(derive.ETA_EDGES),
            ResponseJets(*[nothing] * 4, Shape(*[nothing] * 3)),
        )


def test_numerical_inversion_closes():
    rng = np.random.default_rng(2)
    count = 200_000
    gen_pt = np.exp(rng.uniform(np.log(12), np.log(2000), count))
    eta = rng.uniform(-3.2, 3.2, count)
    response = (1 - 0.5 * gen_pt**-0.4) * (1 - 0.03 * np.abs(eta)) * rng.normal(1, 0.1, count)
    nothing = np.zeros(count)
    jets = ResponseJets(gen_pt * response, eta, gen_pt, nothing, Shape(nothing, nothing, nothing))
    corrections_of_fit = derive.fit_l2l3(jec.no_corrections(derive.ETA_EDGES), jets)
    for region, medians in derive.closure(corrections_of_fit, jets)[:5]:
        assert medians == pytest.approx([1.0] * 6, abs=0.01), region
