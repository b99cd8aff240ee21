from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data.generator import reconstruction
from data.generator.clustering import Jets
from data.generator.events import HardEvents, Particles


def table(number, pt, eta=0.0, phi=0.0, event=0) -> Particles:
    count = len(number)
    columns = {
        "id": np.array(number),
        "pt": np.array(pt, dtype=float),
        "event": np.broadcast_to(event, count),
    }
    columns |= {
        "eta": np.broadcast_to(eta, count).astype(float),
        "phi": np.broadcast_to(phi, count).astype(float),
    }
    return Particles(
        **{f.name: columns.get(f.name, np.zeros(count)) for f in dataclasses.fields(Particles)}
    )


def hard(partons=((), ()), heavy=((), ()), outgoing=((), (), ())) -> HardEvents:
    empty = table([], [])
    out = table(outgoing[0], np.ones(len(outgoing[0])), *outgoing[1:])
    return HardEvents(empty, empty, table(*partons), table(*heavy), out, np.ones(1), np.ones(1))


def jets(eta, phi, event=0) -> Jets:
    eta, phi = np.array(eta, dtype=float), np.array(phi, dtype=float)
    ones, no_members = np.ones(len(eta)), np.zeros(0, dtype=int)
    return Jets(np.broadcast_to(event, len(eta)), ones, eta, phi, ones, no_members, no_members)


@pytest.mark.parametrize(
    ("partons", "heavy", "hadron", "parton"),
    [
        pytest.param(([2, 21], [30, 50]), ([], []), 0, 21, id="the hardest light parton"),
        pytest.param(
            ([-5, 21], [10, 50]), ([511, 421], [9, 5]), 5, -5, id="a b hadron goes before all"
        ),
        pytest.param(([4, 21], [10, 50]), ([-421], [9]), 4, 4, id="then a c hadron"),
        pytest.param(
            ([21], [50]), ([421], [9]), 4, 4, id="a c hadron whose quark is not in the jet"
        ),
        pytest.param(
            ([5, 1], [50, 20]), ([], []), 0, 1, id="a b quark without a b hadron does not count"
        ),
        pytest.param(([], []), ([], []), 0, 0, id="nothing"),
    ],
)
def test_hadron_and_parton_flavour_of_a_jet(partons, heavy, hadron, parton):
    event = hard(partons, heavy)
    inside = [(np.zeros(len(p[0]), dtype=int), np.arange(len(p[0]))) for p in (partons, heavy)]
    flavours = reconstruction.hadron_flavour(event, inside[1], 1)
    assert flavours.tolist() == [hadron]
    assert reconstruction.parton_flavour(event, inside[0], flavours).tolist() == [parton]


def test_physics_flavour_comes_from_the_nearest_outgoing_parton():
    event = hard(outgoing=([21, -2], [0.0, 1.0], [3.1, 0.0]))
    flavours = reconstruction.physics_flavour(event, jets([0.1, 1.3, -2.0], [-3.1, 0.0, 0.0]))
    assert flavours.tolist() == [21, -2, 0]


def test_a_jet_is_matched_to_the_nearest_generator_jet_of_its_event():
    reconstructed = jets([0.0, 1.0, 2.0], [0.0, 3.14, 0.0], np.array([0, 0, 1]))
    generated = jets([0.1, 0.15, 1.05, 2.0], [0.0, 0.0, -3.14, 0.0], np.array([0, 0, 0, 0]))
    nearest = reconstruction.nearest(
        reconstructed, generated, events=2, radius=reconstruction.GEN_MATCH
    )
    assert nearest.tolist() == [0, 2, -1]


def test_charged_hadrons_of_pileup_are_left_out_of_jets(block):
    members = block.candidates[block.jets.member]
    assert (members.from_pv > 0).all()
    from_pileup = block.candidates.vertex > 0
    in_jets = reconstruction.charged_hadron_subtraction(block.candidates)
    leaked = np.mean(from_pileup[in_jets]) * len(in_jets) / np.count_nonzero(from_pileup)
    assert 0.1 < leaked < 0.3  # tracks of pile-up that no vertex has used


def test_generator_and_reconstructed_jets_agree_within_tolerance(block):
    good = (block.gen_match >= 0) & (np.abs(block.jets.eta) < 2.5)
    gen_pt = block.gen_jets.pt[block.gen_match[good]]
    raw = block.jets.pt[good] / gen_pt
    assert 0.85 < np.median(raw[gen_pt > 60]) < 1.1
    leading = (block.jets.pt > 40) & (np.abs(block.jets.eta) < 2.5)
    assert np.mean(block.gen_match[leading] >= 0) > 0.97
