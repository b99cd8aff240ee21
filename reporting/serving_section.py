"""The section of a run's report about the served model: size, parity, speed, the service's answers.

The report is written before the gate, when there is no service yet; the deploy step then puts this
section anew into the page (`updated`). Its sources are model/export.json, the `inference` of
metrics.json, and service.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from reporting import page
from reporting.records import Record

# The comments by which templates/serving.html begins and ends.
START, END = "<!-- serving: begin -->", "<!-- serving: end -->"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """What the service answered when it was deployed."""

    where: str
    tolerance: str
    differences: page.Table
    round_trips: Sequence[tuple[str, str]]
    """(size of a request, its time) of each size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """What the section shows; None or empty for what is missing."""

    models: page.Table | None
    raw_reason: str
    """Why there is no model that takes the ntuple's own columns."""
    speed: str
    service: Service | None
    export: Record


def section(export: Record | None, inference: Record | None, service: Record | None) -> str:
    """The section as HTML, which says what is missing."""
    return page.render("serving.html", serving=content(export, inference, service))


def updated(
    text: str, export: Record | None, inference: Record | None, service: Record | None
) -> str:
    """A page with this section in place of the one it has; unchanged if it has none."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return before + section(export, inference, service) + after if start and end else text


def content(export: Record | None, inference: Record | None, service: Record | None) -> Serving:
    """What the section shows. A service of another model than `export`'s is left out."""
    if not export or not service or service.get("model_sha256") != export.get("sha256"):
        service = None
    return Serving(
        models=_models(export) if export else None,
        raw_reason=(export or {}).get("raw_reason") or "",
        speed=_speed(inference or {}),
        service=_service(service) if service else None,
        export=page.flat(export or {}),
    )


def _models(export: Record) -> page.Table:
    """The models of the repository, one a row."""
    head = [
        "Model",
        "Size",
        "Most jets at once",
        "Memory a jet",
        "Jets within 1e-5",
        "Largest difference",
        "Checked in batches of",
    ]
    models = [export, export["raw"]] if export.get("raw") else [export]
    rows = []
    for model in models:
        parity, memory = model.get("parity") or {}, model.get("memory") or {}
        close = difference = page.MISSING
        if "share_close" in parity:
            close = f"{100 * parity['share_close']:.2f} % of {parity['num_jets']:,}"
        if "max_difference" in parity:
            difference = _difference(parity["max_difference"])
        most = model.get("max_batch_size")
        sizes = ", ".join(f"{size:,}" for size in parity.get("batch_sizes", []))
        rows.append(
            [
                model.get("model", page.MISSING),
                _megabytes(model.get("size_bytes")),
                f"{most:,}" if most else page.MISSING,
                _megabytes(memory.get("bytes_per_jet")),
                close,
                difference,
                sizes or page.MISSING,
            ]
        )
    return page.Table(head=head, rows=rows, kind="models")


def _megabytes(size: float | None) -> str:
    return page.MISSING if size is None else f"{1e-6 * size:.3g} MB"


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _speed(inference: Record) -> str:
    """Jets a second, and how they were measured; empty if they were not."""
    if not inference.get("jets_per_second"):
        return ""
    where = inference["provider"]
    if where == "CPU":
        where = f"{inference['threads']} threads of {inference['processor']}"
    return (
        f"{inference['jets_per_second']:,.0f} jets/s in batches of {inference['batch_size']:,}"
        f" ({where}; inputs prepared before)"
    )


def _service(service: Record) -> Service:
    golden = service["golden"]
    # Each model of the repository with the largest difference of its answers, by size of request.
    checked = {service["name"]: golden["max_difference"], **service.get("others", {})}
    round_trips = [
        (
            _jets(size),
            f"{times['median_ms']:.3g} ms (median of {times['repeats']};"
            f" {times['min_ms']:.3g} to {times['max_ms']:.3g})",
        )
        for size, times in (service.get("round_trips") or {}).items()
    ]
    return Service(
        where=f"{service['kind']} at {service['url']}",
        tolerance=f"{golden['tolerance']:g}",
        differences=page.Table(
            head=["Largest difference", *map(_jets, golden["max_difference"])],
            rows=[[name, *map(_difference, sizes.values())] for name, sizes in checked.items()],
            kind="models",
        ),
        round_trips=round_trips,
    )


def _jets(size: str) -> str:
    return f"{size} jet" if size == "1" else f"{size} jets"
