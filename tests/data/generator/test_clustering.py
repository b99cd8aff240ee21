from __future__ import annotations

import fastjet
import numpy as np
import pytest

from data import ragged
from data.generator import clustering
from data.generator.clustering import Inputs


def inputs(event, pt, eta, phi) -> Inputs:
    return Inputs.of(
        *(np.asarray(values) for values in (event, np.asarray(pt, dtype=float), eta, phi))
    )


def test_each_event_is_clustered_separately():
    jets = clustering.cluster(
        inputs([0, 0, 1, 1], [50, 20, 30, 40], [0.0, 0.1, 0.0, 2.0], [3.1, -3.1, 0.0, 0.0]), 3, 5.0
    )
    assert jets.event.tolist() == [0, 1, 1]
    assert jets.pt == pytest.approx([69.98, 40, 30], abs=0.05)  # the first across phi = pi
    assert jets.eta[1:] == pytest.approx([2.0, 0.0])
    assert jets.member_jet.tolist() == [0, 0, 1, 2]
    assert sorted(jets.member[:2].tolist()) == [0, 1]
    assert jets.member[2:].tolist() == [3, 2]


def test_select_keeps_the_members_of_jets():
    jets = clustering.cluster(
        inputs([0, 0, 1, 1], [50, 20, 30, 40], [0.0, 0.1, 0.0, 2.0], [0, 0.1, 0.0, 0.0]), 2, 5.0
    )
    part = clustering.select(jets, np.array([2, 0]))
    assert part.pt == pytest.approx(jets.pt[[2, 0]])
    assert part.member_jet.tolist() == [0, 1, 1]
    assert part.member[0] == jets.member[3]


def test_the_momentum_of_a_jet_is_the_sum_of_its_members(block):
    jets, members = block.gen_jets, block.hard.final[block.gen_jets.member]
    px = ragged.total(jets.member_jet, members.pt * np.cos(members.phi), len(jets))
    py = ragged.total(jets.member_jet, members.pt * np.sin(members.phi), len(jets))
    np.testing.assert_allclose(np.hypot(px, py), jets.pt, rtol=1e-6)
    np.testing.assert_array_equal(members.event, jets.event[jets.member_jet])


def test_areas_agree_with_fastjet_s(block):
    """Our ghosts against fastjet's ClusterSequenceArea on the leading jets of some events."""
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, clustering.RADIUS)
    area = fastjet.AreaDefinition(
        fastjet.active_area, fastjet.GhostedAreaSpec(clustering.GHOST_ETA, 1, 0.01)
    )
    chs = block.candidates[block.candidates.from_pv > 0]
    ratios = []
    for event in range(25):
        c = chs[chs.event == event]
        i = Inputs.of(c.event, c.pt, c.eta, c.phi, c.mass)
        pseudo = [
            fastjet.PseudoJet(*four)
            for four in zip(*(v.tolist() for v in (i.px, i.py, i.pz, i.energy)), strict=True)
        ]
        sequence = fastjet.ClusterSequenceArea(pseudo, definition, area)
        theirs = fastjet.sorted_by_pt(sequence.inclusive_jets(clustering.RADIUS))[:2]
        ours = np.flatnonzero(block.jets.event == event)[:2]
        assert block.jets.pt[ours] == pytest.approx([jet.pt() for jet in theirs], rel=1e-6)
        ratios += [
            a / jet.area()
            for a, jet in zip(block.area[ours], theirs, strict=True)
            if abs(jet.eta()) < 2.5
        ]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)
    assert np.std(ratios) < 0.1


def test_density_ignores_a_hard_jet():
    rng = np.random.default_rng(2)
    count = 20_000
    event = np.repeat([0, 1], count // 2)
    pt, eta, phi = np.full(count, 0.5), rng.uniform(-3, 3, count), rng.uniform(-np.pi, np.pi, count)
    expected = 0.5 * (count // 2) / (6 * 2 * np.pi)
    plain = clustering.density(event, pt, eta, phi, 2, 3.0)
    assert plain == pytest.approx([expected] * 2, rel=0.03)
    pt[:20], eta[:20], phi[:20] = 500.0, 0.1, 0.1  # a jet in event 0 alone
    assert clustering.density(event, pt, eta, phi, 2, 3.0) == pytest.approx(plain, rel=0.02)


def test_fastjet_s_banner_is_not_printed(capfd):
    clustering.quiet_banner.cache_clear()
    clustering.cluster(inputs([0], [10], [0.0], [0.0]), 1, 5.0)
    assert capfd.readouterr().out == ""
