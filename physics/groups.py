"""The groups of jets in which everything is measured: pT bins, flavours in them, slices of columns.

A group is a name and a mask (N,) of jets. A group with fewer than MIN_JETS jets is not measured,
because its quantiles are too uncertain. pT (GeV) and eta are those of the generator jet.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from physics import response as r
from physics.response import Bin, Floats, Mask

MIN_JETS = 50
"""The error of a median of 50 jets is about 0.18 of a jet's resolution.

With fewer jets even the interval is unreliable.
"""

MIN_FLAVOUR_JETS = 100
"""With fewer jets of a flavour, the noise of its median (1 %) would exceed what is measured."""

RESIDUALS = ("rhoAll", "PV_npvsGood", "jetMult", "QG_mult", "jetPhi")
"""Columns against which the remaining bias is measured, where they are among the observers."""
SLICES = 8  # slices of each of these columns, with equally many jets

ETA_SLICES = tuple(itertools.pairwise(np.linspace(-2.5, 2.5, 11).round(2).tolist()))
"""(low, high) of eta, upper edge excluded, from CLOSURE_FROM up."""

FINE_ETA_SLICES = tuple(itertools.pairwise(np.linspace(-2.5, 2.5, 51).round(1).tolist()))
"""Narrow slices for the gate alone, so that a failure in one ring of the detector shows."""

# fmt: off
JERC_ETA_EDGES = (
    0.0, 0.087, 0.174, 0.261, 0.348, 0.435, 0.522, 0.609, 0.696, 0.783, 0.879, 0.957, 1.044, 1.131,
    1.218, 1.305, 1.392, 1.479, 1.566, 1.653, 1.74, 1.83, 1.93, 2.043, 2.172, 2.322, 2.5,
)
# fmt: on
"""Edges of |eta| in which CMS derives jet energy corrections, up to 2.5: those of the towers of the
hadron calorimeter. Source: CMS Collaboration, JINST 12 (2017) P02014.
"""

JERC_ETA_SLICES = tuple(
    itertools.pairwise([*(-edge for edge in JERC_ETA_EDGES[:0:-1]), *JERC_ETA_EDGES])
)
"""Both sides of the detector, from CLOSURE_FROM up."""

PILEUP = "pile-up"
"""Name of the column with the pile-up of the jets' events, whatever the file calls it."""

PILEUP_BINS = r.bins((r.CLOSURE_FROM, 110.0, math.inf), ("all",))
"""Bins of pT in which the response is shown against pile-up: where it matters most, and above."""
PILEUP_SLICES = 5
"""With equally many jets each."""

WHOLE_REGIONS = r.bins((r.PT_EDGES[0], math.inf))
"""Each region above 30 GeV."""

SUMMARY = [
    *r.bins(r.PT_EDGES),
    *WHOLE_REGIONS,
    Bin(region="all", low=r.PT_EDGES[0], high=math.inf),
]
"""Bins of the summary table; the last one, all jets above 30 GeV, gives the headline gain."""

CURVES = r.bins(r.FINE_PT_EDGES)

CLOSURE_REGIONS = r.bins((r.CLOSURE_FROM, math.inf))
"""Each region from CLOSURE_FROM up, free of the bias of the threshold."""

CLOSURE_ALL = Bin(region="all", low=r.CLOSURE_FROM, high=math.inf)
"""Both regions from CLOSURE_FROM up."""

CLOSURE = [*CLOSURE_REGIONS, *(bin_ for bin_ in CURVES if bin_.low >= r.CLOSURE_FROM)]
"""Where closure must hold: each region as a whole (the most precise), then in its pT bins.

The bins are needed because a trend may cancel in the whole region.
"""

FLAVOUR_BINS = [*r.bins(r.PT_EDGES), *CLOSURE_REGIONS, CLOSURE_ALL]
"""Where flavours are compared: the pT bins of the summary, then each region, and both together."""


class Masks(Mapping[str, Mask]):
    """Group -> which jets (N,) bool, in one bit a jet.

    There are up to 300 groups, so that their masks would take more memory than all other numbers of
    the jets. A mask is unpacked each time that it is read.
    """

    def __init__(self, num_jets: int) -> None:
        """Make it without groups; num_jets: N."""
        self.num_jets = num_jets
        self._bits: dict[str, NDArray[np.uint8]] = {}

    def __setitem__(self, name: str, mask: Mask) -> None:
        """Add a group, or replace it."""
        self._bits[name] = np.packbits(mask)

    def __getitem__(self, name: str) -> Mask:
        """Return a new mask."""
        return np.unpackbits(self._bits[name], count=self.num_jets).view(np.bool_)

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a group, without unpacking it."""
        return name in self._bits

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which they were added."""
        return iter(self._bits)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._bits)

    def select(self, names: Iterable[str]) -> Masks:
        """Return those of these groups that exist, without copying them."""
        selection = Masks(self.num_jets)
        selection._bits = {name: self._bits[name] for name in names if name in self._bits}
        return selection


