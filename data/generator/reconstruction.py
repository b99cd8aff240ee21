"""From a block of collisions to jets: detector, charged hadron subtraction, clustering, areas,
flavour, generator jets.
"""

from __future__ import annotations

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Densities:
    """Transverse momentum densities of each event, (events,) GeV per unit area, named as the
    branches.
    """

    all: np.ndarray
    central: np.ndarray
    central_neutral: np.ndarray
    central_charged_pileup: np.ndarray


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """What is known of a block after reconstruction. `jets.member` indexes `candidates`; pT is raw.

    `area` (J,); `parton` and `heavy` are (jet, index) pairs of the particles in hard.partons and
    hard.heavy that were clustered. `gen_jets.member` indexes hard.final; `gen_match` (J,) is the
    index of the generator jet, -1 for none.
    """

    hard: HardEvents
    pileup: Overlay
    candidates: Candidates
    densities: Densities
    jets: Jets
    area: np.ndarray
    parton: tuple[np.ndarray, np.ndarray]
    heavy: tuple[np.ndarray, np.ndarray]
    gen_jets: Jets
    gen_match: np.ndarray


def reconstruct(
    hard: HardEvents, overlay: Overlay, setup: Detector, rng: np.random.Generator
) -> Reconstructed:
    """Simulate and reconstruct a block of events."""
    events = len(hard)
    seen = hard.detected[pileup.visible(hard.detected)]
    candidates = detector.simulate(merge([seen, overlay.particles]), setup, rng)
    everything, area, parton, heavy = cluster_candidates(candidates, hard, rng)
    gen_jets = clustering.cluster(_inputs(hard.final), events, MIN_GEN_PT)
    return Reconstructed(
        hard=hard,
        pileup=overlay,
        candidates=candidates,
        densities=densities(candidates, events),
        jets=everything,
        area=area,
        parton=parton,
        heavy=heavy,
        gen_jets=gen_jets,
        gen_match=match(everything, gen_jets, events),
    )


def charged_hadron_subtraction(candidates: Candidates) -> np.ndarray:
    """Index of the candidates that jets are made of: all but the tracks of other vertices."""
    return np.flatnonzero(candidates.from_pv > detector.NOT_FROM_VERTEX)


def cluster_candidates(candidates: Candidates, hard: HardEvents, rng: np.random.Generator):
    """Jets of the candidates after charged hadron subtraction, with ghosts that measure their areas
    and find their flavour.

    Partons and heavy hadrons join as ghosts too (M. Cacciari, G. P. Salam, PLB 659 (2008) 119), as
    CMS does for its flavours. Returns jets, areas, and the (jet, index) pairs of partons and heavy
    hadrons.
    """
    events = len(hard)
    kept = charged_hadron_subtraction(candidates)
    partons, heavy = (
        np.flatnonzero(np.abs(p.eta) < clustering.GHOST_ETA) for p in (hard.partons, hard.heavy)
    )
    grid = clustering.ghosts(events, rng)
    sources = [
        (CANDIDATE, kept, _candidate_inputs(candidates[kept])),
        (PARTON, partons, _as_ghosts(hard.partons[partons])),
        (HEAVY, heavy, _as_ghosts(hard.heavy[heavy])),
        (AREA, np.arange(len(grid.event)), grid),
    ]
    kind = np.concatenate([np.full(len(index), number) for number, index, _ in sources])
    index = np.concatenate([index for _, index, _ in sources])
    inputs, order = _sorted_by_event([inputs for _, _, inputs in sources])
    jets = clustering.cluster(inputs, events, MIN_RAW_PT)

    kind, index = kind[order][jets.member], index[order][jets.member]
    area = clustering.ghost_cell() * ragged.counts_of(jets.member_jet[kind == AREA], len(jets))
    of_kind = {
        number: (jets.member_jet[kind == number], index[kind == number])
        for number in (CANDIDATE, PARTON, HEAVY)
    }
    member_jet, member = of_kind[CANDIDATE]
    return (
        dataclasses.replace(jets, member_jet=member_jet, member=member),
        area,
        of_kind[PARTON],
        of_kind[HEAVY],
    )


