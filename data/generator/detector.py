"""A CMS-like detector in a few formulas: particles in, particle-flow candidates out.

Many events are simulated at once. The effects that change the energy of a jet are: tracks are lost
(more often when soft, and in the cores of hard jets), photons are merged in the electromagnetic
calorimeter (ECAL), hadrons deposit a fluctuating, non-linear energy in the hadronic one (HCAL), and
particle flow subtracts the energy of the tracks and takes the rest for a neutral hadron. Pile-up
passes through the same detector.

Sources: CMS, "Particle-flow reconstruction and global event description", JINST 12 (2017) P10003,
arXiv:1706.04965 (PF); CMS, "Description and performance of track and primary-vertex
reconstruction", JINST 9 (2014) P10009, arXiv:1405.6569 (TRK); CMS, "Pileup mitigation at CMS in 13
TeV data", JINST 15 (2020) P09018, arXiv:2003.00503 (PU); CMS, "The CMS experiment at the CERN LHC",
JINST 3 (2008) S08004 (geometry); D. E. Groom, "Energy flow in a hadronic cascade", NIM A 572 (2007)
633, arXiv:physics/0605164 (response to hadrons). Where a number was adjusted so that the jets come
out as in the open data sample, its line says "tuned". Energies and momenta in GeV.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data.generator.events import Particles
from data.generator.table import Table
from data.ragged import delta_phi, first_in_group

CHARGED_HADRON, ELECTRON, MUON, PHOTON, NEUTRAL_HADRON = 211, 11, 13, 22, 130
FORWARD_HADRON, FORWARD_PHOTON = 1, 2
PION_MASS, ELECTRON_MASS, MUON_MASS = 0.13957, 0.000511, 0.10566  # GeV

USED_IN_VERTEX, TIGHT, LOOSE, NOT_FROM_VERTEX = 3, 2, 1, 0
"""Values of PF_fromPV.

The track took part in the vertex fit; is close to it; has no other vertex (all neutrals); has
another one.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Detector:
    """The detector's parameters. Angles in radians, energies in GeV."""

    tracker_eta: float = 2.5
    forward_eta: float = 3.0
    """Beyond: the forward calorimeter, without tracker and with coarse towers."""

    soft_track_pt: float = 0.9
    soft_track_efficiency: float = 0.55
    """Pions below soft_track_pt (TRK fig. 8: falling from 0.85 to 0.4 towards 0.3 GeV)."""
    track_efficiency: float = 0.975
    """Pions above (TRK fig. 8 has 0.95 for isolated ones).

    Tuned to the share of charged hadrons.
    """
    endcap_track_loss: float = 0.05
    """Loss of efficiency beyond |eta| = 1.5 (TRK fig. 8)."""
    dense_track_loss: float = 0.001
    """Efficiency lost per further track (pT > 1 GeV) in the same 0.03 × 0.03 cell: hits of a hard
    jet's core merge. Tuned to the resolution above 500 GeV."""
    muon_efficiency: float = 0.98
    outermost_seed: float = 600.0
    """mm: the efficiency falls linearly with the distance from the beam where a track starts (TRK
    fig. 12), and is zero from here on.
    """

    bend: float = 0.735
    """GeV rad: a track of this pT turns by one radian before the ECAL, 0.3 × 3.8 T × 1.29 m / 2."""
    calorimeter_pt: float = 0.7
    """GeV: charged particles below this pT curl in the field and do not reach the calorimeters."""

    ecal_cell: float = 0.03
    """Photons closer than this (about two crystals of 0.0174) are one cluster."""
    ecal_threshold: float = 0.4
    """GeV of energy and of transverse energy of a cluster; seeds are at 0.23 (PF table 1).

    Tuned to the number of candidates.
    """

    tower: float = 0.087
    """Width of an HCAL tower."""
    hcal_threshold: float = 1.0
    """GeV; seeds are at 0.8, and a shower has a part of its energy in cells below (PF table 1)."""
    hadron_loss: float = 0.97
    hadron_power: float = 0.30
    """A hadron of energy E is measured with (1 - hadron_loss × E^-hadron_power) E on average:
    non-compensation, in the form of Groom, with losses by thresholds and leakage. Soft hadrons lose
    most, so gluon jets respond less than quark jets. Tuned."""
    tail_share: float = 0.01
    """Share of hadrons with a low response (interactions before and between the calorimeters,
    leakage behind). Tuned.
    """
    stochastic_barrel: float = 1.8
    stochastic_endcap: float = 2.8
    """sqrt(GeV)"""
    noise: float = 5.0
    """GeV: noise of a shower from thresholds, energy shared with the ECAL and pile-up of other
    bunch crossings.
    """
    constant_barrel: float = 0.02
    constant_endcap: float = 0.09
    """Relative resolution of a hadron of energy E: stochastic / sqrt(E), noise / E and constant,
    added in quadrature. PF section 4.4 has 1.1 and 0.09 in the barrel for hadrons whose energy in
    both calorimeters is calibrated; tuned to the resolution of jets."""
    excess_significance: float = 0.5
    """Energy this many sigma above that expected from the tracks becomes a neutral hadron: one in
    PF section 4.4, with a sigma of half the size of the one here."""


