from __future__ import annotations

import json

import numpy as np
import pytest

from common.errors import InputError
from data.generator import quark_gluon
from data.generator.detector import Candidates
from data.generator.quark_gluon import Likelihood, Shape


def candidates(pt, eta, phi, neutral) -> Candidates:
    count, zero = len(pt), np.zeros(len(pt))
    vertex = np.where(neutral, -1, 0)
    return Candidates(
        zero.astype(int),
        np.full(count, 22),
        np.array(pt),
        np.array(eta),
        np.array(phi),
        zero,
        zero,
        vertex,
    )


def test_shape_of_two_particles():
    # pT² weights 9 : 1 along eta only: the minor axis is 0, pT-D = sqrt(10) / 4.
    shape = quark_gluon.shape(
        np.zeros(2, dtype=int),
        candidates([3.0, 1.0], [0.1, -0.1], [0, 0], [0, 0]),
        np.zeros(1),
        np.zeros(1),
    )
    assert shape.pt_d == pytest.approx([np.sqrt(10) / 4])
    assert shape.axis2 == pytest.approx([0.0], abs=1e-9)
    assert shape.multiplicity.tolist() == [2]


def test_the_minor_axis_does_not_depend_on_the_orientation():
    rng = np.random.default_rng(1)
    x, y = 0.1 * rng.normal(size=500), 0.03 * rng.normal(size=500)
    widths = []
    for angle in (0.0, 0.7, 2.0):
        eta, phi = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
        c = candidates(np.ones(500), eta, phi, np.zeros(500))
        widths.append(
            quark_gluon.shape(np.zeros(500, dtype=int), c, np.zeros(1), np.zeros(1)).axis2[0]
        )
    assert widths == pytest.approx([widths[0]] * 3)
    assert widths[0] == pytest.approx(0.03, rel=0.1)


def test_soft_neutrals_are_not_counted():
    c = candidates([0.5, 0.5, 1.5], [0.0] * 3, [0.0] * 3, [True, False, True])
    assert quark_gluon.shape(
        np.zeros(3, dtype=int), c, np.zeros(1), np.zeros(1)
    ).multiplicity.tolist() == [2]


def test_the_likelihood_separates_the_jets_of_its_derivation():
    rng = np.random.default_rng(2)
    count = 4000
    gluon = rng.random(count) < 0.5
    shapes = Shape(
        rng.poisson(np.where(gluon, 30, 18)),
        rng.beta(2, np.where(gluon, 5, 3)),
        np.full(count, 0.03),
    )
    pt, eta, flavour = np.full(count, 100.0), np.zeros(count), np.where(gluon, 21, -1)
    likelihood = quark_gluon.derive(pt, eta, shapes, flavour)(pt, eta, shapes)
    assert ((likelihood > 0) & (likelihood < 1)).all()
    assert likelihood[~gluon].mean() > 0.8
    assert likelihood[gluon].mean() < 0.3


def test_bins_without_jets_give_one_half():
    flavour = np.repeat([1, 21], [10, 90])
    shapes = Shape(np.full(100, 20), np.full(100, 0.3), np.full(100, 0.05))
    likelihood = quark_gluon.derive(np.full(100, 100.0), np.zeros(100), shapes, flavour)
    elsewhere = Shape(np.array([90]), np.array([0.9]), np.array([0.3]))
    assert likelihood(np.array([100.0]), np.zeros(1), elsewhere) == pytest.approx([0.5])
    assert likelihood(np.array([3000.0]), np.array([2.0]), elsewhere) == pytest.approx([0.5])


def test_a_likelihood_without_information_is_one_half():
    shapes = Shape(np.array([5]), np.array([0.5]), np.array([0.0]))
    uninformed = Likelihood(np.zeros_like(quark_gluon.load().log_ratio))
    assert uninformed(np.array([50.0]), np.array([1.0]), shapes) == pytest.approx([0.5])


@pytest.mark.parametrize("text", ["{}", json.dumps({"log_ratio": [[1, 2]]})])
def test_unusable_densities_are_refused(tmp_path, text):
    path = tmp_path / "qg.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"qg\.json"):
        quark_gluon.load(path)
