"""Proton-proton collisions at 13 TeV from Pythia 8, as flat arrays of a block of events.

The hard process follows the parent of the open data sample,
QCD_Pt-15to7000_TuneCUETP8M1_Flat_13TeV: QCD 2 -> 2 scattering with 15 < pT-hat < 7000 GeV, tune
CUETP8M1, and events drawn flatter in pT-hat by pT-hat^4.5 with the weight that undoes it.

Pythia 8.3: C. Bierlich et al., SciPost Phys. Codebases 8 (2022), arXiv:2203.11601. Momenta in GeV.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.generator.table import Table
from data.ragged import counts_of, starts

COMMON = (
    "Beams:eCM = 13000.",
    "Tune:pp = 18",  # CUETP8M1, the tune of the open data sample
    # K0S, Lambda and the like decay where they would in the detector, if they do so in the tracker
    # (mm).
    "ParticleDecays:limitCylinder = on",
    "ParticleDecays:xyMax = 1100.",
    "ParticleDecays:zMax = 2800.",
    "Print:quiet = on",
    "Random:setSeed = on",
    "Random:seed = 1",
)
HARD_QCD = (
    "HardQCD:all = on",
    "PhaseSpace:pTHatMin = 15.",
    "PhaseSpace:pTHatMax = 7000.",
    "PhaseSpace:bias2Selection = on",
    "PhaseSpace:bias2SelectionPow = 4.5",
    "PhaseSpace:bias2SelectionRef = 15.",
)
MINIMUM_BIAS = ("SoftQCD:nonDiffractive = on",)

NEUTRINOS = (12, 14, 16)
CHARGED = (11, 13, 211, 321, 2212, 3112, 3222, 3312, 3334)
"""|PDG number| of the charged particles that reach the detector."""

LONG_LIVED = (310, 3112, 3122, 3222, 3312, 3322, 3334)
"""|PDG number| of particles that live longer than 10 mm/c and still decay in the tracker: K0S and
the strange baryons. Generator jets consist of these, as in CMS, and the detector gets their decay
products."""

MAX_SEED = 900_000_000  # largest seed of Pythia's generator

HARD_PROCESS = 23
"""|status| in Pythia of the outgoing particles of the hardest process.

Its record has them as -23, once they have radiated and are no longer final. 21 are the incoming
ones, 22 those in between, of which QCD 2 -> 2 scattering has none. Pythia's manual, Particle
Properties.
"""
HADRONISING = (-79, -71)
"""Range of the status in Pythia of partons ready to hadronise; negative once it is done.

