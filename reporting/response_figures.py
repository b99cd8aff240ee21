"""Figures of response and resolution against pT, of the response distribution, and by flavour.

The functions take metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from common.measurements import Interval, Response, ResponseBin
from common.records import MetricsRecord
from physics.groups import FLAVOUR_BINS, MIN_JETS
from reporting.drawing import (
    CALIBRATIONS,
    FLAVOURS,
    INK,
    PT_RANGE,
    REGION_TEXT,
    SHIFT,
    Drawing,
    Look,
    bins_of_region,
    calibration_look,
    head,
    legend_above,
    level,
    middle,
    panels,
    points,
    pt_axis,
)
from reporting.few_jets import hatch_pt, missing_pt_bins, too_few

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE_SHIFT = 1.1
"""Factor in pT between the points of two flavours in a bin; bins of flavours are wide."""

Quantity: TypeAlias = Callable[[Response], Interval]
"""Returns one number of a measured response."""


def median(response: Response) -> Interval:
    """Return the median response."""
    return response.median


def resolution(response: Response) -> Interval:
    """Return the interquartile range divided by the median."""
    return response.resolution


def response_curve(metrics: MetricsRecord, region: str) -> Drawing | None:
    """Draw the median response against pT_gen, with the ratio to the standard JEC below."""
    bins = bins_of_region(metrics.curves, region)
    if not bins:
        return None
    figure, (top, below) = panels((3, 1), (10, 10))
    _draw_calibrations(top, bins, median)
    reach = _draw_ratios(below, bins)
    missing = missing_pt_bins(metrics, region, bins)
    limit, lowest = metrics.config.max_closure, metrics.closure.from_gev
    top.axhspan(1 - limit, 1 + limit, color=INK, alpha=0.1, linewidth=0)
    # Closure is not judged where the cut on reconstructed pT bends the response.
    top.axvspan(PT_RANGE[0], lowest, color=INK, alpha=0.06, linewidth=0)
    below.set_ylim(1 - 1.1 * reach, 1 + 1.1 * reach)
    for axes in (top, below):
        level(axes, 1)
        hatch_pt(axes, missing)
    top.set_ylabel("Median response")
    below.set_ylabel("Over JEC")
    legend_above(top, ncols=2)
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Median response in the {region}. Band: ±{100 * limit:g} %, the bias that the gate allows."
        f" Grey below {lowest:g} GeV: the cut on reconstructed pT keeps"
        " upward fluctuations there, for any calibration. Below: the ratio to the standard JEC on"
        f" the same jets{'' if bins[0].ratio else ', without intervals'}.{too_few(missing)}"
    )
    return Drawing(
        name=f"response-{region}",
        caption=caption,
        alt=_first_and_last(bins, median, f"Median response, {region}"),
        figure=figure,
    )


def resolution_curve(metrics: MetricsRecord, region: str) -> Drawing | None:
    """Draw the resolution against pT_gen, with the gain over the standard JEC below."""
    bins = bins_of_region(metrics.curves, region)
    if not bins:
        return None
    figure, (top, below) = panels((3, 1.3), (10, 10))
    _draw_calibrations(top, bins, resolution)
    missing = missing_pt_bins(metrics, region, bins)
    for axes in (top, below):
        hatch_pt(axes, missing)
    x, gains = [bin_.pt for bin_ in bins], [bin_.gain for bin_ in bins]
    points(below, x, gains, **calibration_look("model"))
    level(below, 0)
    top.set_ylim(bottom=0)
    legend_above(top, ncols=2)
    top.set_ylabel("Resolution (IQR / median)")
    below.set_ylabel("Gain (%)")
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Resolution in the {region}, and by how much the model's is better than the standard JEC's"
        f" on the same jets (paired interval).{too_few(missing)}"
    )
    return Drawing(
        name=f"resolution-{region}",
        caption=caption,
        alt=_first_and_last(bins, resolution, f"Resolution, {region}"),
        figure=figure,
    )


def _draw_calibrations(axes: Axes, bins: Sequence[ResponseBin], quantity: Quantity) -> None:
    """Draw a quantity of each calibration against the pT of the bins."""
    pt = np.array([bin_.pt for bin_ in bins])
    for place, name in enumerate(bins[0].by_calibration()):
        intervals = [quantity(bin_.by_calibration()[name]) for bin_ in bins]
        points(axes, pt * SHIFT**place, intervals, **calibration_look(name))


def _draw_ratios(axes: Axes, bins: Sequence[ResponseBin]) -> float:
    """Draw the median of each calibration over that of the standard JEC, with paired intervals.

    Runs of earlier versions record no intervals of ratios; their points have none.

    Returns:
        The largest distance of an interval's end from 1, at least 0.01.
    """
    pt, farthest = np.array([bin_.pt for bin_ in bins]), 0.01
    # The ratio of the uncorrected response would set the scale of the panel.
    names = [n for n in bins[0].by_calibration() if n not in ("standard", "uncorrected")]
    for place, name in enumerate(names):
        ratios = [bin_.ratio.get(name) or _ratio(bin_, name) for bin_ in bins]
        points(axes, pt * SHIFT**place, ratios, **calibration_look(name))
        for ratio in ratios:
            farthest = max(farthest, ratio.high - 1, 1 - ratio.low)
    return farthest


def _ratio(bin_: ResponseBin, name: str) -> Interval:
    """Return the ratio of medians as an interval of zero length."""
    value = bin_.by_calibration()[name].median.value / bin_.standard.median.value
    return Interval(value=value, low=value, high=value)


def _first_and_last(bins: Sequence[ResponseBin], quantity: Quantity, what: str) -> str:
    """Describe the first and the last point of each curve."""
    first, last = bins[0], bins[-1]
    parts = []
    for name, response in first.by_calibration().items():
        start, end = quantity(response), quantity(last.by_calibration()[name])
        parts.append(
            f"{CALIBRATIONS[name].label} {start.value:.3f} at {first.pt:.0f} GeV, "
            f"{end.value:.3f} at {last.pt:.0f} GeV"
        )
    return f"{what} against generated pT: " + "; ".join(parts) + "."


def distribution(metrics: MetricsRecord, region: str) -> Drawing | None:
    """Draw a histogram of the response above 30 GeV."""
    import mplhep

    histograms = metrics.distribution.counts.get(region)
    if histograms is None or not any(map(sum, histograms.by_calibration().values())):
        return None
    figure, (axes,) = panels()
    for name, counts in histograms.by_calibration().items():
        mplhep.histplot(
            counts,
            metrics.distribution.edges,
            ax=axes,
            color=CALIBRATIONS[name].colour,
            linestyle=CALIBRATIONS[name].dashes,
            label=CALIBRATIONS[name].label,
            linewidth=2.5,
            yerr=False,
        )
    axes.axvline(1, color=INK, linewidth=1.5, linestyle=":")
    axes.set_xlabel(r"Response $p_T / p_T^{gen}$")
    axes.set_ylabel("Jets")
    axes.legend(loc="upper right")
    head(axes, REGION_TEXT[region])
    num_far = metrics.num_far.by_calibration()
    far = ", ".join(f"{CALIBRATIONS[name].label} {number:,}" for name, number in num_far.items())
    caption = (
        f"Response of all {region} jets above 30 GeV. Jets off by more than a factor e, in both"
        f" regions: {far}."
    )
    return Drawing(name=f"distribution-{region}", caption=caption, alt=caption, figure=figure)


def flavour(metrics: MetricsRecord, region: str) -> Drawing | None:
    """Draw the median response of each flavour against pT_gen, one panel a calibration."""
    lowest = metrics.flavour.from_gev
    bins = bins_of_region(metrics.flavour.bins, region)
    # The table has the bin of all jets.
    bins = [bin_ for bin_ in bins if not bin_.is_whole(lowest)]
    if not bins:
        return None
    figure, (top, below) = panels((1, 1), (10, 10))
    for axes, calibration in ((top, "standard"), (below, "model")):
        look = CALIBRATIONS[calibration]
        for place, (name, marker) in enumerate(FLAVOURS.items()):
            x, medians = [], []
            for bin_ in bins:
                if bin_.flavour == name:
                    x.append(middle(bin_) * WIDE_SHIFT ** (place - 1.5))
                    medians.append(bin_.by_calibration()[calibration])
            if x:
                looks: Look = {"color": look.colour, "marker": marker, "markersize": 13}
                points(axes, x, medians, label=name, **looks)
        level(axes, 1)
        axes.text(
            0.03, 0.95, look.label, transform=axes.transAxes, fontsize=22, verticalalignment="top"
        )
        axes.set_ylabel("Median response")
    # Both panels have the same scale, so that their spreads can be compared.
    lower = min(top.get_ylim()[0], below.get_ylim()[0])
    upper = max(top.get_ylim()[1], below.get_ylim()[1])
    top.set_ylim(lower, upper)
    legend_above(top, ncols=4, columnspacing=1, handletextpad=0.2)
    below.set_ylim(top.get_ylim())
    head(top, REGION_TEXT[region])
    pt_axis(below)
    caption = (
        f"Response by flavour in the {region}: the closer together, the less the calibration"
        " depends on the flavour of the jet."
    )
    if missing := _missing_flavours(metrics, region):
        caption += f" Not shown, for fewer than {MIN_JETS} jets: {missing}."
    alt = f"Median response by flavour and pT, {region}."
    if entry := metrics.flavour.regions.get(region):
        standard, model = entry.spread.standard.value, entry.spread.model.value
        alt = (
            f"Median response by flavour, {region}: spread {100 * standard:.2f} % with the standard"
            f" JEC, {100 * model:.2f} % with the model."
        )
    return Drawing(name=f"flavour-{region}", caption=caption, alt=alt, figure=figure)


def _missing_flavours(metrics: MetricsRecord, region: str) -> str:
    """Name flavours and pT ranges of a region with too few jets; empty without any."""
    lowest = metrics.flavour.from_gev
    measured_bins = set()
    for bin_ in bins_of_region(metrics.flavour.bins, region):
        measured_bins.add((bin_.flavour, bin_.pt_low))
    missing = []
    for pt_bin in FLAVOUR_BINS:
        # The whole region has a table.
        if pt_bin.region != region or pt_bin.low == lowest:
            continue
        for name in FLAVOURS:
            if (name, pt_bin.low) not in measured_bins:
                missing.append(f"{name} at {pt_bin.range} GeV")
    return ", ".join(missing)
