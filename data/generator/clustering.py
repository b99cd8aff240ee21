"""Anti-kT jets, R = 0.4, of many events at once, with their areas and their members.

FastJet: M. Cacciari, G. P. Salam, G. Soyez, EPJ C 72 (2012) 1896, arXiv:1111.6097; anti-kT: JHEP 04
(2008) 063, arXiv:0802.1189; jet areas from ghosts: JHEP 04 (2008) 005, arXiv:0802.1188. Momenta in
GeV.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from data import ragged
from data.generator.table import Table

RADIUS = 0.4
# CMS uses 0.01; twice that keeps the statistical error of a jet's area at 4 % and halves the time
GHOST_AREA = 0.02
# a jet with |eta| < 2.5 reaches 2.9; beyond, areas only matter for jets that are not stored
GHOST_ETA = 3.2
GHOST_PT = 1e-50  # GeV; a ghost must not move any jet


@dataclasses.dataclass(frozen=True)
class Inputs(Table):
    """Inputs of the clustering, (N,) each, sorted by event. GeV."""

    event: np.ndarray
    px: np.ndarray
    py: np.ndarray
    pz: np.ndarray
    energy: np.ndarray

    @classmethod
    def of(
        cls,
        event: np.ndarray,
        pt: np.ndarray,
        eta: np.ndarray,
        phi: np.ndarray,
        mass: np.ndarray | float = 0.0,
    ) -> Inputs:
        """Return the inputs from pT (GeV), eta, phi (radians) and mass (GeV), (N,) each."""
        pz = pt * np.sinh(eta)
        return cls(event, pt * np.cos(phi), pt * np.sin(phi), pz, np.sqrt(pt**2 + pz**2 + mass**2))


@dataclasses.dataclass(frozen=True)
class Jets:
    """Jets of several events, (J,) each, sorted by event and then by falling pT.

    `member_jet` and `member` list the jets' contents: input `member[i]` belongs to jet
    `member_jet[i]`; sorted by jet.
    """

    event: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray
    mass: np.ndarray
    member_jet: np.ndarray
    member: np.ndarray

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.event)


def cluster(inputs: Inputs, events: int, min_pt: float) -> Jets:
    """Return the jets with pT > min_pt of all events."""
    import awkward as ak
    import fastjet

    quiet_banner()
    counts = ragged.counts_of(inputs.event, events)
    momenta = ak.zip(
        {"px": inputs.px, "py": inputs.py, "pz": inputs.pz, "E": inputs.energy},
        with_name="Momentum4D",
    )
    # (N,) -> events × inputs: FastJet clusters each event for itself.
    sequence = fastjet.ClusterSequence(ak.unflatten(momenta, counts), _definition())
    momentum = sequence.inclusive_jets(min_pt)  # events × jets
    contents = sequence.constituent_index(min_pt)  # events × jets × members
    event = np.repeat(np.arange(events), ak.to_numpy(ak.num(momentum)))
    px, py, pz, energy = (
        ak.to_numpy(ak.flatten(momentum[axis])).astype(float) for axis in ("px", "py", "pz", "E")
    )
    size = ak.to_numpy(ak.flatten(ak.num(contents, axis=2)))
    member_jet = np.repeat(np.arange(len(event)), size)
    # FastJet counts members within the event; here they count within all inputs.
    local = ak.to_numpy(ak.flatten(contents, axis=None)).astype(np.int64)
    member = local + ragged.starts(counts)[event[member_jet]]
    pt = np.hypot(px, py)
    jets = Jets(
        event=event,
        pt=pt,
        eta=np.arcsinh(pz / pt),
        phi=np.arctan2(py, px),
        mass=np.sqrt(np.maximum(energy**2 - pt**2 - pz**2, 0.0)),
        member_jet=member_jet,
        member=member,
    )
    return select(jets, np.lexsort((-jets.pt, jets.event)))


def select(jets: Jets, order: np.ndarray) -> Jets:
    """Return the jets at these indices, in this order, with their members.

    Args:
        jets: J jets.
        order: (n,) indices from 0 to J - 1.
    """
    size = ragged.counts_of(jets.member_jet, len(jets))
    places = ragged.ranges(ragged.starts(size)[order], size[order])
    return Jets(
        event=jets.event[order],
        pt=jets.pt[order],
        eta=jets.eta[order],
        phi=jets.phi[order],
        mass=jets.mass[order],
        member_jet=np.repeat(np.arange(len(order)), size[order]),
        member=jets.member[places],
    )


def ghosts(events: int, rng: np.random.Generator) -> Inputs:
    """Return a grid of ghosts for each event, each moved at random within its cell.

    Jets collect them in proportion to their area.
    """
    eta, phi, cell_eta, cell_phi = _ghost_grid()
    jitter_eta = rng.uniform(-0.5, 0.5, (events, len(eta))) * cell_eta
    jitter_phi = rng.uniform(-0.5, 0.5, (events, len(phi))) * cell_phi
    event = np.repeat(np.arange(events), len(eta))
    flat_eta = (eta + jitter_eta).ravel()  # (events, cells) -> (events * cells,)
    flat_phi = (phi + jitter_phi).ravel()
    return Inputs.of(event, np.full(len(event), GHOST_PT), flat_eta, flat_phi)


def ghost_cell() -> float:
    """Return the area that one ghost represents."""
    _, _, cell_eta, cell_phi = _ghost_grid()
    return cell_eta * cell_phi


@functools.cache
def _ghost_grid() -> tuple[np.ndarray, np.ndarray, float, float]:
    """Return the eta and phi of the cells' middles, (cells,) each, and the sides of a cell."""
    side = np.sqrt(GHOST_AREA)
    rows = round(2 * GHOST_ETA / side)
    columns = round(2 * np.pi / side)
    cell_eta = 2 * GHOST_ETA / rows
    cell_phi = 2 * np.pi / columns
    eta = (np.arange(rows) + 0.5) * cell_eta - GHOST_ETA
    phi = (np.arange(columns) + 0.5) * cell_phi - np.pi
    return np.repeat(eta, columns), np.tile(phi, rows), cell_eta, cell_phi


