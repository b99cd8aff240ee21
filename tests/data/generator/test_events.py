from __future__ import annotations

import copy

import numpy as np
import pytest

from data import ragged
from data.generator import blocks, events, pileup


def test_strange_hadrons_are_final_in_generator_jets_and_decay_in_the_detector(block):
    hard = block.hard
    before, after = (
        ragged.total(p.event, p.energy, len(hard)) for p in (hard.final, hard.detected)
    )
    strange = [np.isin(np.abs(p.id), events.LONG_LIVED).sum() for p in (hard.final, hard.detected)]
    # Equal unless |eta| < 5 cuts through a decay or a neutrino is lost; counting decays twice would
    # be 10 % too much.
    assert np.mean(np.abs(after / before - 1) < 1e-9) > 0.2
    assert abs(after.sum() / before.sum() - 1) < 0.01
    assert strange[1] < 0.3 * strange[0]
    assert np.percentile(hard.detected.radius, 99) > 100 > np.percentile(hard.final.radius, 99)


def test_final_particles_are_visible_and_in_acceptance(block):
    for particles in (block.hard.final, block.hard.detected):
        assert not np.isin(np.abs(particles.id), events.NEUTRINOS).any()
        assert np.abs(particles.eta).max() < 5
        assert (np.diff(particles.event) >= 0).all()


def test_the_scattering_has_two_outgoing_partons(block):
    """Pythia's status 23; 22 would be intermediate particles, of which QCD 2 -> 2 has none."""
    assert events.HARD_PROCESS == 23
    np.testing.assert_array_equal(ragged.counts_of(block.hard.outgoing.event, len(block.hard)), 2)
    assert (block.hard.pt_hat >= 15).all()


def test_event_weights_restore_the_falling_spectrum(block):
    # pT-hat^4.5 more events at high pT-hat, so the weight falls with the same power.
    slope = np.polyfit(np.log(block.hard.pt_hat), np.log(block.hard.weight), 1)[0]
    assert slope == pytest.approx(-4.5, abs=0.01)


@pytest.mark.parametrize(
    ("number", "quarks"),
    [(511, [5]), (-5122, [5]), (421, [4]), (4122, [4]), (211, []), (3122, []), (5503, [])],
)
def test_hadrons_with_heavy_quarks_are_recognised(number, quarks):
    assert [
        quark for quark in (4, 5) if events.is_hadron_with(np.array([number]), quark)[0]
    ] == quarks


def test_pileup_follows_its_mean(block_maker):
    rng = np.random.default_rng(3)
    overlay = pileup.overlay(block_maker._library, 400, 23.0, rng)
    assert overlay.collisions.mean() == pytest.approx(23, abs=1.5)
    assert overlay.collisions.std() > np.sqrt(23)  # the mean itself varies
    assert (overlay.vertices <= 1 + overlay.collisions).all()
    # Vertices are numbered from 1 in each event and all belong to it.
    most = np.zeros(400, dtype=int)
    np.maximum.at(most, overlay.particles.event, overlay.particles.vertex)
    assert overlay.particles.vertex.min() == 1
    assert (most <= overlay.collisions).all()


def test_events_may_have_no_pileup(block_maker):
    maker = copy.copy(block_maker)
    maker.recipe = blocks.Recipe(seed=1, pileup=0.0, events_per_block=5)
    block = maker.reconstructed(0)
    assert len(block.pileup.particles) == 0
    assert (block.candidates.vertex <= 0).all()
    assert len(block.jets) > 0


def test_blocks_have_different_seeds():
    seeds = {blocks.pythia_seed(seed, number) for seed in range(30) for number in range(300)}
    assert len(seeds) == 9000
    assert 1 <= min(seeds) <= max(seeds) <= events.MAX_SEED