@dataclasses.dataclass(frozen=True)
class Candidates(Table):
    """Particle-flow candidates of several events, (N,) each, sorted by event.

    Within an event they are in the order of MiniAOD. pt and mass in GeV, phi in radians.
    """

    event: np.ndarray
    id: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    mass: np.ndarray
    from_pv: np.ndarray
    vertex: np.ndarray
    """The true collision of a track (0 = hard); -1 for neutrals, to which several may
    contribute.
    """

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.event)

    @property
    def is_neutral(self) -> np.ndarray:
        """Whether each candidate is neutral, that is, without a vertex; (N,)."""
        return self.vertex < 0


def simulate(particles: Particles, detector: Detector, rng: np.random.Generator) -> Candidates:
    """Return the candidates that particles (hard collision and pile-up) leave in the detector."""
    kind = _Kind(particles, detector)
    has_track, track_pt = track(particles, kind, detector, rng)
    parts = [
        track_candidates(particles, kind, has_track, track_pt, rng),
        photon_candidates(particles, kind, has_track, detector, rng),
        hadron_candidates(particles, kind, has_track, track_pt, detector, rng),
    ]
    together = Candidates.join(parts)
    return together[miniaod_order(together)]


class _Kind:
    """Types of particles that the detector distinguishes: (N,) masks."""

    def __init__(self, particles: Particles, detector: Detector) -> None:
        number = np.abs(particles.id)
        self.charged = particles.is_charged
        self.muon = number == 13
        self.electron = number == 11
        self.electromagnetic = (number == 22) | self.electron
        self.hadron = ~self.electromagnetic & ~self.muon
        self.endcap = np.abs(particles.eta) > 1.5
        self.reaches_calorimeter = ~self.charged | (particles.pt > detector.calorimeter_pt)


# ----------------------------------------------------------------------------------------- tracks


