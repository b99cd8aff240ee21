"""Figures of closure: the bias of the median response against pT, eta and other quantities.

The functions take metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.measurements import Calibrated, Interval
from common.records import MetricsRecord
from physics.groups import MIN_JETS
from reporting.drawing import (
    INK,
    REGION_TEXT,
    SHIFT,
    Drawing,
    bins_of_region,
    calibration_look,
    head,
    legend_above,
    level,
    middle,
    panels,
    points,
    pt_axis,
    slug,
)
from reporting.few_jets import hatch, hatch_pt, missing_eta_slices, missing_pt_bins, too_few

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESIDUAL_LABELS = {
    "rhoAll": r"$\rho$ (GeV)",
    "PV_npvsGood": "Reconstructed vertices",
    "jetMult": "Particles in the jet",
    "jetPhi": r"$\phi$",
    "QG_mult": "Particles in the jet (tracks, neutrals above 1 GeV)",
}


def closure(metrics: MetricsRecord, region: str) -> Drawing | None:
    """Draw the bias of the median response in the pT bins of a region above the closure limit."""
    lowest, limit = metrics.closure.from_gev, 100 * metrics.config.max_closure
    # The bin of all jets is shown at the top of the report.
    bins = [bin_ for bin_ in metrics.closure.bins if not bin_.is_whole(lowest)]
    bins = bins_of_region(bins, region)
    if not bins:
        return None
    figure, (axes,) = panels()
    middles = np.array([middle(bin_) for bin_ in bins])
    for place, name in enumerate(_calibrations_to_draw(bins)):
        biases = [bin_.by_calibration()[name] for bin_ in bins]
        points(axes, middles * SHIFT**place, biases, 100, **calibration_look(name))
    _bias_axis(axes, limit)
    missing = missing_pt_bins(metrics, region, bins, lowest)
    hatch_pt(axes, missing)
    legend_above(axes, ncols=2)
    head(axes, REGION_TEXT[region])
    pt_axis(axes)
    caption = (
        f"Bias of the median response in the {region} from {lowest:g} GeV up. "
        f"Band: ±{limit:g} %, which the gate allows, or the standard JEC's own bias."
        f"{too_few(missing)}"
    )
    farthest = max(bins, key=lambda bin_: abs(bin_.model.value))
    most = f"{100 * farthest.model.value:+.2f} % ({farthest.pt_range} GeV)"
    alt = f"Closure in {len(bins)} bins of the {region}; the model's largest bias is {most}."
    return Drawing(name=f"closure-{region}", caption=caption, alt=alt, figure=figure)


def eta(metrics: MetricsRecord) -> Drawing | None:
    """Draw the bias of the median response against eta."""
    slices = metrics.eta
    if not slices:
        return None
    figure, (axes,) = panels()
    middles = [(slice_.eta_low + slice_.eta_high) / 2 for slice_ in slices]
    _draw_biases(axes, middles, slices, step=0.05)
    missing = missing_eta_slices(metrics)
    hatch(axes, [(slice_.low, slice_.high) for slice_ in missing])
    axes.set_xlabel(r"$\eta^{gen}$")
    _finish(axes, metrics)
    farthest = max(slices, key=lambda slice_: abs(slice_.model.value))
    most = (
        f"{100 * farthest.model.value:+.2f} % between eta {farthest.eta_low:g} and"
        f" {farthest.eta_high:g}"
    )
    return Drawing(
        name="eta",
        caption=f"Residual bias against η from {metrics.closure.from_gev:g} GeV up."
        f"{too_few(missing)}",
        alt=f"Bias against eta; the model's largest is {most}.",
        figure=figure,
    )


def residual(metrics: MetricsRecord, quantity: str) -> Drawing | None:
    """Draw the bias of the median response against another quantity of the jet or its event."""
    slices = metrics.residuals[quantity]
    if not slices:
        return None
    figure, (axes,) = panels()
    middles = [slice_.middle for slice_ in slices]
    _draw_biases(axes, middles, slices, step=0.01 * (middles[-1] - middles[0]))
    # Users may give a column any name, so that only the labels above are parsed as mathematics.
    label = RESIDUAL_LABELS.get(quantity, quantity)
    axes.set_xlabel(label, parse_math=quantity in RESIDUAL_LABELS)
    _finish(axes, metrics)
    standard = max(abs(slice_.standard.value) for slice_ in slices)
    model = max(abs(slice_.model.value) for slice_ in slices)
    return Drawing(
        name=f"residual-{slug(quantity)}",
        caption=(
            f"Residual bias against {quantity}, slices of equally many jets from"
            f" {metrics.closure.from_gev:g} GeV up.{_missing_slices(metrics, quantity)}"
        ),
        alt=(
            f"Bias against {quantity}: at most {100 * standard:.2f} % with the standard JEC,"
            f" {100 * model:.2f} % with the model."
        ),
        figure=figure,
    )


def _missing_slices(metrics: MetricsRecord, quantity: str) -> str:
    """Return the sentence of a caption on slices with too few jets; empty without any."""
    slices = []
    for entry in metrics.unmeasured:
        if entry.quantity == "response" and entry.where.startswith(f"{quantity} from "):
            slices.append(entry.where.removeprefix(f"{quantity} from "))
    return f" Not shown, for fewer than {MIN_JETS} jets: {', '.join(slices)}." if slices else ""


def _draw_biases(
    axes: Axes, middles: Sequence[float], slices: Sequence[Calibrated[Interval]], step: float
) -> None:
    """Draw the bias of each calibration at the middles of the slices.

    Args:
        axes: The axes to draw on.
        middles: Middle of each slice, in the unit of x.
        slices: The biases of each calibration, one entry a slice.
        step: Distance in x between two calibrations in a slice, so that error bars do not overlap.
    """
    for place, name in enumerate(_calibrations_to_draw(slices)):
        biases = [slice_.by_calibration()[name] for slice_ in slices]
        points(axes, np.asarray(middles) + step * place, biases, 100, **calibration_look(name))


def _calibrations_to_draw(bins: Sequence[Calibrated[Interval]]) -> list[str]:
    """Return the calibrations whose closure is drawn: all but the uncorrected response.

    The bias of the uncorrected response is so large that it would set the scale of the figure.
    """
    return [name for name in bins[0].by_calibration() if name != "uncorrected"]


def _finish(axes: Axes, metrics: MetricsRecord) -> None:
    """Add the bias axis, the legend and the title to a figure of slices."""
    _bias_axis(axes, 100 * metrics.config.max_closure)
    legend_above(axes, ncols=2)
    head(axes, rf"$p_T^{{gen}} > {metrics.closure.from_gev:g}$ GeV")


def _bias_axis(axes: Axes, limit: float) -> None:
    """Set up a y axis in per cent, symmetric about zero, with a band from -limit to +limit."""
    axes.axhspan(-limit, limit, color=INK, alpha=0.1, linewidth=0)
    level(axes, 0)
    reach = max(abs(edge) for edge in (*axes.get_ylim(), limit))
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_ylabel("Median response − 1 (%)")
