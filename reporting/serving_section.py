"""The section of a run's report that tells of the model as it is served: size, parity, speed, and
the service's own answers.

The report is written before the gate, when there is no service yet; the deploy step puts this
section anew into the page (`updated`). Its sources are model/export.json, the `inference` of
metrics.json, and service.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reporting import page

START, END = "<!-- serving: begin -->", "<!-- serving: end -->"


def section(export: Mapping | None, inference: Mapping | None, service: Mapping | None) -> str:
    """The section as HTML; whatever is None is said to be missing.

    A service of another model than `export`'s is not shown.
    """
    service = (
        service
        if export and service and service.get("model_sha256") == export.get("sha256")
        else None
    )
    parts = [
        _models(export) if export else "<p>No parity numbers were found (model/export.json).</p>",
        _speed(inference) if inference else "",
        (
            _service(service)
            if service
            else "<p>Not deployed yet when this page was written: the gate comes first.</p>"
        ),
        (
            page.facts(dict(page.flat(export)), "All that was recorded of the export")
            if export
            else ""
        ),
    ]
    return f"{START}{page.section('Serving', *parts)}{END}"


def updated(
    text: str, export: Mapping | None, inference: Mapping | None, service: Mapping | None
) -> str:
    """A page with this section in place of the one it has; unchanged if it has none."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    return before + section(export, inference, service) + after if start and end else text


def _models(export: Mapping) -> str:
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
    rows = [list(_model(one)) for one in (export, export.get("raw")) if one]
    note = (
        "<p>PyTorch against ONNX Runtime on the same validation jets, at every level of graph"
        " optimisation that the server may use: what was trained is what is served.</p>"
    )
    reason = export.get("raw_reason")
    missing = (
        f"<p>No model that takes the ntuple's own columns: {page.escaped(reason)}.</p>"
        if reason
        else ""
    )
    return note + page.table(head, rows, kind="models") + missing


def _model(one: Mapping) -> Iterator[str]:
    parity, memory = one.get("parity") or {}, one.get("memory") or {}
    yield one.get("model", "–")
    yield _with_unit(one.get("size_bytes"), 1e-6, "MB")
    yield f"{one['max_batch_size']:,}" if one.get("max_batch_size") else "–"
    yield _with_unit(memory.get("bytes_per_jet"), 1e-6, "MB")
    yield (
        f"{100 * parity['share_close']:.2f} % of {parity['num_jets']:,}"
        if "share_close" in parity
        else "–"
    )
    yield _difference(parity["max_difference"]) if "max_difference" in parity else "–"
    yield ", ".join(f"{size:,}" for size in parity.get("batch_sizes", [])) or "–"


def _with_unit(value: float | None, scale: float, unit: str) -> str:
    return "–" if value is None else f"{scale * value:.3g} {unit}"


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _speed(inference: Mapping) -> str:
    if not inference.get("jets_per_second"):
        return ""
    where = (
        f"{inference['threads']} threads of {inference['processor']}"
        if inference["provider"] == "CPU"
        else inference["provider"]
    )
    return (
        "<p>ONNX Runtime by itself, measured with the test jets:"
        f" {inference['jets_per_second']:,.0f} jets/s in batches of {inference['batch_size']:,}"
        f" ({page.escaped(where)}; inputs prepared before).</p>"
    )


def _service(service: Mapping) -> str:
    """What the service answered when it was deployed."""
    golden = service["golden"]
    checked = {service["name"]: golden["max_difference"], **service.get("others", {})}
    rows = [
        [name, *map(_difference, differences.values())] for name, differences in checked.items()
    ]
    where = page.escaped(f"{service['kind']} at {service['url']}")
    return (
        f"<p>When it was deployed, {where} gave the answers that PyTorch gave to the same jets"
        f" (allowed: {golden['tolerance']:g}).</p>"
        + page.table(
            ["Largest difference", *map(_jets, golden["max_difference"])], rows, kind="models"
        )
        + "".join(
            _round_trip(size, times) for size, times in (service.get("round_trips") or {}).items()
        )
    )


def _round_trip(size: str, times: Mapping[str, Any]) -> str:
    spread = (
        f"{times['median_ms']:.3g} ms (median of {times['repeats']}; {times['min_ms']:.3g} to"
        f" {times['max_ms']:.3g})"
    )
    return (
        f"<p>Request of {_jets(size)} as JSON, there and back, from the deploy step: {spread}.</p>"
    )


def _jets(size: str) -> str:
    return f"{size} jet" if size == "1" else f"{size} jets"
