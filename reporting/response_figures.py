"""Figures of response and resolution against pT, of the response's distribution, and by flavour.

The functions take the content of metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence

from reporting.drawing import (
    BLUE,
    COLOURS,
    INK,
    LABELS,
    ORANGE,
    PT_RANGE,
    PURPLE,
    RED,
    REGION_TEXT,
    SHIFT,
    Drawing,
    calibration_look,
    calibrations,
    head,
    in_region,
    level,
    middle,
    panels,
    points,
    pt_axis,
)
from reporting.records import Record

# The markers tell flavours apart without colour.
FLAVOUR_LOOKS = {"uds": ("o", BLUE), "c": ("^", ORANGE), "b": ("s", RED), "g": ("D", PURPLE)}


def response_curve(metrics: Record, region: str, max_closure: float) -> Drawing | None:
    """Median response against pT_gen, with the ratio to the standard JEC below."""
    records = in_region(metrics["curves"], region)
    if not records:
        return None
    figure, (top, below) = panels((3, 1), (10, 10))
    for place, name in enumerate(calibrations(records[0])):
        x = [record["pt"] * SHIFT**place for record in records]
        points(top, x, [record[name]["median"] for record in records], **calibration_look(name))
    ratio = [
        record["model"]["median"]["value"] / record["standard"]["median"]["value"]
        for record in records
    ]
    x = [record["pt"] for record in records]
    below.plot(x, ratio, color=COLOURS["model"], marker="o", linestyle="none", markersize=9)
    top.axhspan(1 - max_closure, 1 + max_closure, color=INK, alpha=0.1, linewidth=0)
    top.axvspan(PT_RANGE[0], metrics["closure"]["from_gev"], color=INK, alpha=0.06, linewidth=0)
    reach = max(0.01, 1.2 * max(abs(value - 1) for value in ratio))
    below.set_ylim(1 - reach, 1 + reach)
    for axes in (top, below):
        level(axes, 1)
    top.set_ylabel("Median response")
    below.set_ylabel("Ratio")
    top.legend(loc="best")
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Median response in the {region}. Band: ±{100 * max_closure:g} %, the closure allowed."
        f" Grey below {metrics['closure']['from_gev']:g} GeV: the cut on reconstructed pT keeps"
        " upward fluctuations there, for any calibration."
    )
    return Drawing(
        name=f"response-{region}",
        caption=caption,
        alt=_first_and_last(records, "median", f"Median response, {region}"),
        figure=figure,
    )


def resolution_curve(metrics: Record, region: str) -> Drawing | None:
    """Resolution against pT_gen, with the gain over the standard JEC below."""
    records = in_region(metrics["curves"], region)
    if not records:
        return None
    figure, (top, below) = panels((3, 1.3), (10, 10))
    for place, name in enumerate(calibrations(records[0])):
        x = [record["pt"] * SHIFT**place for record in records]
        points(top, x, [record[name]["resolution"] for record in records], **calibration_look(name))
    x = [record["pt"] for record in records]
    points(below, x, [record["gain"] for record in records], color=COLOURS["model"], marker="o")
    level(below, 0)
    top.set_ylim(bottom=0)
    top.set_ylabel("Resolution (IQR / median)")
    below.set_ylabel("Gain (%)")
    top.legend(loc="upper right")
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Resolution in the {region}, and by how much the model's is better than the standard JEC's"
        " on the same jets (paired interval)."
    )
    return Drawing(
        name=f"resolution-{region}",
        caption=caption,
        alt=_first_and_last(records, "resolution", f"Resolution, {region}"),
        figure=figure,
    )


def _first_and_last(records: Sequence[Record], quantity: str, what: str) -> str:
    """The first and the last point of each curve in words."""
    first, last = records[0], records[-1]
    parts = [
        f"{LABELS[name]} {first[name][quantity]['value']:.3f} at {first['pt']:.0f} GeV, "
        f"{last[name][quantity]['value']:.3f} at {last['pt']:.0f} GeV"
        for name in calibrations(first)
    ]
    return f"{what} against generated pT: " + "; ".join(parts) + "."


def distribution(metrics: Record, region: str) -> Drawing | None:
    """Histogram of the response above 30 GeV."""
    import mplhep

    counts = metrics["distribution"]["counts"].get(region, {})
    if not counts or not any(map(sum, counts.values())):
        return None
    figure, (axes,) = panels()
    for name in calibrations(counts):
        mplhep.histplot(
            counts[name],
            metrics["distribution"]["edges"],
            ax=axes,
            color=COLOURS[name],
            label=LABELS[name],
            linewidth=2.5,
            yerr=False,
        )
    axes.axvline(1, color=INK, linewidth=1.5, linestyle=":")
    axes.set_xlabel(r"Response $p_T / p_T^{gen}$")
    axes.set_ylabel("Jets")
    axes.legend(loc="upper right")
    head(axes, REGION_TEXT[region])
    far = ", ".join(f"{LABELS[name]} {number:,}" for name, number in metrics["num_far"].items())
    caption = (
        f"Response of all {region} jets above 30 GeV. Jets off by more than a factor e, in both"
        f" regions: {far}."
    )
    return Drawing(name=f"distribution-{region}", caption=caption, alt=caption, figure=figure)


def flavour(metrics: Record, region: str) -> Drawing | None:
    """Median response of each flavour against pT_gen: the standard JEC above, the model below."""
    lowest = metrics["flavour"]["from_gev"]
    records = [
        record
        for record in in_region(metrics["flavour"]["bins"], region)
        # The bin of all jets stands in the table.
        if not (record["pt_low"] == lowest and record["pt_high"] is None)
    ]
    if not records:
        return None
    figure, (top, below) = panels((1, 1), (10, 10))
    for axes, calibration in ((top, "standard"), (below, "model")):
        for place, (name, (marker, colour)) in enumerate(FLAVOUR_LOOKS.items()):
            of_flavour = [record for record in records if record["flavour"] == name]
            x = [middle(record) * SHIFT ** (2 * place - 3) for record in of_flavour]
            medians = [record[calibration] for record in of_flavour]
            points(axes, x, medians, color=colour, marker=marker, label=name)
        level(axes, 1)
        axes.text(0.03, 0.05, LABELS[calibration], transform=axes.transAxes, fontsize=22)
        axes.set_ylabel("Median response")
    # The same scale on both: the spread is what is compared.
    lower = min(axes.get_ylim()[0] for axes in (top, below))
    upper = max(axes.get_ylim()[1] for axes in (top, below))
    for axes in (top, below):
        axes.set_ylim(lower, upper)
    top.legend(ncols=4, loc="upper right", columnspacing=1, handletextpad=0.2)
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Response by flavour in the {region}: the closer together, the less the calibration"
        " depends on what made the jet."
    )
    return Drawing(
        name=f"flavour-{region}",
        caption=caption,
        alt=_spreads(metrics, region),
        figure=figure,
    )


def _spreads(metrics: Record, region: str) -> str:
    """The spread between flavours in words."""
    entry = metrics["flavour"]["regions"].get(region)
    if not entry:
        return f"Median response by flavour and pT, {region}."
    standard, model = (100 * entry["spread"][name]["value"] for name in ("standard", "model"))
    return (
        f"Median response by flavour, {region}: spread {standard:.2f} % with the standard JEC,"
        f" {model:.2f} % with the model."
    )
