"""The columns of a generated file: exact rules, and physics within tolerances."""

from __future__ import annotations

import numpy as np
import pytest

from data import ragged
from data.generator import jet_columns


def jet_of(columns, counter="nPF"):
    return np.repeat(np.arange(len(columns[counter])), columns[counter])


def test_all_values_are_finite(columns):
    for name, values in columns.items():
        assert np.isfinite(values.astype(float)).all(), name


def test_every_jet_passes_the_cuts_and_each_event_has_its_two_leading_jets(columns):
    assert (columns["jetPt"] > 30).all()
    assert (np.abs(columns["jetEta"]) < 2.5).all()
    events, first, count = np.unique(columns["event"], return_index=True, return_counts=True)
    assert count[:-1].min() >= 2  # the last event may be cut off by the number of jets asked for
    for start, number in zip(first[:-1], count[:-1], strict=True):
        jets = slice(start, start + number)
        assert columns["eventJetMult"][jets].tolist() == [number] * number
        assert columns["jetPtOrder"][jets].tolist() == list(range(number))
        assert (np.diff(columns["jetPt"][jets]) <= 0).all()
    assert len(events) > 100


def test_leading_jet_variables_follow_from_the_stored_jets(columns):
    # not the very last jet: the number of jets may cut its event
    lead = np.flatnonzero(columns["jetPtOrder"][:-1] == 0)
    second = lead + 1
    np.testing.assert_array_equal(columns["event"][lead], columns["event"][second])
    np.testing.assert_allclose(
        columns["dEtaJetsLO"][lead], columns["jetEta"][lead] - columns["jetEta"][second], atol=1e-5
    )
    d_phi = ragged.delta_phi(columns["jetPhi"][lead], columns["jetPhi"][second])
    np.testing.assert_allclose(np.cos(columns["dPhiJetsLO"][lead]), np.cos(d_phi), atol=1e-5)
    assert ((columns["alpha"] >= 0) & (columns["alpha"] < 1.01)).all()


def test_candidates_lie_in_the_box_with_consistent_angles(columns):
    d_eta, d_phi = columns["PF_dEta"], columns["PF_dPhi"]
    assert (np.abs(d_eta) <= 1).all()
    assert (np.abs(d_phi) <= 1).all()
    np.testing.assert_allclose(columns["PF_dR"], np.hypot(d_eta, d_phi), rtol=1e-5)
    np.testing.assert_allclose(columns["PF_dTheta"], np.arctan2(d_phi, d_eta), atol=1e-4)
    assert set(np.unique(np.abs(columns["PF_id"]))) <= {1, 2, 11, 13, 22, 130, 211}
    assert set(np.unique(columns["PF_fromPV"])) == {0, 1, 2, 3}


def test_the_candidates_of_a_jet_sum_to_its_raw_momentum(columns):
    jet, inside = jet_of(columns), columns["PF_fromAK4Jet"] == 1
    phi = columns["PF_dPhi"] + columns["jetPhi"][jet]
    px, py = (
        ragged.total(jet, inside * columns["PF_pT"] * f(phi), len(columns["jetPt"]))
        for f in (np.cos, np.sin)
    )
    np.testing.assert_allclose(np.hypot(px, py), columns["jetRawPt"], rtol=1e-3)
    np.testing.assert_array_equal(
        ragged.counts_of(jet[inside], len(columns["jetPt"])), columns["jetMult"]
    )
    assert (columns["PF_fromPV"][inside] > 0).all()


def test_multiplicities_add_up(columns):
    np.testing.assert_array_equal(
        columns["jetChargedMult"] + columns["jetNeutralMult"], columns["jetMult"]
    )
    assert (columns["jetChargedHadronMult"] <= columns["jetChargedMult"]).all()
    assert (columns["QG_mult"] <= columns["jetMult"]).all()


def test_generator_jets_are_matched_or_zero(columns):
    matched = columns["jetGenMatch"] == 1
    assert matched.mean() > 0.97
    for name in ("genJetPt", "genJetEta", "genJetPhi", "genJetMass", "nGenJetPF"):
        assert (columns[name][~matched] == 0).all(), name
    assert (columns["genJetPt"][matched] > 8).all()
    jet = jet_of(columns, "nGenJetPF")
    scalar_sum = ragged.total(jet, columns["genJetPF_pT"], len(matched))
    assert (
        (scalar_sum >= 0.999 * columns["genJetPt"]) & (scalar_sum < 1.2 * columns["genJetPt"] + 1)
    ).all()
    falling = np.diff(columns["genJetPF_pT"])[np.diff(jet) == 0]
    assert (falling <= 0).all()