The flavour definition of CMS uses these.
"""


@dataclasses.dataclass(frozen=True)
class Particles(Table):
    """Particles of several events, (N,) each, sorted by event. Momenta, energy and mass in GeV.

    `radius` is the distance from the beam axis at which the particle was made (mm). `vertex` is 0
    for the hard collision and 1, 2, ... for the pile-up collisions of the same bunch crossing.
    """

    event: np.ndarray
    id: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    energy: np.ndarray
    mass: np.ndarray
    radius: np.ndarray
    vertex: np.ndarray

    def __len__(self) -> int:
        """Return the number of particles."""
        return len(self.event)

    @property
    def is_charged(self) -> np.ndarray:
        """Whether each particle is charged; (N,)."""
        return np.isin(np.abs(self.id), CHARGED)

    def counts(self, events: int) -> np.ndarray:
        """Return the particles in each event: (events,)."""
        return counts_of(self.event, events)


def merge(parts: Sequence[Particles]) -> Particles:
    """Return the particles of all parts, sorted by event.

    Within an event in the order of the parts.
    """
    together = Particles.join(parts)
    return together[np.argsort(together.event, kind="stable")]


@dataclasses.dataclass(frozen=True)
class HardEvents:
    """A block of hard collisions.

    `pt_hat` (GeV) and `weight` are (events,).
    """

    final: Particles
    """The inputs of generator jets: particles with |eta| < 5 that live longer than 10 mm/c, without
    neutrinos."""
    detected: Particles
    """The same after decays in the tracker."""
    partons: Particles
    """Quarks and gluons just before they hadronise."""
    heavy: Particles
    """Hadrons with b or c quarks, pT > 5 GeV."""
    outgoing: Particles
    """The two partons of the 2 -> 2 scattering."""
    pt_hat: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.pt_hat)


class Collider:
    """One initialised Pythia.

    Blocks of events depend only on the block's seed, not on earlier blocks.
    """

    def __init__(self, settings: tuple[str, ...]) -> None:
        """Start Pythia 8 with these settings on top of the common ones.

        Raises RuntimeError if Pythia 8 refuses them.
        """
        import pythia8mc

        self._pythia = pythia8mc.Pythia("", False)
        for setting in COMMON + settings:
            self._pythia.readString(setting)
        if not self._pythia.init():
            raise RuntimeError("Pythia 8 could not be initialised")

    def collide(self, events: int, seed: int) -> Any:
        """Return the event records of `events` collisions as Pythia's awkward array.

        `seed` is from 1 to MAX_SEED.
        """
        self._pythia.rndm.init(seed)
        return self._pythia.nextBatch(events)


def hard_events(collider: Collider, events: int, seed: int) -> HardEvents:
    """Return a block of hard QCD collisions.

    Events that Pythia cannot finish are left out, so there may be fewer than requested.
    """
    import awkward as ak

    batch = collider.collide(events, seed)
    record = _particles(batch["prt"])
    status = ak.to_numpy(ak.flatten(batch["prt"]["status"]))
    kind = np.abs(record.id)
    is_parton = (kind <= 5) | (kind == 21)
    is_visible = ~np.isin(kind, NEUTRINOS) & (np.abs(record.eta) < 5.0)
    long_lived = np.isin(kind, LONG_LIVED)
    product = _descends_from(long_lived, batch["prt"]["mother1"])
    hadronising = (status >= HADRONISING[0]) & (status <= HADRONISING[1])
    heavy = is_hadron_with(record.id, 5) | is_hadron_with(record.id, 4)
    return HardEvents(
        final=record[((status > 0) | long_lived) & ~product & is_visible],
        detected=record[(status > 0) & is_visible],
        partons=record[hadronising & is_parton],
        heavy=record[heavy & (record.pt > 5.0)],
        outgoing=record[(status == -HARD_PROCESS) & is_parton],
        pt_hat=np.sqrt(ak.to_numpy(batch["info"]["pT2Hat"])),
        weight=ak.to_numpy(batch["info"]["weights"][:, 0]),
    )


def minimum_bias(collider: Collider, events: int, seed: int) -> Particles:
    """Return the final visible particles of inelastic, non-diffractive collisions, for pile-up."""
    import awkward as ak

    batch = collider.collide(events, seed)
    record = _particles(batch["prt"])
    status = ak.to_numpy(ak.flatten(batch["prt"]["status"]))
    return record[(status > 0) & ~np.isin(np.abs(record.id), NEUTRINOS)]


def is_hadron_with(particle_id: np.ndarray, quark: int) -> np.ndarray:
    """Return whether hadrons with these PDG numbers (N,) hold a heavy (anti)quark: (N,) bool.

    quark: 4 or 5. Source: the numbering scheme of the Particle Data Group, in which the hundreds
    digit is a meson's heavier quark and the thousands digit a baryon's heaviest one.
    """
    kind = np.abs(particle_id)
    tens = (kind // 10) % 10
    hundreds = (kind // 100) % 10
    thousands = (kind // 1000) % 10
    # A diquark has 0 as its tens digit; numbers of seven digits are excited states, which decay to
    # the hadrons that are counted.
    is_ground_state = (kind > 100) & (kind < 10**6) & (tens != 0)
    return is_ground_state & ((hundreds == quark) | (thousands == quark))


def _descends_from(ancestor: np.ndarray, mother1: Any) -> np.ndarray:
    """Return whether a particle has one of the marked (N,) among its ancestors: (N,) bool.

    At most four generations up. mother1 is awkward, events × particles.
    """
    import awkward as ak

    number = ak.to_numpy(ak.num(mother1))
    # mother1 counts within the event; 0 is the event's first entry, which stands for the event and
    # is nobody's mother.
    mother = ak.to_numpy(ak.flatten(mother1)) + np.repeat(starts(number), number)
    descends = np.zeros(len(ancestor), dtype=bool)
    for _ in range(4):  # Omega -> Xi -> Lambda -> pi0 -> photons is the longest chain
        descends = (ancestor | descends)[mother]
    return descends


def _particles(record: Any) -> Particles:
    """Return all entries of the event records (awkward, events × particles) as flat arrays."""
    import awkward as ak

    def flat(values: Any) -> np.ndarray:
        return ak.to_numpy(ak.flatten(values))  # events × particles -> (N,)

    number = ak.to_numpy(ak.num(record["id"]))
    px, py, pz, energy = (flat(record["p"][axis]) for axis in ("px", "py", "pz", "e"))
    pt = np.hypot(px, py)
    # Particles without a production vertex were made on the beam.
    x, y = (flat(ak.fill_none(record["vProd"][axis], 0.0)) for axis in ("px", "py"))
    kind = flat(record["id"])
    return Particles(
        event=np.repeat(np.arange(len(number)), number),
        id=kind,
        pt=pt,
        # the beams themselves get a large, finite value
        eta=np.arcsinh(pz / np.maximum(pt, 1e-6)),
        phi=np.arctan2(py, px),
        energy=energy,
        mass=flat(record["m"]),
        radius=np.hypot(x, y),
        vertex=np.zeros(len(kind), dtype=np.int64),
    )
