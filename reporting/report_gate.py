"""Section of report.html on the gate: each checked number, its limit and its margin."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from common.measurements import Gate, GateCheck
from common.records import MetricsRecord
from reporting.page import MISSING, Table

NUM_NEAREST = 2
"""Checks of each quantity at the top of the page; a table below has all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateSection:
    """Content of the section."""

    mode: str
    rule: str
    num_tests: str
    level: str
    nearest: Table
    """The checks of each quantity that are nearest to their limit or farthest beyond it."""
    every: Table
    unmeasured: Sequence[str]


RULES = {
    "default": (
        "It refuses a model whose margin lies below zero with its whole interval: the jets show"
        " that it is worse than allowed"
    ),
    "strict": (
        "It refuses a model unless each margin lies above zero with its whole interval: the jets"
        " show that it is within the limits"
    ),
}


def gate_section(metrics: MetricsRecord) -> GateSection | None:
    """Return the section; None for a run of an earlier version, which recorded no checks."""
    gate = metrics.gate
    if gate is None:
        return None
    return GateSection(
        mode=metrics.config.gate,
        rule=RULES[metrics.config.gate],
        num_tests=f"{gate.num_tests:,}",
        level=f"{100 * gate.level:.3g} %" if gate.level < 0.99 else f"{100 * gate.level:.2f} %",
        nearest=table_of(nearest_checks(gate), with_sizes=False),
        every=table_of(gate.checks, with_sizes=True),
        unmeasured=[entry.text for entry in gate.unmeasured],
    )


def nearest_checks(gate: Gate) -> list[GateCheck]:
    """Return the checks with the least margin, NUM_NEAREST of each quantity.

    Margins are compared in units of half the width of their intervals.
    """
    checks_by_quantity: dict[str, list[GateCheck]] = {}
    for check in gate.checks:
        checks_by_quantity.setdefault(check.quantity, []).append(check)
    selection = []
    for checks in checks_by_quantity.values():
        selection += sorted(checks, key=_distance)[:NUM_NEAREST]
    return selection


def _distance(check: GateCheck) -> float:
    """Return the margin divided by half the width of its interval."""
    margin = check.margin
    return margin.value / max((margin.high - margin.low) / 2, 1e-12)


def table_of(checks: Sequence[GateCheck], *, with_sizes: bool) -> Table:
    """Return a table of checks: value, limit, margin, verdict; jets if `with_sizes`."""
    rows = []
    for check in checks:
        unit = f" {check.unit}" if check.unit else ""
        digits = 2 if check.unit else 4
        sign = "+" if check.quantity in ("gain", "closure", "coverage") else ""
        standard = MISSING
        if check.standard is not None:
            standard = f"{check.standard:{sign}.{digits}f}{unit}"
        limit = f"{check.limit:.{digits}f}{unit}"
        # A gain must exceed its limit; closure and coverage are limited in both directions.
        if check.quantity == "gain":
            limit = f"above {limit}"
        elif check.quantity in ("closure", "coverage"):
            limit = f"±{limit}"
        row = [check.quantity, check.where]
        if with_sizes:
            row.append(f"{check.num_jets:,}")
        row += [
            f"{check.value:{sign}.{digits}f}{unit}",
            standard,
            limit,
            check.margin.text(digits=digits, unit=unit),
            "passes" if check.passed else "refused",
        ]
        rows.append(row)
    sizes = ["Number of jets"] if with_sizes else []
    head = [
        "Quantity",
        "Jets",
        *sizes,
        "This model",
        "Standard JEC",
        "Allowed",
        "Margin",
        "Verdict",
    ]
    return Table(head=head, rows=rows, kind="stacked")
