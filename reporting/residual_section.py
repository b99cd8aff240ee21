"""Section of report.html on the residual correction: closure with and without it."""

from __future__ import annotations

import dataclasses

from common.records import ExportRecord, MetricsRecord
from physics.response import REGIONS
from reporting.page import MISSING, Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualSection:
    """The effect of the correction on the test jets, and the fit."""

    reason: str
    """Why there is no correction; empty where there is one or no reason is recorded."""
    closure: Table | None
    unmeasured: str
    """Bins whose interval is too wide for a conclusion; empty without any."""
    measured_to: str
    gain: str
    """Gain with and without the correction, and the difference; empty with too few jets."""
    num_jets: str
    """Number of validation jets in the fit."""
    uncorrected: str
    """Regions whose factor is 1, because they have too few validation jets; empty without any."""
    fit: Table | None


def content(metrics: MetricsRecord, export: ExportRecord | None) -> ResidualSection:
    """Return the content of the section; without a correction only the reason."""
    effect = metrics.residual
    rows, unmeasured = [], []
    for bin_ in effect.bins if effect else ():
        with_it, without = bin_.with_residual.percent(100, 2), bin_.without.percent(100, 2)
        rows.append([bin_.region, bin_.pt_range, f"{bin_.num_jets:,}", without, with_it])
        if not bin_.measured:
            unmeasured.append(f"{bin_.region} {bin_.pt_range}")
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
        uncorrected=", ".join(_regions_without_fit(export)),
        fit=_fit(export),
    )


def _regions_without_fit(export: ExportRecord | None) -> list[str]:
    """Return the regions to which no curve was fitted."""
    if not export or not export.residual:
        return []
    regions_of_fit = {point.region for point in export.residual.points}
    return [region for region in REGIONS if region not in regions_of_fit]


def _fit(export: ExportRecord | None) -> Table | None:
    """Return the points of the fit; None without any."""
    rows = []
    for point in export.residual.points if export and export.residual else ():
        factor = f"{point.needed:.4f} ± {point.error:.4f}"
        place = [point.region, f"{point.pt:.0f}", f"{point.num_jets:,}"]
        rows.append([*place, factor, f"{point.applied:.4f}"])
    head = ["Region", "Calibrated pT (GeV)", "Validation jets", "Factor needed", "Factor applied"]
    return Table(head=head, rows=rows) if rows else None
