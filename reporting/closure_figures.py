"""Figures of closure: the bias of the median response against pT, eta and other quantities.

The functions take the content of metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reporting.drawing import (
    INK,
    REGION_LOOKS,
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
    slug,
)
from reporting.records import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESIDUAL_LABELS = {
    "rhoAll": r"$\rho$ (GeV)",
    "PV_npvsGood": "Reconstructed vertices",
    "jetMult": "Particles in the jet",
    "QG_mult": "Particles in the jet (tracks, neutrals above 1 GeV)",
}


def closure(metrics: Record, max_closure: float) -> Drawing | None:
    """Bias of the median response in the bins that the gate judges."""
    lowest = metrics["closure"]["from_gev"]
    records = [
        record
        for record in metrics["closure"]["bins"]
        # The bin of all jets is a headline of the report.
        if not (record["pt_low"] == lowest and record["pt_high"] is None)
    ]
    if not records:
        return None
    figure, (axes,) = panels()
    for place, (region, (marker, colour)) in enumerate(REGION_LOOKS.items()):
        of_region = in_region(records, region)
        x = [middle(record) * SHIFT**place for record in of_region]
        biases = [record["model"] for record in of_region]
        points(axes, x, biases, 100, marker=marker, color=colour, label=region)
    _bias_axis(axes, max_closure)
    axes.legend(title="This model", loc="upper right", ncols=2)
    head(axes, "Closure")
    pt_axis(axes)
    caption = (
        f"Closure of the model from {lowest:g} GeV up. "
        f"The gate asks that each interval reaches into the band, ±{100 * max_closure:g} %."
    )
    farthest = max(records, key=lambda record: abs(record["model"]["value"]))
    most = (
        f"{100 * farthest['model']['value']:+.2f} % ({farthest['region']}, {farthest['pt_range']}"
        " GeV)"
    )
    alt = f"Closure in {len(records)} bins; the largest bias is {most}."
    return Drawing(name="closure", caption=caption, alt=alt, figure=figure)


def eta(metrics: Record, max_closure: float) -> Drawing | None:
    """Bias of the median response against eta."""
    records = metrics["eta"]
    if not records:
        return None
    figure, (axes,) = panels()
    for place, name in enumerate(_corrected(records[0])):
        x = [(record["eta_low"] + record["eta_high"]) / 2 + 0.05 * place for record in records]
        points(axes, x, [record[name] for record in records], 100, **calibration_look(name))
    axes.set_xlabel(r"$\eta^{gen}$")
    _bias_axis(axes, max_closure)
    axes.legend(loc="upper right", ncols=2)
    lowest = metrics["closure"]["from_gev"]
    head(axes, rf"$p_T^{{gen}} > {lowest:g}$ GeV")
    farthest = max(records, key=lambda record: abs(record["model"]["value"]))
    most = (
        f"{100 * farthest['model']['value']:+.2f} % between eta {farthest['eta_low']:g} and"
        f" {farthest['eta_high']:g}"
    )
    return Drawing(
        name="eta",
        caption=f"Residual bias against η from {lowest:g} GeV up.",
        alt=f"Bias against eta; the model's largest is {most}.",
        figure=figure,
    )


def residual(metrics: Record, quantity: str, max_closure: float) -> Drawing | None:
    """Bias of the median response against another quantity of the jet or its event."""
    records = metrics["residuals"][quantity]
    if not records:
        return None
    figure, (axes,) = panels()
    middles = [record["middle"] for record in records]
    step = 0.01 * (middles[-1] - middles[0])
    for place, name in enumerate(_corrected(records[0])):
        x = [value + step * place for value in middles]
        points(axes, x, [record[name] for record in records], 100, **calibration_look(name))
    # A column of the user's may be called anything; only our own labels hold mathematics.
    label = RESIDUAL_LABELS.get(quantity, quantity)
    axes.set_xlabel(label, parse_math=quantity in RESIDUAL_LABELS)
    _bias_axis(axes, max_closure)
    axes.legend(loc="upper right", ncols=2)
    lowest = metrics["closure"]["from_gev"]
    head(axes, rf"$p_T^{{gen}} > {lowest:g}$ GeV")
    standard, model = (
        max(abs(record[name]["value"]) for record in records) for name in ("standard", "model")
    )
    return Drawing(
        name=f"residual-{slug(quantity)}",
        caption=(
            f"Residual bias against {quantity}, slices of equally many jets from {lowest:g} GeV up."
        ),
        alt=(
            f"Bias against {quantity}: at most {100 * standard:.2f} % with the standard JEC,"
            f" {100 * model:.2f} % with the model."
        ),
        figure=figure,
    )


def _corrected(record: Record) -> list[str]:
    """The calibrations but for none at all, whose bias would set the scale of the figure."""
    return [name for name in calibrations(record) if name != "uncorrected"]


def _bias_axis(axes: Axes, max_closure: float) -> None:
    """Make y per cent about zero, with the band allowed and room for a legend above the points."""
    axes.axhspan(-100 * max_closure, 100 * max_closure, color=INK, alpha=0.1, linewidth=0)
    level(axes, 0)
    reach = max(abs(edge) for edge in (*axes.get_ylim(), 100 * max_closure))
    axes.set_ylim(-1.1 * reach, 1.6 * reach)
    axes.set_ylabel("Median response − 1 (%)")