def masks(columns: Mapping[str, np.ndarray]) -> Masks:
    """Return which jets (N,) each group has, by name; also empty groups.

    columns: name -> (N,), at least genJetPt (GeV) and genJetEta. There are groups of flavours
    where columns has partonFlav and hadronFlav, and slices of PILEUP and of RESIDUALS where it has
    these.
    """
    gen_pt, gen_eta = columns["genJetPt"], columns["genJetEta"]
    groups = Masks(len(gen_pt))
    for bin_ in (*SUMMARY, *CURVES, *CLOSURE, CLOSURE_ALL):
        groups[bin_.name] = bin_.contains(gen_pt, gen_eta)

    if has_flavours(columns):
        flavours = r.flavour(columns["partonFlav"], columns["hadronFlav"])
        for bin_ in FLAVOUR_BINS:
            for flavour in r.FLAVOURS:
                groups[flavour_name(bin_, flavour)] = groups[bin_.name] & (flavours == flavour)

    for low, high in (*ETA_SLICES, *FINE_ETA_SLICES, *JERC_ETA_SLICES):
        inside = (gen_eta >= low) & (gen_eta < high)
        groups[eta_name(low, high)] = (gen_pt >= r.CLOSURE_FROM) & inside

    closing = closing_jets(columns)
    for column, edges in slice_edges(columns).items():
        for low, high in itertools.pairwise(edges):
            inside = (columns[column] >= low) & (columns[column] < high)
            groups[slice_name(column, low, high)] = closing & inside

    for low, high in pileup_slices(columns):
        inside = (columns[PILEUP] >= low) & (columns[PILEUP] < high)
        for bin_ in PILEUP_BINS:
            groups[pileup_name(low, high, bin_)] = inside & bin_.contains(gen_pt, gen_eta)
    return groups


def has_flavours(columns: Mapping[str, np.ndarray]) -> bool:
    """Return whether partonFlav and hadronFlav are among the observers.

    Args:
        columns: observer -> (N,).
    """
    return "partonFlav" in columns and "hadronFlav" in columns


def closing_jets(columns: Mapping[str, np.ndarray]) -> Mask:
    """Return which jets closure is measured on, those from CLOSURE_FROM up: (N,) bool."""
    return CLOSURE_ALL.contains(columns["genJetPt"], columns["genJetEta"])


def slice_edges(columns: Mapping[str, np.ndarray]) -> dict[str, Floats]:
    """Return column of RESIDUALS -> edges of slices with equally many jets.

    A column that is missing, not finite or nearly constant has no entry.

    Args:
        columns: observer -> (N,).

    Returns:
        Column -> at most SLICES + 1 rising edges, in the column's unit.
    """
    closing = closing_jets(columns)
    result = {}
    for name in RESIDUALS:
        values = np.asarray(columns.get(name, ()), dtype=np.float64)
        if len(values) and np.isfinite(values).all() and closing.any():
            edges = equal_slices(values[closing], SLICES)
            if len(edges):
                result[name] = edges
    return result


def equal_slices(values: Floats, number: int) -> Floats:
    """Return edges of `number` slices with equally many values, as far as equal values allow.

    values: (N,), N > 0. Returns ascending edges, the last just above the largest value, as upper
    edges are excluded; none for fewer than two slices.
    """
    # Edges are values of the sample ("nearest"), so that whole numbers fall to one side of each.
    edges = np.unique(np.quantile(values, np.linspace(0, 1, number + 1), method="nearest"))
    if len(edges) <= 2:
        return np.zeros(0)
    return np.append(edges[:-1], np.nextafter(edges[-1], np.inf))


def pileup_slices(columns: Mapping[str, np.ndarray]) -> list[tuple[float, float]]:
    """Return the (low, high) of each slice of PILEUP; none where it is missing or not finite.

    Args:
        columns: observer -> (N,).
    """
    values = np.asarray(columns.get(PILEUP, ()), dtype=np.float64)
    closing = closing_jets(columns)
    if not len(values) or not np.isfinite(values).all() or not closing.any():
        return []
    return list(itertools.pairwise(equal_slices(values[closing], PILEUP_SLICES).tolist()))


def pileup_name(low: float, high: float, bin_: Bin) -> str:
    """Return the group of a slice of pile-up in a bin of pT."""
    return f"pile-up {low:.9g} to {high:.9g}, {bin_.name}"


def flavour_name(bin_: Bin, flavour: str) -> str:
    """Return the group of the jets of a flavour in a bin."""
    return f"{flavour} in {bin_.name}"


def eta_name(low: float, high: float) -> str:
    """Return the group of a slice of eta."""
    return f"eta {low:g} to {high:g}"


def slice_name(column: str, low: float, high: float) -> str:
    """Return the group of a slice of a column of RESIDUALS."""
    return f"{column} {low:.9g} to {high:.9g}"
