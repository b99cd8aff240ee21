"""Page that compares several runs: gain, closure, resolution and tails, from metrics.json alone."""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from common.measurements import Interval, PtBin
from common.records import MetricsRecord
from physics.response import PT_EDGES, REGIONS
from reporting import page
from reporting.drawing import (
    REGION_TEXT,
    SET_LOOKS,
    SHIFT,
    Drawing,
    Look,
    bins_of_region,
    calibration_look,
    draw_all,
    head,
    legend_above,
    level,
    middle,
    panels,
    points,
    pt_axis,
)
from reporting.page import MISSING, Table

MOST_RUNS = 8
"""Most runs on a page. With more, the points of one bin overlap."""

BEYOND = "tail beyond 30 %"

Point: TypeAlias = tuple[PtBin, Interval]
"""A bin of pT and the value measured in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run on the page: its id and its metrics."""

    name: str
    """Run id."""
    metrics: MetricsRecord

    @property
    def tested_on(self) -> str:
        """Fingerprint of the test jets; empty where the metrics do not record it."""
        return self.metrics.test_fingerprint


def comparison_page(runs: Sequence[ComparedRun]) -> str:
    """Return the HTML of the page."""
    return page.render(
        "comparison.html",
        title=f"{len(runs)} runs compared",
        figures=list(drawings(runs)),
        jets=about_jets(runs),
        summary=summary(runs),
        gains=gains(runs),
        tails_of=BEYOND,
    )


def letters(runs: Sequence[ComparedRun]) -> list[str]:
    """Return a letter for each run, which stands for it in figures and tables."""
    return list(string.ascii_uppercase[: len(runs)])


def about_jets(runs: Sequence[ComparedRun]) -> str:
    """Return a sentence that says whether all runs were tested on the same jets."""
    if not all(run.tested_on for run in runs):
        return (
            "Whether all runs were tested on the same jets is not known: a run of an earlier"
            " version does not record it."
        )
    sets: dict[str, list[str]] = {}
    for letter, run in zip(letters(runs), runs, strict=True):
        sets.setdefault(run.tested_on, []).append(letter)
    if len(sets) == 1:
        return f"All were tested on the same {runs[0].metrics.num_measured:,} jets."
    parts = "; ".join(", ".join(names) for names in sets.values())
    return (
        f"The test jets differ ({parts}): each gain is over the standard JEC on the run's own jets,"
        " so that differences between runs also come from the jets."
    )


def summary(runs: Sequence[ComparedRun]) -> Table:
    """Return a table of the main numbers of each run."""
    rows = []
    for letter, run in zip(letters(runs), runs, strict=True):
        metrics = run.metrics
        resolution = metrics.resolution
        row = [f"{letter}: {run.name}", "passed" if metrics.passed else "not passed"]
        row.append(f"{metrics.num_measured:,}")
        row += [_percent(gain) for gain in (metrics.gain, metrics.gain_over_trees)]
        row.append(resolution.model.text(digits=4, sign="") if resolution else MISSING)
        for region in REGIONS:
            row.append(_percent(_whole_closure(metrics, region), 100, 2))
        row.append(_percent(_whole_tail(metrics), 100, 2, sign=""))
        rows.append(row)
    columns = ["Run", "Gate", "Test jets", "Gain over standard JEC", "Gain over boosted trees"]
    columns += ["Resolution", *(f"Closure, {region}" for region in REGIONS), "Tail beyond 30 %"]
    return Table(head=columns, rows=rows, kind="dense")


def gains(runs: Sequence[ComparedRun]) -> Table | None:
    """Return the gain over the standard JEC by bin, one column a run; None without bins."""
    names: dict[tuple[str, str], None] = {}
    for run in runs:
        names |= dict.fromkeys((bin_.region, bin_.pt_range) for bin_ in run.metrics.bins)
    rows = []
    for place in names:
        row = list(place)
        for run in runs:
            of_run = [
                bin_.gain for bin_ in run.metrics.bins if (bin_.region, bin_.pt_range) == place
            ]
            row.append(of_run[0].percent() if of_run else MISSING)
        rows.append(row)
    return Table(head=["Region", "pT (GeV)", *letters(runs)], rows=rows) if rows else None


def _percent(
    interval: Interval | None, scale: float = 1.0, digits: int = 1, sign: str = "+"
) -> str:
    return interval.percent(scale, digits, sign) if interval else MISSING


def _whole_closure(metrics: MetricsRecord, region: str) -> Interval | None:
    """Return the bias of the model over all pT bins of a region."""
    for bin_ in metrics.closure.bins:
        if bin_.region == region and bin_.is_whole(metrics.closure.from_gev):
            return bin_.model
    return None


def _whole_tail(metrics: MetricsRecord) -> Interval | None:
    """Return the share of jets that the model gets wrong by more than 30 %."""
    for bin_ in metrics.tails:
        if bin_.tail == BEYOND and bin_.region == "all":
            return bin_.model
    return None


# ---------------------------------------------------------------------------------------- figures


def drawings(runs: Sequence[ComparedRun]) -> Iterator[Drawing]:
    """Draw each figure for which the runs have numbers."""
    makers: list[Callable[[], Drawing | None]] = [
        partial(figure, runs, "gain", "Gain (%)", gain_curve, caption=GAIN),
        partial(figure, runs, "closure", "Median response − 1 (%)", closure_curve, caption=CLOSURE),
        partial(figure, runs, "resolution", "Resolution", resolution_curve, caption=RESOLUTION),
        partial(figure, runs, "tails", "Jets off by > 30 % (%)", tail_curve, caption=TAIL),
    ]
    yield from draw_all(makers)


