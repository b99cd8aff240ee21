"""The detector's response to single particles."""

from __future__ import annotations

import numpy as np
import pytest

from data.generator import detector
from data.generator.detector import Detector
from data.generator.events import Particles

COUNT = 4000


def particles(
    number: int, pt: float, eta: float = 0.5, radius: float = 0.0, vertex: int = 0
) -> Particles:
    """COUNT events with one particle each."""
    ones = np.ones(COUNT)
    phi = np.random.default_rng(0).uniform(-np.pi, np.pi, COUNT)
    return Particles(
        event=np.arange(COUNT),
        id=np.full(COUNT, number),
        pt=pt * ones,
        eta=eta * ones,
        phi=phi,
        energy=pt * np.cosh(eta) * ones,
        mass=0 * ones,
        radius=radius * ones,
        vertex=np.full(COUNT, vertex),
    )


def simulated(number: int, pt: float, **more) -> detector.Candidates:
    return detector.simulate(particles(number, pt, **more), Detector(), np.random.default_rng(1))


def test_photons_have_a_small_resolution():
    photons = simulated(22, 20.0)
    assert len(photons) == COUNT
    assert set(photons.id.tolist()) == {detector.PHOTON}
    assert photons.pt.mean() / 20 == pytest.approx(0.985, abs=0.003)
    assert photons.pt.std() / 20 < 0.02


def test_the_share_of_tracks_equals_the_efficiency():
    pions = simulated(211, 5.0)
    tracks = pions[~pions.is_neutral]
    assert len(tracks) / COUNT == pytest.approx(Detector().track_efficiency, abs=0.02)
    assert np.median(tracks.pt) == pytest.approx(5.0, rel=0.01)
    assert set(tracks.id.tolist()) == {211}


def test_an_untracked_pion_is_a_neutral_hadron():
    pions = simulated(-211, 30.0, radius=1000.0)  # made outside of the tracker
    assert pions.is_neutral.all()
    assert set(pions.id.tolist()) == {detector.NEUTRAL_HADRON}
    assert len(pions) > 0.9 * COUNT


@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_the_response_of_neutral_hadrons_rises_with_pt(eta):
    response = [
        simulated(130, pt, eta=eta).pt.sum() / (COUNT * pt) for pt in (2.0, 10.0, 50.0, 300.0)
    ]
    assert (np.diff(response) > 0).all()
    assert 0.75 < response[-1] < 1.05


def test_soft_particles_give_no_neutral_candidates():
    assert len(simulated(130, 0.5)) < 0.1 * COUNT
    soft = simulated(211, 0.5)
    assert not soft.is_neutral.any()


@pytest.mark.parametrize(
    ("number", "expected"), [(11, 11), (-11, -11), (13, 13), (-13, -13), (2212, 211), (-321, -211)]
)
def test_tracks_have_the_pdg_number_of_their_type(number, expected):
    tracks = simulated(number, 10.0)
    assert expected in tracks[~tracks.is_neutral].id.tolist()


@pytest.mark.parametrize("number", [22, 130, 211])
def test_beyond_the_tracker_there_are_only_forward_clusters(number):
    expected = detector.FORWARD_PHOTON if number == 22 else detector.FORWARD_HADRON
    assert set(simulated(number, 20.0, eta=3.2).id.tolist()) == {expected}


def test_tracks_are_assigned_to_a_vertex_with_some_errors():
    hard, other = simulated(211, 5.0), simulated(211, 5.0, vertex=3)
    from_pv = [c.from_pv[~c.is_neutral] for c in (hard, other)]
    assert np.mean(from_pv[0] == detector.USED_IN_VERTEX) == pytest.approx(0.92, abs=0.02)
    assert np.mean(from_pv[1] == detector.NOT_FROM_VERTEX) == pytest.approx(0.85, abs=0.02)
    assert (from_pv[1] <= detector.LOOSE).all()


def test_nearby_photons_merge():
    single = particles(22, 10.0)
    both = Particles(
        *(np.repeat(getattr(single, name), 2) for name in ("event", "id", "pt", "eta")),
        phi=np.tile([0.010, 0.012], COUNT),
        energy=np.repeat(single.energy, 2),
        mass=np.zeros(2 * COUNT),
        radius=np.zeros(2 * COUNT),
        vertex=np.zeros(2 * COUNT, dtype=int),
    )
    photons = detector.simulate(both, Detector(), np.random.default_rng(1))
    assert len(photons) == COUNT
    assert np.median(photons.pt) == pytest.approx(20 * 0.985, rel=0.01)
    assert np.median(photons.phi) == pytest.approx(0.011, abs=1e-6)


def test_candidates_are_ordered_by_event_with_tracks_first(block):
    candidates = block.candidates
    assert (np.diff(candidates.event) >= 0).all()
    same = np.diff(candidates.event) == 0
    assert (np.diff(candidates.is_neutral.astype(int))[same] >= 0).all()
