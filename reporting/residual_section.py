"""What report.html says of the residual correction: closure with it and without."""

from __future__ import annotations

import dataclasses

from common.records import ExportRecord, MetricsRecord
from physics.response import REGIONS
from reporting.page import MISSING, Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualSection:
    """The correction's effect on the test jets, and what it was fitted to."""

    reason: str
    """Why there is none; empty where there is one, or where nothing says."""
    closure: Table | None
    unmeasured: str
    """Bins whose interval is too wide to tell; empty without any."""
    measured_to: str
    gain: str
    """Gain with it, without it, and the difference; empty with too few jets."""
    num_jets: str
    """Validation jets of the fit."""
    uncorrected: str
    """Regions whose factor is 1 for too few validation jets; empty without any."""
    fit: Table | None


def content(metrics: MetricsRecord, export: ExportRecord | None) -> ResidualSection:
    """The section's content; without a correction the reason alone."""
    effect = metrics.residual
    rows, unmeasured = [], []
    for one in effect.bins if effect else ():
        with_it, without = one.with_residual.percent(100, 2), one.without.percent(100, 2)
        rows.append([one.region, one.pt_range, f"{one.num_jets:,}", without, with_it])
        if not one.measured:
            unmeasured.append(f"{one.region} {one.pt_range}")
    gain = ""
    if effect and effect.gain:
        gain = (
            f"{effect.gain.with_residual.percent()} with it, {effect.gain.without.percent()}"
            f" without it, difference {effect.gain.difference.percent(1, 2)}"
        )
    head = ["Region", "pT (GeV)", "Jets", "Without the correction", "With it"]
    return ResidualSection(
        reason=(export.residual_reason if export else None) or "",
        closure=Table(head=head, rows=rows) if rows else None,
        unmeasured=", ".join(unmeasured),
        measured_to=f"{100 * effect.measured_to:g} %" if effect else MISSING,
        gain=gain,
        num_jets=f"{export.residual.num_jets:,}" if export and export.residual else "",
        uncorrected=", ".join(_uncorrected(export)),
        fit=_fit(export),
    )


def _uncorrected(export: ExportRecord | None) -> list[str]:
    """The regions for which nothing was fitted."""
    if not export or not export.residual:
        return []
    fitted = {point.region for point in export.residual.points}
    return [region for region in REGIONS if region not in fitted]


def _fit(export: ExportRecord | None) -> Table | None:
    """The points of the fit."""
    rows = []
    for point in export.residual.points if export and export.residual else ():
        needed = f"{point.needed:.4f} ± {point.error:.4f}"
        place = [point.region, f"{point.pt:.0f}", f"{point.num_jets:,}"]
        rows.append([*place, needed, f"{point.applied:.4f}"])
    head = ["Region", "Calibrated pT (GeV)", "Validation jets", "Factor needed", "Factor applied"]
    return Table(head=head, rows=rows) if rows else None