GAIN = "Gain in resolution over the standard JEC, on the same jets (paired interval)."
CLOSURE = "Bias of the median response from 60 GeV up."
RESOLUTION = "Resolution, IQR / median."
TAIL = "Share of jets whose response is off by more than 30 % (Wilson's interval)."


def gain_curve(metrics: MetricsRecord) -> list[Point]:
    """Return the gain over the standard JEC in each bin of pT (per cent)."""
    return [(bin_, bin_.gain) for bin_ in metrics.curves]


def closure_curve(metrics: MetricsRecord) -> list[Point]:
    """Return the bias of the model in each bin of pT (per cent)."""
    bins = [bin_ for bin_ in metrics.closure.bins if not bin_.is_whole(metrics.closure.from_gev)]
    return [(bin_, _scale(bin_.model, 100)) for bin_ in bins]


def resolution_curve(metrics: MetricsRecord) -> list[Point]:
    """Return the resolution of the model in each bin of pT."""
    return [(bin_, bin_.model.resolution) for bin_ in metrics.curves]


def tail_curve(metrics: MetricsRecord) -> list[Point]:
    """Return the share of jets in the tail in each bin of pT (per cent)."""
    bins = [
        bin_ for bin_ in metrics.tails if bin_.tail == BEYOND and not bin_.is_whole(PT_EDGES[0])
    ]
    return [(bin_, _scale(bin_.model, 100)) for bin_ in bins]


def _scale(interval: Interval, scale: float) -> Interval:
    return Interval(
        value=scale * interval.value, low=scale * interval.low, high=scale * interval.high
    )


def figure(
    runs: Sequence[ComparedRun],
    name: str,
    label: str,
    curve: Callable[[MetricsRecord], list[Point]],
    *,
    caption: str,
) -> Drawing | None:
    """Draw a quantity of each run against pT, in one panel a region.

    Args:
        runs: The runs, drawn by their letters.
        name: Name of the quantity; also that of the figure.
        label: Label of the y axis.
        curve: Returns the points of a run from its metrics.
        caption: Caption, to which bins without a value are added.

    Returns:
        The figure, or None where no run has a point.
    """
    curves = [curve(run.metrics) for run in runs]
    regions = []
    for region in REGION_TEXT:
        if any(bin_.region == region for curve_points in curves for bin_, _ in curve_points):
            regions.append(region)
    if not regions:
        return None
    canvas, panel_of = panels([1] * len(regions), (10, 2 + 4.5 * len(regions)))
    words = []
    for axes, region in zip(panel_of, regions, strict=True):
        for place, (letter, curve_points) in enumerate(zip(letters(runs), curves, strict=True)):
            in_panel = [(bin_, value) for bin_, value in curve_points if bin_.region == region]
            if not in_panel:
                continue
            x = np.array([middle(bin_) for bin_, _ in in_panel]) * SHIFT**place
            values = [value for _, value in in_panel]
            points(axes, x, values, **run_look(place), label=f"{letter}: {runs[place].name}")
            words.append(f"{letter}, {region}: {values[0].value:.3g} to {values[-1].value:.3g}")
        if name == "resolution" and len({run.tested_on for run in runs}) == 1:
            bins = bins_of_region(runs[0].metrics.curves, region)
            x = np.array([middle(bin_) for bin_ in bins]) * SHIFT ** len(runs)
            resolutions = [bin_.standard.resolution for bin_ in bins]
            points(axes, x, resolutions, **calibration_look("standard"))
        if name in ("gain", "closure"):
            level(axes, 0)
        if (
            axes is not panel_of[0]
        ):  # Room for the name of the region; in the first panel the legend makes room.
            lowest, highest = axes.get_ylim()
            axes.set_ylim(lowest, highest + 0.25 * (highest - lowest))
        axes.text(
            0.03,
            0.95,
            REGION_TEXT[region],
            transform=axes.transAxes,
            fontsize=22,
            verticalalignment="top",
        )
        axes.set_ylabel(label)
    for text in legend_above(panel_of[0], fontsize=18).get_texts():
        text.set_parse_math(False)
    head(panel_of[0], name.capitalize())
    pt_axis(panel_of[-1])
    if missing := _missing_bins(runs, regions, curves):
        caption += f" Not shown, for too few jets or an earlier version's run: {missing}."
    return Drawing(name=name, caption=caption, alt=f"{caption} {'; '.join(words)}.", figure=canvas)


def _missing_bins(
    runs: Sequence[ComparedRun], regions: Sequence[str], curves: Sequence[list[Point]]
) -> str:
    """Name the bins that at least one run has and another lacks; empty without any."""
    sentences = []
    for letter, curve_points in zip(letters(runs), curves, strict=True):
        for region in regions:
            ranges_of_region = dict.fromkeys(
                bin_.pt_range for curve in curves for bin_, _ in curve if bin_.region == region
            )
            ranges_of_run = {bin_.pt_range for bin_, _ in curve_points if bin_.region == region}
            missing = [pt_range for pt_range in ranges_of_region if pt_range not in ranges_of_run]
            if not ranges_of_run:
                sentences.append(f"{letter} in the {region}")
            elif missing:
                sentences.append(f"{letter} in the {region} at {', '.join(missing)} GeV")
    return "; ".join(sentences)


def run_look(place: int) -> Look:
    """Return the look of the points of a run: its letter in its colour."""
    colour = SET_LOOKS[place % len(SET_LOOKS)]["color"]
    return {"color": colour, "marker": f"${string.ascii_uppercase[place]}$", "markersize": 13}
