"""The page report.html, made of the records of a run alone.

For each record that is missing the page has a sentence instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from common.records import (
    EpochRecord,
    ExportRecord,
    MetricsRecord,
    SearchRecord,
    ServiceRecord,
    TrialOptions,
)
from common.run import Run
from reporting import (
    baselines_section,
    details_section,
    page,
    report_physics,
    report_run,
    residual_section,
    serving_section,
)
from reporting.drawing import Drawing
from reporting.figures import drawings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
    """Records that the page is made of; all but the metrics may be missing."""

    metrics: MetricsRecord
    run: Run | None = None
    search: SearchRecord | None = None
    history: Sequence[EpochRecord] = ()
    """Epochs of the exported trial."""
    options: TrialOptions | None = None
    """Options of the exported trial."""
    export: ExportRecord | None = None
    service: ServiceRecord | None = None


def render(documents: Documents, figures: Sequence[Drawing]) -> str:
    """Return the HTML of the page.

    Args:
        documents: The records of the run.
        figures: The result of `figures_of`. The caller draws them once, for the page and for files.
    """
    metrics, run, search = documents.metrics, documents.run, documents.search

    def figures_of_kinds(*kinds: str) -> list[Drawing]:
        """Return the figures whose name is one of `kinds`, or begins with it and a dash."""
        selection = []
        for kind in kinds:
            for drawing in figures:
                if drawing.name == kind or drawing.name.startswith(f"{kind}-"):
                    selection.append(drawing)
        return selection

    return page.render(
        "report.html",
        title=f"Jet energy calibration: {metrics.run_id}",
        figures=figures_of_kinds,
        verdict=report_physics.verdict(metrics),
        response=report_physics.response(metrics, run),
        baselines=baselines_section.content(metrics),
        details=details_section.content(metrics),
        closure=report_physics.closure(metrics),
        residual=residual_section.content(metrics, documents.export),
        edges=report_physics.edges(metrics),
        flavour=report_physics.flavour(metrics),
        uncertainty=report_physics.uncertainty(metrics.uncertainty),
        search=report_run.search(search) if search and search.trials else None,
        training=report_run.training(documents.options, documents.history),
        serving=serving_section.content(documents.export, metrics.inference, documents.service),
        data=report_run.data(metrics, run),
        reproduce=report_run.reproduce(metrics, run),
    )


def figures_of(documents: Documents) -> Iterable[Drawing]:
    """Draw the figures of the page one by one."""
    return drawings(documents.metrics, documents.history, documents.search)