def densities(candidates: Candidates, events: int) -> Densities:
    """The four median densities of each event (CMS: |eta| < 5 and 2.5; the detector here ends at
    3.5).
    """

    def density(which: np.ndarray, max_eta: float) -> np.ndarray:
        c = candidates[which]
        return clustering.density(c.event, c.pt, c.eta, c.phi, events, max_eta)

    neutral, from_pileup = candidates.is_neutral, candidates.from_pv == detector.NOT_FROM_VERTEX
    return Densities(
        all=density(np.ones(len(candidates), dtype=bool), 3.0),
        central=density(np.ones(len(candidates), dtype=bool), 2.5),
        central_neutral=density(neutral, 2.5),
        central_charged_pileup=density(from_pileup, 2.5),
    )


def match(jets: Jets, gen_jets: Jets, events: int) -> np.ndarray:
    """The nearest generator jet of each jet within GEN_MATCH: (J,) index, -1 for none."""
    jet, gen = ragged.pairs(jets.event, gen_jets.event, events)
    distance = np.hypot(
        jets.eta[jet] - gen_jets.eta[gen], ragged.delta_phi(jets.phi[jet], gen_jets.phi[gen])
    )
    near = distance < GEN_MATCH
    best = ragged.first_in_group(jet[near], distance[near], len(jets))
    return np.where(best >= 0, gen[near][best] if near.any() else -1, -1)


# ---------------------------------------------------------------------------------------- flavour


def parton_flavour(
    hard: HardEvents, parton: tuple[np.ndarray, np.ndarray], hadron_flavour: np.ndarray
) -> np.ndarray:
    """Signed PDG number of the parton that names each jet (J,), 0 for none.

    The hardest parton among those allowed: in a jet with a heavy hadron its quark, if it is there;
    in others a light one.
    """
    jet, index = parton
    number = hard.partons.id[index]
    kind, heavy_jet = np.abs(number), hadron_flavour[jet]
    allowed = np.where(heavy_jet > 0, kind == heavy_jet, (kind != 4) & (kind != 5))
    best = ragged.first_in_group(
        jet[allowed], -hard.partons.pt[index[allowed]], len(hadron_flavour)
    )
    found = number[allowed][best] if allowed.any() else np.zeros(len(best), dtype=np.int64)
    return np.where(best >= 0, found, hadron_flavour)


def hadron_flavour(hard: HardEvents, heavy: tuple[np.ndarray, np.ndarray], jets: int) -> np.ndarray:
    """5 for a jet with a b hadron, 4 for one with a c hadron and no b hadron, else 0: (J,)."""
    jet, index = heavy
    bottom = is_hadron_with(hard.heavy.id[index], 5)
    flavour = np.zeros(jets, dtype=np.int64)
    flavour[jet[~bottom]] = 4
    flavour[jet[bottom]] = 5
    return flavour


def physics_flavour(hard: HardEvents, jets: Jets) -> np.ndarray:
    """Signed PDG number of the nearest parton of the 2 -> 2 scattering within the jet radius:

    (J,), 0 for none.
    """
    jet, parton = ragged.pairs(jets.event, hard.outgoing.event, len(hard))
    distance = np.hypot(
        jets.eta[jet] - hard.outgoing.eta[parton],
        ragged.delta_phi(jets.phi[jet], hard.outgoing.phi[parton]),
    )
    near = distance < clustering.RADIUS
    best = ragged.first_in_group(jet[near], distance[near], len(jets))
    found = (
        hard.outgoing.id[parton[near]][best] if near.any() else np.zeros(len(best), dtype=np.int64)
    )
    return np.where(best >= 0, found, 0)


# ----------------------------------------------------------------------------------------- inputs


def _inputs(particles: Particles) -> Inputs:
    return Inputs.of(particles.event, particles.pt, particles.eta, particles.phi, particles.mass)


def _candidate_inputs(candidates: Candidates) -> Inputs:
    return Inputs.of(
        candidates.event, candidates.pt, candidates.eta, candidates.phi, candidates.mass
    )


def _as_ghosts(particles: Particles) -> Inputs:
    return Inputs.of(
        particles.event, np.full(len(particles), clustering.GHOST_PT), particles.eta, particles.phi
    )


def _sorted_by_event(parts: list[Inputs]) -> tuple[Inputs, np.ndarray]:
    """All inputs sorted by event, and the order that sorted them."""
    together = Inputs(
        *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Inputs))
    )
    order = np.argsort(together.event.astype(np.int32), kind="stable")
    return Inputs(*(getattr(together, f.name)[order] for f in dataclasses.fields(Inputs))), order
