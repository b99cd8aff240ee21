"""Figures of the uncertainty that a quantile network gives for each jet.

The functions take the content of metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

from typing import Any

from reporting.drawing import (
    COLOURS,
    INK,
    REGION_LOOKS,
    SHIFT,
    Drawing,
    head,
    in_region,
    level,
    panels,
    points,
    pt_axis,
)
from reporting.records import Record


def coverage(metrics: Record) -> Drawing | None:
    """How many jets lie within the uncertainty predicted for them, against the pT of the file."""
    records = (metrics.get("uncertainty") or {}).get("pt")
    if not records:
        return None
    band = metrics["uncertainty"]["bands"][0]
    figure, (axes,) = panels()
    for place, (region, (marker, colour)) in enumerate(REGION_LOOKS.items()):
        of_region = in_region(records, region)
        x = [record["pt"] * SHIFT**place for record in of_region]
        shares = [record["coverage"] for record in of_region]
        points(axes, x, shares, 100, marker=marker, color=colour, label=region)
    level(axes, 100 * band["nominal"])
    lowest, highest = axes.get_ylim()
    axes.set_ylim(lowest, highest + 0.25 * (highest - lowest))
    axes.set_ylabel("Jets within their uncertainty (%)")
    axes.legend(loc="upper right", ncols=2)
    pt_axis(axes)
    axes.set_xlabel("Corrected $p_T$ of the file (GeV)")
    head(axes, f"{band['low']} to {band['high']}")
    caption = (
        f"Jets whose generator jet lies between the {band['low']} and {band['high']} that the model"
        f" gives for them, against the pT of the file. Dotted: {100 * band['nominal']:g} %, which"
        " right quantiles cover. Bars: binomial intervals."
    )
    farthest = max(records, key=lambda record: abs(record["coverage"]["value"] - band["nominal"]))
    most = (
        f"{100 * farthest['coverage']['value']:.1f} % ({farthest['region']}, {farthest['pt_range']}"
        " GeV)"
    )
    alt = (
        f"Coverage of {len(records)} bins of pT, expected {100 * band['nominal']:g} %; the farthest"
        f" from it is {most}."
    )
    return Drawing(name="uncertainty-coverage", caption=caption, alt=alt, figure=figure)


def widths(metrics: Record) -> Drawing | None:
    """The width measured in slices of the predicted one, with their ratio below."""
    records = (metrics.get("uncertainty") or {}).get("widths")
    if not records:
        return None
    figure, (top, below) = panels((3, 1), (10, 10))
    look: dict[str, Any] = {"color": COLOURS["model"], "marker": "o"}
    predicted = [100 * record["predicted"] for record in records]
    points(top, predicted, [one["measured"] for one in records], 100, label="Test jets", **look)
    ends = [0.9 * predicted[0], 1.05 * predicted[-1]]
    top.plot(ends, ends, color=INK, linewidth=1.5, linestyle=":", label="As predicted")
    ratios = [
        {key: value / record["predicted"] for key, value in record["measured"].items()}
        for record in records
    ]
    points(below, predicted, ratios, **look)
    level(below, 1)
    top.set_ylabel("Measured 68 % half-width (%)")
    below.set_ylabel("Ratio")
    below.set_xlabel("Predicted half-width (%)")
    top.legend(loc="upper left")
    head(top, "Per-jet uncertainty")
    caption = (
        "Slices of equally many jets by the uncertainty predicted for them, and the measured width"
        f" of log(pT / pT of the generator jet). Predicted from {predicted[0]:.1f} to"
        f" {predicted[-1]:.1f} %."
    )
    first, last = (100 * record["measured"]["value"] for record in (records[0], records[-1]))
    alt = (
        "Measured against predicted half-width of a jet:"
        f" {first:.1f} % where {predicted[0]:.1f} % is predicted,"
        f" {last:.1f} % where {predicted[-1]:.1f} %."
    )
    return Drawing(name="uncertainty-width", caption=caption, alt=alt, figure=figure)
