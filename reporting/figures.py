"""The figures of report.html, in its order; the functions that draw them are in *_figures.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from reporting import search_figures
from reporting.closure_figures import closure, eta, residual
from reporting.drawing import COLOURS, Drawing, drawn, head, panels, whole_number_axis
from reporting.records import Record
from reporting.response_figures import distribution, flavour, resolution_curve, response_curve
from reporting.uncertainty_figures import coverage, widths


def drawings(
    metrics: Record,
    history: Sequence[Record] | None,
    search: Record | None,
    max_closure: float,
) -> Iterator[Drawing]:
    """All figures that these numbers allow; history: the epochs of the best trial."""
    regions = sorted({record["region"] for record in metrics["curves"]})
    makers: list[Callable[[], Drawing | None]] = []
    makers += [partial(response_curve, metrics, region, max_closure) for region in regions]
    makers += [partial(resolution_curve, metrics, region) for region in regions]
    makers += [partial(distribution, metrics, region) for region in regions]
    makers += [partial(closure, metrics, max_closure), partial(eta, metrics, max_closure)]
    for quantity in metrics.get("residuals", {}):
        makers.append(partial(residual, metrics, quantity, max_closure))
    makers += [partial(flavour, metrics, region) for region in regions]
    makers += [partial(coverage, metrics), partial(widths, metrics)]
    makers += [partial(training, history or [])]
    yield from drawn(makers)
    if search:
        yield from search_figures.drawings(search)


def training(history: Sequence[Record]) -> Drawing | None:
    """Training and validation loss against the epoch, of the best trial."""
    looks = {
        "train_loss": ("Training", COLOURS["standard"], "--"),
        "val_loss": ("Validation", COLOURS["model"], "-"),
    }
    losses = {
        key: {epoch["epoch"]: epoch[key] for epoch in history if epoch.get(key) is not None}
        for key in looks
    }
    if not any(losses.values()):
        return None
    figure, (axes,) = panels()
    for key, (label, colour, dashes) in looks.items():
        if losses[key]:
            axes.plot(
                list(losses[key]),
                list(losses[key].values()),
                color=colour,
                linestyle=dashes,
                label=label,
                linewidth=3,
                marker="o",
                markersize=6,
            )
    whole_number_axis(axes, "Epoch")
    axes.set_ylabel("Loss")
    axes.legend()
    head(axes, "Best trial")
    alt = f"Loss over {len(history)} epochs."
    if validation := losses["val_loss"]:
        best = min(validation, key=validation.__getitem__)
        alt += f" Lowest validation loss {validation[best]:.5f} in epoch {best}."
    return Drawing(
        name="training", caption="Training of the best trial. " + alt, alt=alt, figure=figure
    )
