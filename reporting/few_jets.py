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
    hatch(axes, [(one.low, min(one.high, PT_RANGE[1])) for one in missing])


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
    edges = {one.pt_low for one in measured_bins if one.region == region}
    missing = []
    for one in CURVES:
        if one.region == region and one.low >= max(lowest, 0) and one.low not in edges:
            text = f"{one.range} GeV{_num_jets(metrics, one.text)}"
            missing.append(MissingBin(low=one.low, high=one.high, text=text))
    return missing


def missing_eta_slices(metrics: MetricsRecord) -> list[MissingBin]:
    """Return the slices of eta without a measurement."""
    lows = {one.eta_low for one in metrics.eta}
    missing = []
    for low, high in ETA_SLICES:
        if low not in lows:
            where = f"eta from {low:g} to {high:g}"
            text = f"{low:g} to {high:g}{_num_jets(metrics, where)}"
            missing.append(MissingBin(low=low, high=high, text=text))
    return missing


def _num_jets(metrics: MetricsRecord, where: str) -> str:
    """Return the number of jets of a bin in brackets; empty where it is not recorded."""
    for one in metrics.unmeasured:
        if one.quantity == "response" and one.where == where:
            return f" ({one.num_jets:,} {'jet' if one.num_jets == 1 else 'jets'})"
    return ""


def too_few(missing: Iterable[MissingBin]) -> str:
    """Return the sentence of a caption on hatched bins; empty without any."""
    words = ", ".join(one.text for one in missing)
    return f" Hatched: fewer than {MIN_JETS} jets, {words}." if words else ""
