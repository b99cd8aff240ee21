"""Figures of pile-up, closure in fine bins of eta, and the importance of each group of inputs.

The functions take metrics.json and return None where there is nothing to draw.
"""

from __future__ import annotations

import numpy as np

from common.records import MetricsRecord
from physics.groups import PILEUP_BINS
from reporting.drawing import (
    CALIBRATIONS,
    INK,
    Drawing,
    calibration_look,
    head,
    legend_above,
    level,
    panels,
    points,
)

PILEUP_LABELS = {
    "Pileup_nTrueInt": r"Mean number of interactions $\mu$",
    "rhoAll": r"$\rho$ (GeV)",
    "PV_npvsGood": "Reconstructed vertices",
}


def pileup(metrics: MetricsRecord, pt_range: str) -> Drawing | None:
    """Draw median response and resolution against pile-up in one bin of pT."""
    if metrics.pileup is None:
        return None
    slices = [slice_ for slice_ in metrics.pileup.slices if slice_.pt_range == pt_range]
    if not slices:
        return None
    figure, (top, below) = panels((1, 1), (10, 10))
    middles = np.array([slice_.middle for slice_ in slices])
    step = 0.012 * (middles[-1] - middles[0])
    # The uncorrected response is so far from 1 that it would set the scale of the figure.
    names = [name for name in slices[0].by_calibration() if name != "uncorrected"]
    for place, name in enumerate(names):
        responses = [slice_.by_calibration()[name] for slice_ in slices]
        x = middles + step * place
        points(top, x, [response.median for response in responses], **calibration_look(name))
        points(below, x, [response.resolution for response in responses], **calibration_look(name))
    level(top, 1)
    limit = metrics.config.max_closure
    top.axhspan(1 - limit, 1 + limit, color=INK, alpha=0.1, linewidth=0)
    top.set_ylabel("Median response")
    below.set_ylabel("Resolution (IQR / median)")
    column = metrics.pileup.column
    below.set_xlabel(PILEUP_LABELS.get(column, column), parse_math=column in PILEUP_LABELS)
    legend_above(top, ncols=2)
    low, _, high = pt_range.partition("-")
    title = rf"${low} < p_T^{{gen}} < {high}$ GeV" if high else rf"$p_T^{{gen}} {low}$ GeV"
    head(top, title)
    ends = []
    for name in ("model", "standard"):
        start, end = (
            slice_.by_calibration()[name].median.value for slice_ in (slices[0], slices[-1])
        )
        ends.append(f"{CALIBRATIONS[name].label} from {start:.3f} to {end:.3f}")
    alt = f"Median response against {column}, {pt_range} GeV: {'; '.join(ends)}."
    return Drawing(
        name=f"pileup-{slices[0].pt_low:g}",
        caption=(
            f"Response and resolution against {column}, slices of equally many jets, pT"
            f" {pt_range} GeV. Band: ±{100 * limit:g} %."
        ),
        alt=alt,
        figure=figure,
    )


PILEUP_RANGES = tuple(bin_.range for bin_ in PILEUP_BINS)


def fine_eta(metrics: MetricsRecord) -> Drawing | None:
    """Draw the bias of the median response in the eta bins of CMS jet energy corrections."""
    slices = metrics.fine_eta
    if not slices:
        return None
    figure, (axes,) = panels((1,), (10, 7))
    middles = np.array([(slice_.eta_low + slice_.eta_high) / 2 for slice_ in slices])
    names = [name for name in slices[0].by_calibration() if name != "uncorrected"]
    for place, name in enumerate(names):
        biases = [slice_.by_calibration()[name] for slice_ in slices]
        points(
            axes, middles + 0.024 * (place - 1), biases, 100, markersize=4, **calibration_look(name)
        )
    limit = 100 * metrics.config.max_closure
    axes.axhspan(-limit, limit, color=INK, alpha=0.1, linewidth=0)
    level(axes, 0)
    reach = max(abs(edge) for edge in (*axes.get_ylim(), limit))
    axes.set_ylim(-1.1 * reach, 1.1 * reach)
    axes.set_xlabel(r"$\eta^{gen}$")
    axes.set_ylabel("Median response − 1 (%)")
    legend_above(axes, ncols=2)
    head(axes, rf"$p_T^{{gen}} > {metrics.closure.from_gev:g}$ GeV")
    farthest = max(slices, key=lambda slice_: abs(slice_.model.value))
    alt = (
        f"Closure in {len(slices)} fine bins of eta; the model's largest bias is"
        f" {100 * farthest.model.value:+.2f} % between {farthest.eta_low:g} and"
        f" {farthest.eta_high:g}."
    )
    return Drawing(
        name="fine-eta",
        caption=f"Closure in CMS's eta bins from {metrics.closure.from_gev:g} GeV up.",
        alt=alt,
        figure=figure,
    )


def inputs(metrics: MetricsRecord) -> Drawing | None:
    """Draw the loss of gain when a group of inputs is shuffled among the jets."""
    if metrics.importances is None or not metrics.importances.groups:
        return None
    groups = metrics.importances.groups[::-1]  # the largest on top
    figure, (axes,) = panels((1,), (10, 2 + 0.9 * len(groups)))
    look = calibration_look("model")
    for place, group in enumerate(groups):
        axes.barh(place, group.mean, height=0.6, color=look["color"])
        axes.errorbar(group.mean, place, xerr=group.spread, color=INK, elinewidth=3)
    axes.axvline(0, color=INK, linewidth=1.5)
    axes.set_yticks(range(len(groups)), [group.name for group in groups], parse_math=False)
    axes.minorticks_off()
    axes.set_xlabel("Gain lost (points)")
    head(axes, r"$p_T^{gen} > 30$ GeV")
    words = [f"{group.name} {group.mean:.1f} ± {group.spread:.1f}" for group in groups[::-1]]
    return Drawing(
        name="inputs",
        caption=(
            "Gain in resolution that is lost when a group of inputs is shuffled among the jets:"
            " mean and standard deviation of five shufflings."
        ),
        alt=f"Gain lost in points: {'; '.join(words)}.",
        figure=figure,
    )