def track(
    particles: Particles, kind: _Kind, detector: Detector, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return which particles have a track (N,) bool, and the pT it measures (N,) GeV."""
    in_tracker = kind.charged & (np.abs(particles.eta) < detector.tracker_eta)
    efficiency = track_efficiency(particles, kind, in_tracker, detector)
    has_track = in_tracker & (rng.random(len(particles)) < efficiency)
    resolution = track_resolution(particles.pt, kind.endcap)
    smear = 1 + resolution * rng.standard_normal(len(particles))
    # The clip keeps the largest fluctuations positive and of a plausible size.
    return has_track, particles.pt * np.clip(smear, 0.2, 2.0)


def track_efficiency(
    particles: Particles, kind: _Kind, in_tracker: np.ndarray, detector: Detector
) -> np.ndarray:
    """Return the probability (N,) that a charged particle leaves a track (TRK figs. 8 and 12)."""
    hard = in_tracker & (particles.pt > 1.0)
    cell, cells = cell_index(particles.event, particles.eta, particles.phi, 0.03)
    neighbours = np.bincount(cell[hard], minlength=cells)[cell] - 1
    efficiency = np.where(
        particles.pt < detector.soft_track_pt,
        detector.soft_track_efficiency,
        detector.track_efficiency,
    )
    efficiency = efficiency - detector.endcap_track_loss * kind.endcap
    efficiency = efficiency - detector.dense_track_loss * np.clip(neighbours, 0, 14)
    displacement_efficiency = np.clip(1 - particles.radius / detector.outermost_seed, 0.0, 1.0)
    return np.where(kind.muon, detector.muon_efficiency, efficiency) * displacement_efficiency


def track_resolution(pt: np.ndarray, endcap: np.ndarray) -> np.ndarray:
    """Return relative resolution (N,) of a track's pT (GeV).

    Multiple scattering plus a term that grows with pT (TRK fig. 15).
    """
    return np.hypot(np.where(endcap, 0.018, 0.009), np.where(endcap, 4e-4, 1.5e-4) * pt)


def track_candidates(
    particles: Particles,
    kind: _Kind,
    has_track: np.ndarray,
    track_pt: np.ndarray,
    rng: np.random.Generator,
) -> Candidates:
    """Return charged hadrons, electrons and muons.

    Args:
        particles: P particles.
        kind: their types.
        has_track: (P,) bool.
        track_pt: (P,), measured pT in GeV.
        rng: random numbers of the measurement.
    """
    which = np.flatnonzero(has_track)
    electron = kind.electron[which]
    muon = kind.muon[which]
    number = np.where(electron, ELECTRON, np.where(muon, MUON, CHARGED_HADRON))
    smear = 0.0005 * rng.standard_normal((2, len(which)))
    return Candidates(
        event=particles.event[which],
        # The PDG numbers of negative leptons are positive: an electron is +11 and a pi- is -211.
        id=number * np.sign(particles.id[which]),
        pt=track_pt[which],
        eta=particles.eta[which] + smear[0],
        phi=delta_phi(particles.phi[which] + smear[1]),
        mass=np.where(electron, ELECTRON_MASS, np.where(muon, MUON_MASS, PION_MASS)),
        from_pv=vertex_association(particles.vertex[which], track_pt[which], rng),
        vertex=particles.vertex[which],
    )


def vertex_association(vertex: np.ndarray, pt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return PF_fromPV of tracks (N,) of a true vertex (0 = hard collision) and pT (GeV).

    Soft tracks point back badly, so that some tracks of the hard collision are assigned to other
    vertices. Pile-up tracks that no vertex uses stay in the jets (PU section 3). The shares are
    round numbers, larger below 1 GeV.
    """
    draw = rng.random(len(vertex))
    soft = pt < 1.0
    lost_share = np.where(soft, 0.05, 0.01)
    fit_share = np.where(soft, 0.75, 0.92)
    associated = np.where(draw < lost_share + fit_share, USED_IN_VERTEX, TIGHT)
    from_hard = np.where(draw < lost_share, NOT_FROM_VERTEX, associated)
    loose_share = np.where(soft, 0.25, 0.15)
    from_pileup = np.where(draw < loose_share, LOOSE, NOT_FROM_VERTEX)
    return np.where(vertex == 0, from_hard, from_pileup)


# ----------------------------------------------------------------------------------- calorimeters


def photon_candidates(
    particles: Particles,
    kind: _Kind,
    has_track: np.ndarray,
    detector: Detector,
    rng: np.random.Generator,
) -> Candidates:
    """ECAL clusters: photons, and electrons without a track.

    Clusters in the same cell are merged.

    Args:
        particles: P particles.
        kind: their types.
        has_track: (P,) bool.
        detector: resolutions and thresholds.
        rng: random numbers of the measurement.
    """
    showers = particles[np.flatnonzero(kind.electromagnetic & ~has_track)]
    cell, cells = cell_index(showers.event, showers.eta, showers.phi, detector.ecal_cell)
    event, eta, phi, energy = _centres(
        showers.event, showers.eta, showers.phi, showers.energy, cell, cells
    )
    smear = 1 + ecal_resolution(np.maximum(energy, 0.1), eta) * rng.standard_normal(cells)
    energy = energy * np.maximum(smear, 0.0) * ecal_response(eta)
    above_threshold = (energy > detector.ecal_threshold) & (
        energy / np.cosh(eta) > detector.ecal_threshold
    )
    number = np.where(np.abs(eta) > detector.forward_eta, FORWARD_PHOTON, PHOTON)
    return _neutral(event, number, energy, eta, phi, above_threshold)


def ecal_resolution(energy: np.ndarray, eta: np.ndarray) -> np.ndarray:
    """Return relative resolution (N,) of an ECAL cluster of this energy (GeV).

    2.8 %/sqrt(E) + 0.15/E + 0.5 % added in quadrature in the barrel (S08004), worse in the endcap.
    """
    barrel = np.abs(eta) < 1.48
    stochastic = np.where(barrel, 0.028, 0.06)
    constant = np.where(barrel, 0.005, 0.015)
    return np.sqrt(stochastic**2 / energy + (0.15 / energy) ** 2 + constant**2)


def ecal_response(eta: np.ndarray) -> np.ndarray:
    """Return mean response (N,) of the ECAL at eta.

    Some energy is lost in the gap between barrel and endcap, and a little everywhere.
    """
    return np.where(np.abs(np.abs(eta) - 1.48) < 0.05, 0.85, 0.985)


def hadron_candidates(
    particles: Particles,
    kind: _Kind,
    has_track: np.ndarray,
    track_pt: np.ndarray,
    detector: Detector,
    rng: np.random.Generator,
) -> Candidates:
    """HCAL energy above that expected from the tracks in the same tower, as neutral hadrons.

    Args:
        particles: P particles.
        kind: their types.
        has_track: (P,) bool.
        track_pt: (P,), measured pT in GeV.
        detector: resolutions and thresholds.
        rng: random numbers of the measurement.
    """
    which = np.flatnonzero(kind.hadron & kind.reaches_calorimeter)
    event = particles.event[which]
    eta = particles.eta[which]
    energy = particles.energy[which]
    # Charged hadrons reach the calorimeter after a turn in the field.
    sign = np.sign(particles.id[which])
    turn = sign * detector.bend / np.maximum(particles.pt[which], 0.5)
    phi = delta_phi(particles.phi[which] - np.where(kind.charged[which], turn, 0.0))
    response = hadron_response(energy, detector)
    deposit = energy * response * hadron_fluctuation(energy, eta, detector, rng)

    # The energy expected from the tracks of a tower: the mean response to their momenta.
    cell, cells = cell_index(event, eta, phi, detector.tower)
    momentum = np.where(has_track[which], track_pt[which] * np.cosh(eta), 0.0)
    track_energy = np.bincount(cell, weights=momentum * response, minlength=cells)

    # From here on one entry a tower, (cells,), no longer one a hadron.
    event, eta, phi, total = _centres(event, eta, phi, deposit, cell, cells)
    excess = total - track_energy
    uncertainty = hadron_resolution(np.maximum(track_energy, 1.0), eta, detector) * track_energy
    is_cluster = np.where(
        track_energy > 0,
        excess > detector.excess_significance * uncertainty + 0.5,
        excess > detector.hcal_threshold,
    )
    above_threshold = is_cluster & (excess > detector.hcal_threshold * np.cosh(eta))
    number = np.where(np.abs(eta) > detector.forward_eta, FORWARD_HADRON, NEUTRAL_HADRON)
    return _neutral(event, number, excess, eta, phi, above_threshold)


def hadron_response(energy: np.ndarray, detector: Detector) -> np.ndarray:
    """Return the mean measured share (N,) of a hadron's energy (GeV): 1 - loss × E^-power (Groom).

    At least 0.2; constant below 0.5 GeV.
    """
    loss = detector.hadron_loss * np.maximum(energy, 0.5) ** -detector.hadron_power
    return np.maximum(1 - loss, 0.2)


def hadron_fluctuation(
    energy: np.ndarray, eta: np.ndarray, detector: Detector, rng: np.random.Generator
) -> np.ndarray:
    """Return factor (N,) around 1 on a hadron's deposit.

    A normal core and, for a share of the hadrons, a loss of 30 to 90 %.
    """
    resolution = hadron_resolution(energy, eta, detector)
    core = np.clip(1 + resolution * rng.standard_normal(len(energy)), 0.0, 3.0)
    in_tail = rng.random(len(energy)) < detector.tail_share
    tail = np.where(in_tail, rng.uniform(0.1, 0.7, len(energy)), 1.0)
    return core * tail


def hadron_resolution(energy: np.ndarray, eta: np.ndarray, detector: Detector) -> np.ndarray:
    """Return relative resolution (N,) for a single hadron of this energy (GeV)."""
    barrel = np.abs(eta) < 1.4
    stochastic = np.where(barrel, detector.stochastic_barrel, detector.stochastic_endcap)
    constant = np.where(barrel, detector.constant_barrel, detector.constant_endcap)
    energy = np.maximum(energy, 0.5)
    return np.sqrt(stochastic**2 / energy + (detector.noise / energy) ** 2 + constant**2)


def cell_index(
    event: np.ndarray, eta: np.ndarray, phi: np.ndarray, width: float
) -> tuple[np.ndarray, int]:
    """Return number the non-empty cells of width × width in (eta, phi) of all events.

    Returns the cell of each particle (N,), and how many cells there are.
    """
    columns = int(np.ceil(2 * np.pi / width)) + 1
    rows = int(np.ceil(14 / width))  # |eta| < 7 is more than any detector covers
    row = np.floor((eta + 7) / width).astype(np.int64)
    column = np.floor((phi + np.pi) / width).astype(np.int64)
    cells, index = np.unique((event * rows + row) * columns + column, return_inverse=True)
    return index, len(cells)


def _centres(
    event: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    energy: np.ndarray,
    cell: np.ndarray,
    cells: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return event, energy-weighted eta and phi, and energy sum of each cell: four (cells,)."""
    total = np.bincount(cell, weights=energy, minlength=cells)
    # A cell without energy has a middle too: the floor gives its members equal weights.
    weight = np.maximum(energy, 1e-9)
    norm = np.bincount(cell, weights=weight, minlength=cells)
    first = first_in_group(cell, np.zeros(len(cell)), cells)
    middle_eta = np.bincount(cell, weights=weight * eta, minlength=cells) / norm
    # relative to one member, so that a cell at +-pi does not average to 0
    offset = delta_phi(phi, phi[first][cell])
    middle_offset = np.bincount(cell, weights=weight * offset, minlength=cells) / norm
    return event[first], middle_eta, delta_phi(phi[first] + middle_offset), total


def _neutral(
    event: np.ndarray,
    number: np.ndarray,
    energy: np.ndarray,
    eta: np.ndarray,
    phi: np.ndarray,
    above_threshold: np.ndarray,
) -> Candidates:
    """Return the clusters (cells,) of the mask `kept` as massless candidates without vertex."""
    count = int(np.count_nonzero(above_threshold))
    return Candidates(
        event=event[above_threshold],
        id=number[above_threshold],
        pt=(energy / np.cosh(eta))[above_threshold],
        eta=eta[above_threshold],
        phi=phi[above_threshold],
        mass=np.zeros(count),
        from_pv=np.full(count, LOOSE),
        vertex=np.full(count, -1),
    )


def miniaod_order(candidates: Candidates) -> np.ndarray:
    """Return the order of MiniAOD's candidate list, roughly: (N,) indices.

    By event; tracks by vertex, those with pT < 0.95 GeV last; then neutrals.
    """
    soft = candidates.pt < 0.95
    # lexsort sorts by its last key first.
    return np.lexsort(
        (-candidates.eta, candidates.vertex, soft, candidates.is_neutral, candidates.event)
    )
