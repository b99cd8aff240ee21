"""report.html: one self-contained page made of a run's JSON documents, and nothing else.

Whatever document is missing leaves a sentence in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from reporting import page, report_physics, report_run, serving_section
from reporting.drawing import Drawing
from reporting.figures import drawings
from reporting.records import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
    """What the page is made of; all but the metrics may be missing."""

    metrics: Record
    run: Record | None = None
    search: Record | None = None
    history: Sequence[Record] | None = None
    options: Record | None = None
    export: Record | None = None
    service: Record | None = None


def render(documents: Documents, figures: Sequence[Drawing]) -> str:
    """The page as text.

    `figures` are those of `figures_of`, drawn once for the page and for the files beside it.
    """
    metrics, run = documents.metrics, documents.run or {}
    search, history = documents.search, documents.history or []
    name = metrics.get("run_id") or metrics.get("model", "report")
    return page.render(
        "report.html",
        title=f"Jet energy calibration: {name}",
        figures=lambda *kinds: _chosen(figures, kinds),
        verdict=report_physics.verdict(metrics),
        response=report_physics.response(metrics, run),
        closure=report_physics.closure(metrics),
        flavour=report_physics.flavour(metrics),
        uncertainty=report_physics.uncertainty(metrics.get("uncertainty")),
        search=report_run.search(search) if search and search.get("trials") else None,
        training=report_run.training(documents.options or {}, history),
        serving=serving_section.content(
            documents.export, metrics.get("inference"), documents.service
        ),
        data=report_run.data(metrics, run),
        reproduce=report_run.reproduce(metrics, run),
    )


def figures_of(documents: Documents) -> Iterable[Drawing]:
    """The figures of the page, one by one."""
    metrics = documents.metrics
    return drawings(metrics, documents.history, documents.search, metrics["config"]["max_closure"])


def _chosen(figures: Sequence[Drawing], kinds: Sequence[str]) -> list[Drawing]:
    """The figures whose name is one of `kinds`, or begins with it and a dash."""
    return [
        drawing
        for kind in kinds
        for drawing in figures
        if drawing.name == kind or drawing.name.startswith(f"{kind}-")
    ]
