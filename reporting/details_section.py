"""What report.html says of pile-up, tails, the model's inputs and closure in fine bins of eta."""

from __future__ import annotations

import dataclasses

from common.records import MetricsRecord
from physics.groups import JERC_ETA_SLICES, MIN_JETS
from reporting.drawing import CALIBRATIONS
from reporting.page import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetailsSection:
    """The content of these sections; None for a table without rows."""

    known: bool
    """False for a run of an earlier version, which measured none of it."""
    pileup_column: str
    pileup: Table | None
    tails: Table | None
    inputs: Table | None
    inputs_jets: str
    fine_eta: Table | None
    too_few: str
    """How many of the fine bins of eta have too few jets; empty where all have enough."""


def content(metrics: MetricsRecord) -> DetailsSection:
    importances = metrics.importances
    too_few = len(JERC_ETA_SLICES) - len(metrics.fine_eta)
    return DetailsSection(
        known=metrics.trees is not None,
        pileup_column=metrics.pileup.column if metrics.pileup else "",
        pileup=_pileup(metrics),
        tails=_tails(metrics),
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
    for one in metrics.pileup.slices if metrics.pileup else ():
        row = [one.pt_range, f"{one.low:.4g} to {one.high:.4g}", f"{one.num_jets:,}"]
        for response in (one.standard, one.model):
            row.append(response.median.text(digits=3, sign=""))
        for response in (one.standard, one.model):
            row.append(response.resolution.text(digits=4, sign=""))
        rows.append([*row, one.gain.percent()])
    head = ["pT (GeV)", "Pile-up", "Jets", "Median, standard", "Median, model"]
    head += ["Resolution, standard", "Resolution, model", "Gain"]
    return Table(head=head, rows=rows) if rows else None


def _tails(metrics: MetricsRecord) -> Table | None:
    rows = []
    for one in metrics.tails:
        row = [one.tail, one.region, one.pt_range, f"{one.num_jets:,}"]
        row += [share.percent(100, 2, sign="") for share in (one.standard, one.model)]
        row.append(one.trees.percent(100, 2, sign="") if one.trees else "")
        rows.append([*row, one.difference.text(100, 2)])
    if not rows:
        return None
    head = [
        "Tail",
        "Region",
        "pT (GeV)",
        "Jets",
        "Standard JEC",
        "This model",
        CALIBRATIONS["trees"].label,
    ]
    head.append("Model − standard (points)")
    if not any(row[-2] for row in rows):
        head.pop(-2)
        for row in rows:
            row.pop(-2)
    return Table(head=head, rows=rows)


def _inputs(metrics: MetricsRecord) -> Table | None:
    rows = []
    for one in metrics.importances.groups if metrics.importances else ():
        lost = f"{one.mean:.1f} ± {one.spread:.1f}"
        rows.append([one.name, ", ".join(one.inputs), lost])
    head = ["Group", "Inputs of the model", "Gain lost (points)"]
    return Table(head=head, rows=rows) if rows else None


def _fine_eta(metrics: MetricsRecord) -> Table | None:
    rows = []
    for one in metrics.fine_eta:
        row = [f"{one.eta_low:g} to {one.eta_high:g}", f"{one.num_jets:,}"]
        for bias in one.by_calibration().values():
            row.append(bias.percent(100, 2))
        rows.append(row)
    if not rows:
        return None
    names = metrics.fine_eta[0].by_calibration()
    return Table(head=["η", "Jets", *(CALIBRATIONS[name].label for name in names)], rows=rows)
