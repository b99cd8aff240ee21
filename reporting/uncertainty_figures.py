"""Figures of the uncertainty that a quantile network gives for each jet.

The functions take the uncertainty of metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.measurements import CoverageBin, Interval, Uncertainty
from physics.groups import CURVES, MIN_JETS
from reporting.drawing import (
    INK,
    OPEN,
    SHIFT,
    Drawing,
    bins_of_region,
    calibration_look,
    head,
    legend_above,
    level,
    panels,
    points,
    pt_axis,
    region_look,
)


def coverage(uncertainty: Uncertainty | None) -> Drawing | None:
    """Draw the share of jets within their predicted uncertainty, against reconstructed pT."""
    if uncertainty is None or not uncertainty.pt:
        return None
    band, bins = uncertainty.bands[0], uncertainty.pt
    figure, (axes,) = panels()
    for place, region in enumerate(OPEN):
        x, shares = [], []
        for bin_ in bins_of_region(bins, region):
            x.append(bin_.pt * SHIFT**place)
            shares.append(bin_.coverage)
        if x:
            points(axes, x, shares, 100, **region_look("model", region))
    level(axes, 100 * band.nominal)
    axes.set_ylabel("Jets within their uncertainty (%)")
    legend_above(axes, ncols=2)
    pt_axis(axes)
    # Among jets of one generated pT no interval covers as it should: that is what it is for.
    axes.set_xlabel("Corrected $p_T$ of the file (GeV)")
    head(axes, f"{band.low} to {band.high}")
    caption = (
        f"Jets whose generator jet lies between the {band.low} and {band.high} that the model"
        f" gives for them, against the pT of the file. Dotted: {100 * band.nominal:g} %, which"
        f" right quantiles cover. Bars: binomial intervals.{_missing_bins(bins)}"
    )
    farthest = max(bins, key=lambda bin_: abs(bin_.coverage.value - band.nominal))
    most = f"{100 * farthest.coverage.value:.1f} % ({farthest.region}, {farthest.pt_range} GeV)"
    alt = (
        f"Coverage of {len(bins)} bins of pT, expected {100 * band.nominal:g} %; the farthest"
        f" from it is {most}."
    )
    return Drawing(name="uncertainty-coverage", caption=caption, alt=alt, figure=figure)


def _missing_bins(bins: Sequence[CoverageBin]) -> str:
    """Return the sentence of a caption on bins with too few jets; empty without any."""
    measured_bins = {(bin_.region, bin_.pt_low) for bin_ in bins}
    missing = [
        f"{bin_.region} {bin_.range} GeV"
        for bin_ in CURVES
        if (bin_.region, bin_.low) not in measured_bins
    ]
    return f" Not shown, for fewer than {MIN_JETS} jets: {', '.join(missing)}." if missing else ""


def widths(uncertainty: Uncertainty | None) -> Drawing | None:
    """Draw the measured width against the predicted one, with their ratio below."""
    if uncertainty is None or not uncertainty.widths:
        return None
    predicted, intervals, ratios = [], [], []
    for bin_ in uncertainty.widths:
        # Where no width is predicted there is no ratio to it.
        if bin_.predicted <= 0:
            continue
        width = bin_.measured
        predicted.append(100 * bin_.predicted)
        intervals.append(width)
        ratios.append(
            Interval(
                value=width.value / bin_.predicted,
                low=width.low / bin_.predicted,
                high=width.high / bin_.predicted,
            )
        )
    if not predicted:
        return None
    figure, (top, below) = panels((3, 1), (10, 10))
    look = calibration_look("model")
    points(top, predicted, intervals, 100, **look)
    ends = [0.9 * predicted[0], 1.05 * predicted[-1]]
    top.plot(ends, ends, color=INK, linewidth=1.5, linestyle=":", label="As predicted")
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
    first, last = 100 * intervals[0].value, 100 * intervals[-1].value
    alt = (
        "Measured against predicted half-width of a jet:"
        f" {first:.1f} % where {predicted[0]:.1f} % is predicted,"
        f" {last:.1f} % where {predicted[-1]:.1f} %."
    )
    return Drawing(name="uncertainty-width", caption=caption, alt=alt, figure=figure)
