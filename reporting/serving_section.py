"""Section of report.html on the served model: size, parity, speed and answers of the service.

The report is written before the gate, when there is no service yet; the deploy step replaces this
section later (`replace_section`). It is made from model/export.json, the field `inference` of
metrics.json, and service.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from common.measurements import Inference
from common.records import ExportRecord, ModelRecord, ServiceRecord, plain
from reporting import page

# The comments at the beginning and the end of templates/serving.html.
START, END = "<!-- serving: begin -->", "<!-- serving: end -->"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """Comparison of the service's answers with golden answers when it was deployed."""

    where: str
    tolerance: str
    differences: page.Table
    round_trips: Sequence[tuple[str, str]]
    """Size and duration of requests."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """Content of the section; missing parts are None or empty."""

    models: page.Table | None
    rates: page.Table | None
    rate_threads: str
    has_card: bool
    """Whether there is a model card beside the page."""
    raw_reason: str
    """Why there is no model that takes the columns of the ntuple."""
    speed: str
    service: Service | None
    export: Mapping[str, str]
    """All fields of model/export.json."""


def section(
    export: ExportRecord | None, inference: Inference | None, service: ServiceRecord | None
) -> str:
    """Return the section as HTML."""
    return page.render("serving.html", serving=content(export, inference, service))


def replace_section(
    text: str,
    export: ExportRecord | None,
    inference: Inference | None,
    service: ServiceRecord | None,
) -> str:
    """Return a page with this section replaced; unchanged if the page has no such section.

    Args:
        text: HTML of the page.
        export: Record of the exported model, if any.
        inference: Measured speed of the model, if any.
        service: Record of the service, if any.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return before + section(export, inference, service) + after if start and end else text


def content(
    export: ExportRecord | None, inference: Inference | None, service: ServiceRecord | None
) -> Serving:
    """Return the content of the section.

    A service that serves a model other than `export` is left out.
    """
    # After a second export the run still has the record of its earlier service.
    is_current = export and service and service.model_sha256 == export.sha256
    return Serving(
        models=table_of_models(export) if export else None,
        rates=table_of_rates(export) if export else None,
        rate_threads=str(export.rates[0].threads) if export and export.rates else "",
        has_card=bool(export and export.rates),  # exports that measure rates write a card
        raw_reason=(export.raw_reason if export else None) or "",
        speed=speed_text(inference) if inference else "",
        service=service_answers(service) if service and is_current else None,
        export=page.flat(plain(export)) if export else {},
    )


def table_of_models(export: ExportRecord) -> page.Table:
    """Return the models of the repository, one a row."""
    head = [
        "Model",
        "Size",
        "Most jets at once",
        "Memory a jet",
        "Jets within 1e-5",
        "Largest difference",
        "Checked in batches of",
    ]
    models: list[ModelRecord] = [export, export.raw] if export.raw else [export]
    rows = []
    for model in models:
        parity = model.parity
        # Nothing was measured where the largest batch was chosen by hand.
        memory = _megabytes(model.memory.bytes_per_jet) if model.memory else page.MISSING
        rows.append(
            [
                model.model,
                _megabytes(model.size_bytes),
                f"{model.max_batch_size:,}",
                memory,
                f"{100 * parity.share_close:.2f} % of {parity.num_jets:,}",
                _difference(parity.max_difference),
                ", ".join(f"{size:,}" for size in parity.batch_sizes),
            ]
        )
    return page.Table(head=head, rows=rows, kind="models")


def table_of_rates(export: ExportRecord) -> page.Table | None:
    """Return jets per second of both models by batch size; None where they were not measured."""
    if not export.rates:
        return None
    sizes = [rate.batch_size for rate in export.rates]
    rows = []
    models: list[ModelRecord | None] = [export, export.raw]
    for model in models:
        if model is None or [rate.batch_size for rate in model.rates] != sizes:
            continue
        row = [model.model]
        row += [f"{rate.jets_per_second:,.0f}" for rate in model.rates]
        rows.append(row)
    if len(rows) == 2 and export.raw is not None:
        row = ["raw over features"]
        for of_features, of_raw in zip(export.rates, export.raw.rates, strict=True):
            row.append(f"{of_raw.jets_per_second / of_features.jets_per_second:.2f}")
        rows.append(row)
    # At most three columns: a phone cuts off more.
    head = ["Model", *(f"Jets/s in batches of {size:,}" for size in sizes)]
    return page.Table(head=head, rows=rows, kind="models")


def _megabytes(size: float) -> str:
    return f"{1e-6 * size:.3g} MB"


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def speed_text(inference: Inference) -> str:
    """Return jets per second and how they were measured; empty if they were not."""
    if not inference.jets_per_second:
        return ""
    where = inference.provider
    if where == "CPU":
        where = f"{inference.threads} threads of {inference.processor}"
    return (
        f"{inference.jets_per_second:,.0f} jets/s in batches of {inference.batch_size:,}"
        f" ({where}; inputs prepared before)"
    )


def service_answers(service: ServiceRecord) -> Service:
    """Return the answers of the service by model and size of request."""
    golden = service.golden
    differences = {service.name: golden.max_difference, **service.others}
    rows = []
    for name, sizes in differences.items():
        rows.append([name, *map(_difference, sizes.values())])
    round_trips = []
    for size, times in (service.round_trips or {}).items():
        round_trips.append(
            (
                _jets(size),
                f"{times.median_ms:.3g} ms (median of {times.repeats};"
                f" {times.min_ms:.3g} to {times.max_ms:.3g})",
            )
        )
    return Service(
        where=f"{service.kind} at {service.url}",
        tolerance=f"{golden.tolerance:g}",
        differences=page.Table(
            head=["Largest difference", *map(_jets, golden.max_difference)],
            rows=rows,
            kind="models",
        ),
        round_trips=round_trips,
    )


def _jets(size: str) -> str:
    return f"{size} jet" if size == "1" else f"{size} jets"
