"""All figures of report.html, in their order; the functions that draw them are in *_figures.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from common.records import EpochRecord, MetricsRecord, SearchRecord
from reporting import details_figures, search_figures
from reporting.closure_figures import closure, eta, residual
from reporting.drawing import CALIBRATIONS, Drawing, draw_all, head, panels, whole_number_axis
from reporting.response_figures import distribution, flavour, resolution_curve, response_curve
from reporting.uncertainty_figures import coverage, widths


def drawings(
    metrics: MetricsRecord, history: Sequence[EpochRecord], search: SearchRecord | None
) -> Iterator[Drawing]:
    """Draw each figure for which there are numbers.

    Args:
        metrics: The metrics of the run.
        history: Epochs of the best trial.
        search: The search; None where the run has none.
    """
    regions = sorted({bin_.region for bin_ in metrics.curves})
    makers: list[Callable[[], Drawing | None]] = []
    for draw in (response_curve, resolution_curve, distribution, closure):
        for region in regions:
            makers.append(partial(draw, metrics, region))
    makers.append(partial(eta, metrics))
    for quantity in metrics.residuals:
        makers.append(partial(residual, metrics, quantity))
    for region in regions:
        makers.append(partial(flavour, metrics, region))
    makers += [partial(coverage, metrics.uncertainty), partial(widths, metrics.uncertainty)]
    for pt_range in details_figures.PILEUP_RANGES:
        makers.append(partial(details_figures.pileup, metrics, pt_range))
    makers += [partial(details_figures.fine_eta, metrics), partial(details_figures.inputs, metrics)]
    makers.append(partial(training, history))
    yield from draw_all(makers)
    if search:
        yield from search_figures.drawings(search)


def training(history: Sequence[EpochRecord]) -> Drawing | None:
    """Draw training and validation loss of the best trial against the epoch."""
    # history.json leaves out losses that are not finite.
    train_losses: dict[int, float] = {}
    val_losses: dict[int, float] = {}
    for epoch in history:
        if epoch.train_loss is not None:
            train_losses[epoch.epoch] = epoch.train_loss
        if epoch.val_loss is not None:
            val_losses[epoch.epoch] = epoch.val_loss
    if not train_losses and not val_losses:
        return None
    figure, (axes,) = panels()
    colour = CALIBRATIONS["model"].colour
    curves = [
        ("Training", train_losses, "--", "none"),
        ("Validation", val_losses, "-", colour),
    ]
    for label, losses, dashes, ground in curves:
        if losses:
            axes.plot(
                list(losses),
                list(losses.values()),
                color=colour,
                linestyle=dashes,
                label=label,
                linewidth=3,
                marker="o",
                markersize=8,
                markerfacecolor=ground,
            )
    whole_number_axis(axes, "Epoch")
    axes.set_ylabel("Loss")
    axes.legend()
    head(axes, "Best trial")
    alt = f"Loss over {len(history)} epochs."
    if val_losses:
        best = min(val_losses, key=val_losses.__getitem__)
        alt += f" Lowest validation loss {val_losses[best]:.5f} in epoch {best}."
    return Drawing(
        name="training", caption="Training of the best trial. " + alt, alt=alt, figure=figure
    )