@functools.cache
def _definition() -> Any:
    import fastjet

    return fastjet.JetDefinition(fastjet.antikt_algorithm, RADIUS)


def density(
    event: np.ndarray, pt: np.ndarray, eta: np.ndarray, phi: np.ndarray, events: int, max_eta: float
) -> np.ndarray:
    """Return median transverse momentum density rho of each event, GeV per unit area: (events,).

    The median over cells of about 0.55 × 0.55 in (eta, phi) with |eta| < max_eta, as CMS's
    fixedGridRho: jets fill few cells, pile-up all of them.
    """
    rows = int(2 * max_eta / 0.55)
    columns = int(2 * np.pi / 0.55)
    inside = np.abs(eta) < max_eta
    # Rounding can put a value at the upper edge into a row or column too many, hence the clip.
    row = ((eta[inside] + max_eta) * (rows / (2 * max_eta))).astype(np.int64).clip(0, rows - 1)
    column = ((phi[inside] + np.pi) * (columns / (2 * np.pi))).astype(np.int64).clip(0, columns - 1)
    cell = (event[inside] * rows + row) * columns + column
    sums = ragged.total(cell, pt[inside], events * rows * columns)
    sums = sums.reshape(events, rows * columns)  # (events * cells,) -> (events, cells)
    return np.median(sums, axis=1) / ((2 * max_eta / rows) * (2 * np.pi / columns))


@functools.cache
def quiet_banner() -> None:
    """Make FastJet print its banner now, and discard it, so that it never reaches stdout."""
    import os

    import fastjet

    stdout_copy = os.dup(1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        fastjet.ClusterSequence([fastjet.PseudoJet(1.0, 0.0, 0.0, 1.0)], _definition())
    finally:
        os.dup2(stdout_copy, 1)
        os.close(stdout_copy)
        os.close(nothing)
