"""Sections of report.html on pile-up, tails, the inputs of the model and fine bins of eta."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from common.measurements import TailBin
from common.records import MetricsRecord
from physics.groups import JERC_ETA_SLICES, MIN_JETS
from physics.response import PT_EDGES
from reporting.drawing import CALIBRATIONS
from reporting.page import MISSING, Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetailsSection:
    """Content of these sections; a table without rows is None."""

    is_measured: bool
    """False for a run of an earlier version, which did not measure these quantities."""
    pileup_column: str
    pileup: Table | None
    tails: Table | None
    """Tails of all jets above 30 GeV, and of each region."""
    tail_bins: Table | None
    """Tails by bin of pT."""
    inputs: Table | None
    inputs_jets: str
    """Number of jets with which the importance of inputs was measured."""
    fine_eta: Table | None
    too_few: str
    """How many of the fine bins of eta have too few jets; empty where all have enough."""


def content(metrics: MetricsRecord) -> DetailsSection:
    """Return the content of these sections for these metrics."""
    importances = metrics.importances
    too_few = len(JERC_ETA_SLICES) - len(metrics.fine_eta)
    return DetailsSection(
        is_measured=metrics.trees is not None,
        pileup_column=metrics.pileup.column if metrics.pileup else "",
        pileup=_pileup(metrics),
        tails=_tails([bin_ for bin_ in metrics.tails if bin_.is_whole(PT_EDGES[0])]),
        tail_bins=_tails([bin_ for bin_ in metrics.tails if not bin_.is_whole(PT_EDGES[0])]),
        inputs=_inputs(metrics),
        inputs_jets=f"{importances.num_jets:,}" if importances else "",
        fine_eta=_fine_eta(metrics),
        too_few=(
            f"{too_few} of {len(JERC_ETA_SLICES)} bins have fewer than {MIN_JETS} jets and are left"
            " out"
            if too_few
            else ""
        ),
    )


def _pileup(metrics: MetricsRecord) -> Table | None:
    rows = []
    for slice_ in metrics.pileup.slices if metrics.pileup else ():
        row = [slice_.pt_range, f"{slice_.low:.4g} to {slice_.high:.4g}", f"{slice_.num_jets:,}"]
        for response in (slice_.standard, slice_.model):
            row.append(response.median.text(digits=3, sign=""))
        for response in (slice_.standard, slice_.model):
            row.append(response.resolution.text(digits=4, sign=""))
        rows.append([*row, slice_.gain.percent()])
    head = ["pT (GeV)", "Pile-up", "Jets", "Median, standard", "Median, model"]
    head += ["Resolution, standard", "Resolution, model", "Gain"]
    return Table(head=head, rows=rows) if rows else None


def _tails(bins: Sequence[TailBin]) -> Table | None:
    if not bins:
        return None
    names = [name for name in bins[0].by_calibration() if name != "uncorrected"]
    rows = []
    for bin_ in bins:
        row = [bin_.tail, bin_.region, bin_.pt_range, f"{bin_.num_jets:,}"]
        for name in names:
            row.append(bin_.by_calibration()[name].percent(100, 2, sign=""))
        # Without a jet in either tail, the normal interval has no width and is not valid.
        is_empty = bin_.model.value == bin_.standard.value == 0
        rows.append([*row, MISSING if is_empty else bin_.difference.text(100, 2)])
    head = ["Tail", "Region", "pT (GeV)", "Jets"]
    head += [CALIBRATIONS[name].label for name in names]
    head.append("Model − standard (points)")
    return Table(head=head, rows=rows)


def _inputs(metrics: MetricsRecord) -> Table | None:
    rows = []
    for group in metrics.importances.groups if metrics.importances else ():
        loss = f"{group.mean:.1f} ± {group.spread:.1f}"
        rows.append([group.name, ", ".join(group.inputs), loss])
    head = ["Group", "Inputs of the model", "Gain lost (points)"]
    return Table(head=head, rows=rows) if rows else None


def _fine_eta(metrics: MetricsRecord) -> Table | None:
    rows = []
    for slice_ in metrics.fine_eta:
        row = [f"{slice_.eta_low:g} to {slice_.eta_high:g}", f"{slice_.num_jets:,}"]
        for bias in slice_.by_calibration().values():
            row.append(bias.percent(100, 2))
        rows.append(row)
    if not rows:
        return None
    names = metrics.fine_eta[0].by_calibration()
    return Table(head=["η", "Jets", *(CALIBRATIONS[name].label for name in names)], rows=rows)
