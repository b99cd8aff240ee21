"""From a block of collisions to jets.

Detector, charged hadron subtraction, clustering, areas, flavour, generator jets.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from data import ragged
from data.generator import clustering, detector, pileup
from data.generator.clustering import Inputs, Jets
from data.generator.detector import Candidates, Detector
from data.generator.events import HardEvents, Particles, is_hadron_with, merge
from data.generator.pileup import Overlay

# GeV: jets that are kept; well below the 30 GeV of the selection and the 20 GeV of the configs
MIN_RAW_PT, MIN_GEN_PT = 5.0, 8.0
GEN_MATCH = 0.2  # dR between a jet and its generator jet: half the jet radius
CANDIDATE, PARTON, HEAVY, AREA = range(4)  # what is clustered; all but the candidates as ghosts

Pairs = tuple[np.ndarray, np.ndarray]
"""(jet, index), (M,) each: the particle `index` was clustered into `jet`."""


class Directions(Protocol):
    """Jets or particles of several events: event, eta and phi (radians), (N,) each."""

    @property
    def event(self) -> np.ndarray:
        """Return the number of the event of each entry; (N,)."""

    @property
    def eta(self) -> np.ndarray:
        """Return the pseudorapidity of each entry; (N,)."""

    @property
    def phi(self) -> np.ndarray:
        """Return the azimuth of each entry (rad); (N,)."""


@dataclasses.dataclass(frozen=True)
class Densities:
    """Transverse momentum densities of each event, (events,) GeV per unit area.

    Named as the branches.
    """

    all: np.ndarray
    central: np.ndarray
    central_neutral: np.ndarray
    central_charged_pileup: np.ndarray


@dataclasses.dataclass(frozen=True)
class ReconstructedBlock:
    """A block of events after reconstruction. Momenta in GeV; the pT of jets is raw."""

    hard: HardEvents
    pileup: Overlay
    candidates: Candidates
    densities: Densities
    jets: Jets
    """`jets.member` indexes `candidates`."""
    area: np.ndarray
    """(J,)"""
    parton: Pairs
    """The particles of hard.partons that were clustered."""
    heavy: Pairs
    """The particles of hard.heavy that were clustered."""
    gen_jets: Jets
    """`gen_jets.member` indexes hard.final."""
    gen_match: np.ndarray
    """(J,) index of the generator jet, -1 for none."""


def reconstruct(
    hard: HardEvents, overlay: Overlay, setup: Detector, rng: np.random.Generator
) -> ReconstructedBlock:
    """Simulate and reconstruct a block of events."""
    events = len(hard)
    visible = hard.detected[pileup.visible(hard.detected)]
    candidates = detector.simulate(merge([visible, overlay.particles]), setup, rng)
    everything, area, parton, heavy = cluster_candidates(candidates, hard, rng)
    final = hard.final
    gen_inputs = Inputs.of(final.event, final.pt, final.eta, final.phi, final.mass)
    gen_jets = clustering.cluster(gen_inputs, events, MIN_GEN_PT)
    return ReconstructedBlock(
        hard=hard,
        pileup=overlay,
        candidates=candidates,
        densities=densities(candidates, events),
        jets=everything,
        area=area,
        parton=parton,
        heavy=heavy,
        gen_jets=gen_jets,
        gen_match=nearest(everything, gen_jets, events=events, radius=GEN_MATCH),
    )


def charged_hadron_subtraction(candidates: Candidates) -> np.ndarray:
    """Return the indices of the candidates that jets use: all but the tracks of other vertices."""
    return np.flatnonzero(candidates.from_pv > detector.NOT_FROM_VERTEX)


def cluster_candidates(
    candidates: Candidates, hard: HardEvents, rng: np.random.Generator
) -> tuple[Jets, np.ndarray, Pairs, Pairs]:
    """Cluster jets after charged hadron subtraction, with their areas and ghosts.

    Ghosts measure the areas and give the flavour: partons and heavy hadrons join as ghosts too
    (M. Cacciari, G. P. Salam, PLB 659 (2008) 119), as CMS does for its flavours. Returns jets,
    areas (J,), and the pairs of partons and of heavy hadrons.
    """
    events = len(hard)
    indices = charged_hadron_subtraction(candidates)
    inputs_of_jets = candidates[indices]
    partons = np.flatnonzero(np.abs(hard.partons.eta) < clustering.GHOST_ETA)
    heavy = np.flatnonzero(np.abs(hard.heavy.eta) < clustering.GHOST_ETA)
    grid = clustering.ghosts(events, rng)
    sources = {
        CANDIDATE: (
            indices,
            Inputs.of(
                inputs_of_jets.event,
                inputs_of_jets.pt,
                inputs_of_jets.eta,
                inputs_of_jets.phi,
                inputs_of_jets.mass,
            ),
        ),
        PARTON: (partons, _as_ghosts(hard.partons[partons])),
        HEAVY: (heavy, _as_ghosts(hard.heavy[heavy])),
        AREA: (np.arange(len(grid.event)), grid),
    }

    # One clustering of all inputs; `kind` and `index` identify each input.
    index = np.concatenate([index for index, _ in sources.values()])
    kind = np.repeat(list(sources), [len(index) for index, _ in sources.values()])
    together = Inputs.join([inputs for _, inputs in sources.values()])
    # NumPy sorts 32-bit integers stably by radix in 16-bit halves, faster than 64-bit ones.
    order = np.argsort(together.event.astype(np.int32), kind="stable")
    jets = clustering.cluster(together[order], events, MIN_RAW_PT)

    # Members of jets, (M,): from places among the inputs back to candidates, partons and hadrons.
    kind = kind[order][jets.member]
    index = index[order][jets.member]

    def pairs(number: int) -> Pairs:
        return jets.member_jet[kind == number], index[kind == number]

    area = clustering.ghost_cell() * ragged.counts_of(jets.member_jet[kind == AREA], len(jets))
    member_jet, member = pairs(CANDIDATE)
    without_ghosts = dataclasses.replace(jets, member_jet=member_jet, member=member)
    return without_ghosts, area, pairs(PARTON), pairs(HEAVY)


def densities(candidates: Candidates, events: int) -> Densities:
    """Return the four median densities of each event.

    CMS takes |eta| < 5 and 2.5; the detector here ends at 3.5.
    """

    def density(which: np.ndarray, max_eta: float) -> np.ndarray:
        c = candidates[which]
        return clustering.density(c.event, c.pt, c.eta, c.phi, events, max_eta)

    neutral = candidates.is_neutral
    from_pileup = candidates.from_pv == detector.NOT_FROM_VERTEX
    return Densities(
        all=density(np.ones(len(candidates), dtype=bool), 3.0),
        central=density(np.ones(len(candidates), dtype=bool), 2.5),
        central_neutral=density(neutral, 2.5),
        central_charged_pileup=density(from_pileup, 2.5),
    )


def nearest(jets: Directions, others: Directions, *, events: int, radius: float) -> np.ndarray:
    """Find the nearest of the others in the same event within dR < radius: (J,) index, -1 for none.

    others.event must be sorted.
    """
    jet, other = ragged.pairs(jets.event, others.event, events)
    d_eta = jets.eta[jet] - others.eta[other]
    d_phi = ragged.delta_phi(jets.phi[jet], others.phi[other])
    distance = np.hypot(d_eta, d_phi)
    near = distance < radius
    best = ragged.first_in_group(jet[near], distance[near], len(jets.event))
    return ragged.take(other[near], best, -1)


# ---------------------------------------------------------------------------------------- flavour


def parton_flavour(hard: HardEvents, parton: Pairs, hadron_flavour: np.ndarray) -> np.ndarray:
    """Return the signed PDG number of the parton that gives each jet its flavour: (J,), 0 for none.

    The hardest parton among those allowed: in a jet with a heavy hadron its quark, if it is there;
    in others a light one.
    """
    jet, index = parton
    number = hard.partons.id[index]
    kind = np.abs(number)
    heavy_jet = hadron_flavour[jet]
    is_candidate = np.where(heavy_jet > 0, kind == heavy_jet, (kind != 4) & (kind != 5))
    rank = -hard.partons.pt[index[is_candidate]]
    best = ragged.first_in_group(jet[is_candidate], rank, len(hadron_flavour))
    return ragged.take(number[is_candidate], best, hadron_flavour)


def hadron_flavour(hard: HardEvents, heavy: Pairs, jets: int) -> np.ndarray:
    """Return 5 for a jet with a b hadron, 4 for one with a c and no b hadron, else 0: (J,)."""
    jet, index = heavy
    bottom = is_hadron_with(hard.heavy.id[index], 5)
    flavour = np.zeros(jets, dtype=np.int64)
    flavour[jet[~bottom]] = 4
    flavour[jet[bottom]] = 5
    return flavour


def physics_flavour(hard: HardEvents, jets: Jets) -> np.ndarray:
    """Return the signed PDG number of the nearest 2 -> 2 parton within the jet radius.

    (J,), 0 for none.
    """
    parton = nearest(jets, hard.outgoing, events=len(hard), radius=clustering.RADIUS)
    return ragged.take(hard.outgoing.id, parton, 0)


def _as_ghosts(particles: Particles) -> Inputs:
    """Return the particles' directions with so little pT that they move no jet."""
    pt = np.full(len(particles), clustering.GHOST_PT)
    return Inputs.of(particles.event, pt, particles.eta, particles.phi)