def test_angles_of_generator_particles_equal_values_computed_by_hand():
    """Particles above, below and beside an axis at phi = 3, one of them across phi = pi."""
    angles = jet_columns.generator_angles(
        np.array([1.2, 1.2, 0.9, 1.0]),
        np.array([3.1, 2.8, -3.1, 3.2]),
        np.full(4, 1.0),
        np.full(4, 3.0),
    )
    d_eta = np.array([0.2, 0.2, -0.1, 0.0])
    d_phi = np.array([0.1, -0.2, 2 * np.pi - 6.1, 0.2])
    assert angles["genJetPF_dR"] == pytest.approx(np.hypot(d_eta, d_phi))
    expected = [np.arctan(0.5), -np.pi / 4, np.pi - np.arctan(d_phi[2] / 0.1), np.pi / 2]
    assert angles["genJetPF_dTheta"] == pytest.approx(expected)


def test_generator_particles_and_candidates_lie_on_the_same_side(columns):
    """The candidates of a jet lie on the same side of its generator jet's axis as the particles.

    Jets are asymmetric, so the pT²-weighted side tells a sign of phi that is turned.
    """
    jet = jet_of(columns, "nGenJetPF")
    gen_jets = len(columns["genJetPt"])
    side_of_particles = ragged.total(
        jet,
        columns["genJetPF_pT"] ** 2 * columns["genJetPF_dR"] * np.sin(columns["genJetPF_dTheta"]),
        gen_jets,
    )
    # The candidates as seen from the axis of the generator jet.
    candidate_jet = jet_of(columns)
    phi = columns["PF_dPhi"] + columns["jetPhi"][candidate_jet]
    inside = columns["PF_fromAK4Jet"] == 1
    side_of_candidates = ragged.total(
        candidate_jet,
        inside * columns["PF_pT"] ** 2 * ragged.delta_phi(phi, columns["genJetPhi"][candidate_jet]),
        gen_jets,
    )
    matched = columns["jetGenMatch"] == 1
    same_side = (side_of_particles * side_of_candidates)[matched] > 0
    assert np.mean(same_side) > 0.7


def test_flavour_flags_follow_the_flavour(columns):
    for name, flavour in (("Phys", columns["physFlav"]), ("Parton", columns["partonFlav"])):
        flags = np.stack([columns[f"is{name}{kind}"] for kind in ("UDS", "G", "Other")])
        np.testing.assert_array_equal(flags.sum(axis=0), 1)
        np.testing.assert_array_equal(flags[1] == 1, flavour == 21)
    assert set(np.unique(columns["hadronFlav"])) <= {0, 4, 5}
    heavy = columns["hadronFlav"] > 0
    np.testing.assert_array_equal(
        np.abs(columns["partonFlav"][heavy]), columns["hadronFlav"][heavy]
    )
    assert 0.4 < np.mean(columns["partonFlav"] == 21) < 0.7


# ---------------------------------------------------------------------------------------- physics


def response(columns, low, high):
    in_range = (columns["genJetPt"] > low) & (columns["genJetPt"] < high)
    return (columns["jetPt"] / np.maximum(columns["genJetPt"], 1))[in_range]


def width(values):
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return (high - low) / middle


@pytest.mark.parametrize(("low", "high"), [(45, 100), (100, 250), (250, 3000)])
def test_the_standard_corrections_close(columns, low, high):
    assert np.median(response(columns, low, high)) == pytest.approx(1.0, abs=0.05)


def test_the_resolution_improves_with_momentum(columns):
    widths = [width(response(columns, *edges)) for edges in ((40, 90), (90, 250), (250, 3000))]
    assert widths[0] > widths[2]
    assert 0.10 < widths[0] < 0.25
    assert 0.05 < widths[2] < 0.12


def test_jets_have_the_usual_fractions_of_particles(columns):
    jet, inside = jet_of(columns), columns["PF_fromAK4Jet"] == 1
    hard = columns["jetPt"][jet] > 60  # below, pile-up adds neutrals
    kind, pt = np.abs(columns["PF_id"]), columns["PF_pT"]
    whole = pt[inside & hard].sum()
    charged, photons, neutral = (
        pt[inside & hard & (kind == number)].sum() / whole for number in (211, 22, 130)
    )
    assert charged == pytest.approx(0.60, abs=0.08)
    assert photons == pytest.approx(0.25, abs=0.06)
    assert neutral == pytest.approx(0.10, abs=0.08)


def test_the_number_of_candidates_equals_that_of_the_open_data(columns):
    in_cone = ragged.counts_of(jet_of(columns)[columns["PF_dR"] < 0.4], len(columns["nPF"]))
    assert 110 < columns["nPF"].mean() < 160
    assert in_cone.mean() == pytest.approx(36, abs=6)


def test_density_grows_with_pileup(columns):
    assert np.corrcoef(columns["rhoAll"], columns["Pileup_nPU"])[0, 1] > 0.7
    assert 10 < np.median(columns["rhoAll"]) < 30


def test_the_likelihood_separates_quarks_from_gluons(columns):
    quark, gluon = columns["isPartonUDS"] == 1, columns["isPartonG"] == 1
    assert columns["jetQGl"][quark].mean() > columns["jetQGl"][gluon].mean() + 0.1


def test_nearly_all_jets_are_identified(columns):
    assert 0.98 < columns["jetTightID"].mean() <= columns["jetLooseID"].mean() <= 1
