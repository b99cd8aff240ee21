"""Bins with too few jets to be measured: figures hatch them, and captions list them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from common.measurements import PtBin
from common.records import MetricsRecord
from physics.groups import CURVES, ETA_SLICES, MIN_JETS
from reporting.drawing import INK, PT_RANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def hatch(axes: Axes, spans: Iterable[tuple[float, float]]) -> None:
    """Hatch ranges of x that hold too few jets to be measured."""
    for low, high in spans:
        axes.axvspan(low, high, facecolor="none", edgecolor=INK, alpha=0.6, hatch="//", lw=0)


def hatch_pt(axes: Axes, missing: Iterable[MissingBin]) -> None:
    """Hatch bins of pT that hold too few jets to be measured."""
    hatch(axes, [(bin_.low, min(bin_.high, PT_RANGE[1])) for bin_ in missing])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MissingBin:
    """A bin that holds too few jets to be measured."""

    low: float
    high: float
    text: str
    """Range of the bin with its unit, and the number of jets where it is recorded."""


def missing_pt_bins(
    metrics: MetricsRecord, region: str, measured_bins: Iterable[PtBin], lowest: float = 0.0
) -> list[MissingBin]:
    """Return the pT bins of a region from `lowest` (GeV) up that are not among `measured_bins`."""
    edges = {bin_.pt_low for bin_ in measured_bins if bin_.region == region}
    missing = []
    for bin_ in CURVES:
        if bin_.region == region and bin_.low >= max(lowest, 0) and bin_.low not in edges:
            text = f"{bin_.range} GeV{_num_jets(metrics, bin_.text)}"
            missing.append(MissingBin(low=bin_.low, high=bin_.high, text=text))
    return missing


def missing_eta_slices(metrics: MetricsRecord) -> list[MissingBin]:
    """Return the slices of eta without a measurement."""
    lows = {slice_.eta_low for slice_ in metrics.eta}
    missing = []
    for low, high in ETA_SLICES:
        if low not in lows:
            where = f"eta from {low:g} to {high:g}"
            text = f"{low:g} to {high:g}{_num_jets(metrics, where)}"
            missing.append(MissingBin(low=low, high=high, text=text))
    return missing


def _num_jets(metrics: MetricsRecord, where: str) -> str:
    """Return the number of jets of a bin in brackets; empty where it is not recorded."""
    for entry in metrics.unmeasured:
        if entry.quantity == "response" and entry.where == where:
            return f" ({entry.num_jets:,} {'jet' if entry.num_jets == 1 else 'jets'})"
    return ""


def too_few(missing: Iterable[MissingBin]) -> str:
    """Return the sentence of a caption on hatched bins; empty without any."""
    words = ", ".join(bin_.text for bin_ in missing)
    return f" Hatched: fewer than {MIN_JETS} jets, {words}." if words else ""
