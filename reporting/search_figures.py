"""Figures of a search: its history, its parameters and their importance.

search.html and report.html show them, drawn from search.json. Trials differ by shape or dashes as
well as by colour, and each has a tooltip with its name. Names and values come from users, so that
they are not parsed as mathematics.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from common.records import SearchRecord, Trial, finite_number
from reporting.drawing import (
    CALIBRATIONS,
    GROUND,
    INK,
    Drawing,
    Look,
    draw_all,
    head,
    panels,
    plain_legend,
    whole_number_axis,
)
from reporting.importance import Importance, importances
from reporting.page import short_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST = CALIBRATIONS["model"].colour
"""Colour of the best trial, whose model has this colour in all figures."""
FAINT = 0.35
"""Opacity of trials without a value and of unimportant parameters."""
WIDE = 3.0
"""Positive values whose extremes differ by more than this factor get a logarithmic axis."""
SMALL = 20
"""Size of the smallest letters (points): ten pixels on a phone, where a figure is half as large."""
LETTER = 0.021
"""Width of a letter of that size, as a fraction of the width of the parallel coordinates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialLook:
    """How the trials of a status are drawn."""

    marker: str
    dashes: Literal["-", "--", ":"]
    alpha: float
    words: str


LOOKS = {
    "Succeeded": TrialLook(marker="o", dashes="-", alpha=0.6, words="succeeded"),
    "EarlyStopped": TrialLook(marker="v", dashes="--", alpha=0.6, words="stopped early"),
}
WITHOUT_VALUE = TrialLook(marker="X", dashes=":", alpha=FAINT, words="without a value that counts")


def drawings(search: SearchRecord) -> Iterator[Drawing]:
    """Draw the figures for which there are trials: `search`, `parallel` and `importance`."""
    yield from draw_all([partial(draw, search) for draw in (history, parallel, importance)])


def history(search: SearchRecord) -> Drawing | None:
    """Draw the objective of each trial in order of creation, and the best value so far."""
    values = [value for _, value in search.trials_with_values]
    if not values:
        return None
    trials, name, best = search.trials, search.objective.name, search.best
    figure, (axes,) = panels(size=(10, 8))
    titles = {}
    for number, trial in enumerate(trials, 1):
        value = search.objective.value(trial)
        look = _look(trial)
        gid = f"trial-{number}"
        titles[gid] = _title(trial, search)
        axes.plot(
            [number],
            [0.96 if value is None else value],
            marker=look.marker,
            color=INK,
            alpha=look.alpha,
            markersize=11,
            linestyle="none",
            # Trials without a value stand at the upper edge, in the axes' own coordinates.
            transform=axes.get_xaxis_transform() if value is None else axes.transData,
            gid=gid,
        )
        if trial is best and value is not None:
            ring: Look = {"color": BEST, "markerfacecolor": "none", "markeredgewidth": 3}
            axes.plot([number], [value], marker="o", markersize=20, **ring)
    draw_best_so_far(axes, search)
    axes.margins(y=0.15)
    axes.set_xlim(0.2, len(trials) + 0.8)
    whole_number_axis(axes, "Trial")
    axes.set_ylabel(name + (" (logarithmic)" if _is_wide(values) else ""), parse_math=False)
    if _is_wide(values):
        _logarithmic(axes, values)
    head(axes, "Search")
    _legend(axes, search, -0.13)
    alt = (
        f"{name} of {len(trials)} trials in the order in which they were made; the best so far"
        f" (red) ends at {search.objective.best(values):.5f}"
    )
    missing = len(trials) - len(values)
    alt += f"; {missing} without a value stand at the upper edge." if missing else "."
    caption = f"Search history. {alt}"
    return Drawing(name="search", caption=caption, alt=alt, figure=figure, titles=titles)


def draw_best_so_far(axes: Axes, search: SearchRecord) -> None:
    """Draw the best value up to each trial as steps, continued to the last trial."""
    numbers: list[int] = []
    best_values: list[float] = []
    for number, trial in enumerate(search.trials, 1):
        value = search.objective.value(trial)
        if value is not None:
            best_values.append(search.objective.best([value, *best_values[-1:]]))
            numbers.append(number)
    numbers.append(len(search.trials))
    best_values.append(best_values[-1])
    axes.step(numbers, best_values, where="post", color=BEST, linewidth=3, zorder=1)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Make y logarithmic with five labels, since most searches span less than two powers of ten."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_yscale("log")
    labels = [float(f"{value:.2g}") for value in np.geomspace(min(values), max(values), 5)]
    axes.yaxis.set_major_locator(FixedLocator(labels))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def parallel(search: SearchRecord) -> Drawing | None:
    """Draw parallel coordinates: a line through each trial's parameters to its objective.

    The axes are horizontal and stacked, so that the figure keeps its width and its text size
    however many parameters there are.
    """
    columns = varying_parameters(search)
    if not columns or not search.trials_with_values:
        return None
    trials, objective, best = search.trials, search.objective, search.best
    names = [*columns, objective.name]
    # The objective is the last axis; a parameter of the same name keeps its own.
    scales = [axis_scale(texts) for texts in columns.values()]
    scales.append(axis_scale([repr(value) for _, value in search.trials_with_values]))
    figure, (axes,) = panels(size=(10, 1.5 + 1.3 * len(names)))
    titles = {}
    for number, trial in enumerate(trials, 1):
        value = objective.value(trial)
        texts = [*map(trial.parameters.get, columns), None if value is None else repr(value)]
        places, heights = [], []
        for place, text in enumerate(texts):
            # The line skips parameters that the trial does not have.
            if text is not None:
                places.append(place)
                heights.append(scales[place].heights[text])
        look = _look(trial)
        line: Look = {"color": INK, "linestyle": look.dashes, "linewidth": 1.5, "alpha": look.alpha}
        if trial is best:
            line = {"color": BEST, "linewidth": 5, "zorder": 3}
        gid = f"trial-{number}"
        titles[gid] = _title(trial, search)
        axes.plot(heights, places, gid=gid, **line)
    draw_scales(axes, names, scales)
    _legend(axes, search, -0.02)
    best_values = []
    for name in columns:
        if name in best.parameters:
            best_values.append(f"{name} {short_number(best.parameters[name])}")
    alt = (
        f"Parameters and {objective.name} of {len(trials)} trials; the best (red):"
        f" {', '.join(best_values)}."
    )
    caption = f"{alt} Shown are the parameters that differ between trials."
    return Drawing(name="parallel", caption=caption, alt=alt, figure=figure, titles=titles)


def varying_parameters(search: SearchRecord) -> dict[str, list[str]]:
    """Return the parameters with more than one value, and their values as text."""
    columns = {}
    for name in search.parameter_names:
        texts = [trial.parameters[name] for trial in search.trials if name in trial.parameters]
        if len(set(texts)) > 1:
            columns[name] = texts
    return columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """An axis of the parallel coordinates, from 0 to 1."""

    heights: Mapping[str, float]
    """Position of each value on the axis, by its text."""
    labels: Sequence[tuple[float, str]]
    """Position and text of each label."""


def axis_scale(texts: Sequence[str]) -> Scale:
    """Return the axis of a parameter from its values as text.

    Numbers are placed by value, or by logarithm if their range is wide; other texts by their rank.
    """
    numbers = {}
    for text in texts:
        number = finite_number(text)
        if number is not None:
            numbers[text] = number
    # If one value is not a number, all of them are treated as words.
    if len(numbers) < len(set(texts)):
        words = sorted(set(texts))
        heights = {text: rank / max(len(words) - 1, 1) for rank, text in enumerate(words)}
        return Scale(heights=heights, labels=[(heights[text], text) for text in words])

    labels = sorted(set(numbers.values()))
    lowest, highest = labels[0], labels[-1]
    wide = _is_wide(labels)
    low, high = (math.log(lowest), math.log(highest)) if wide else (lowest, highest)

    def height(number: float) -> float:
        at = math.log(number) if wide else number
        return (at - low) / ((high - low) or 1.0)

    # More than five labels would overlap.
    if len(labels) > 5:
        middle = math.sqrt(lowest * highest) if wide else (lowest + highest) / 2
        labels = [lowest, middle, highest]
    return Scale(
        heights={text: height(number) for text, number in numbers.items()},
        labels=[(height(number), f"{number:.4g}") for number in labels],
    )


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > WIDE * min(values)


def draw_scales(axes: Axes, names: Sequence[str], scales: Sequence[Scale]) -> None:
    """Draw each scale as a horizontal line with its labels and its name, the first on top."""
    axes.minorticks_off()
    # Each scale draws its own labels.
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    # Letters get a background, so that lines do not cross them.
    under = {"facecolor": GROUND, "edgecolor": "none", "alpha": 0.85, "pad": 1}
    letters: Look = {"fontsize": SMALL, "zorder": 4, "bbox": under}
    for place, (name, scale) in enumerate(zip(names, scales, strict=True)):
        axes.axhline(place, xmin=0.02, xmax=0.98, color=INK, linewidth=1)
        title = axes.text(-0.01, place - 0.35, _short(name, 40), weight="bold", **letters)
        title.set_parse_math(False)
        end = -math.inf
        for height, text in scale.labels:
            words = _short(text)
            # Labels at both ends are aligned inwards.
            align = "left" if height < 0.05 else "right" if height > 0.95 else "center"
            width = LETTER * len(words)
            start = height - {"left": 0.0, "center": width / 2, "right": width}[align]
            if start >= end:
                label = axes.text(height, place + 0.3, words, ha=align, **letters)
                label.set_parse_math(False)
                end = start + width + LETTER
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(len(names) - 0.4, -0.7)


def _short(text: str, most: int = 16) -> str:
    """Cut text to at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def importance(search: SearchRecord) -> Drawing | None:
    """Draw the importance of each parameter as a bar, with the level that chance reaches."""
    bars = importances_of(search)
    if not bars:
        return None
    figure, (axes,) = panels(size=(10, 1.6 + 0.7 * len(bars)))
    names, words = [], []
    for place, bar in enumerate(bars):
        share, chance = 100 * bar.share, 100 * bar.chance
        axes.barh(place, share, height=0.6, color=INK, alpha=0.7 if bar.beyond_chance else FAINT)
        axes.plot([chance, chance], [place - 0.42, place + 0.42], color=INK, linewidth=3)
        axes.text(max(share, chance) + 1, place, f"{share:.0f} %", fontsize=SMALL, va="center")
        names.append(_short(bar.name, 20))
        words.append(f"{bar.name} {share:.0f} % (chance: up to {chance:.0f} %)")
    axes.set_yticks(range(len(bars)), names, fontsize=SMALL, parse_math=False)
    # The most important parameter on top.
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.minorticks_off()
    # Room for the number beside a bar of 100 %.
    axes.set_xlim(0, 109)
    axes.set_xlabel("Share of the variance (%)")
    alt = f"Importance: {'; '.join(words)}."
    return Drawing(name="importance", caption=alt, alt=alt, figure=figure)


def importances_of(search: SearchRecord) -> list[Importance]:
    """Return the importance of each parameter that all trials with a value have."""
    pairs = search.trials_with_values
    columns = {}
    for name in search.parameter_names:
        texts = [trial.parameters[name] for trial, _ in pairs if name in trial.parameters]
        # A parameter that only some trials have cannot be compared with the others on the same
        # trials.
        if len(texts) == len(pairs):
            columns[name] = texts
    return importances(columns, [value for _, value in pairs])


# ---------------------------------------------------------------- what the figures have in common


def _look(trial: Trial) -> TrialLook:
    return LOOKS.get(trial.status, WITHOUT_VALUE)


def _title(trial: Trial, search: SearchRecord) -> str:
    """Return the tooltip of a trial."""
    value = search.objective.value(trial)
    if value is None:
        return f"{trial.name}: {trial.reason or trial.status}"
    return f"{trial.name}: {search.objective.name} {value:.5f}"


def _legend(axes: Axes, search: SearchRecord, below: float) -> None:
    """Draw a legend of the looks that occur and of the best trial, `below` axes heights above 0."""
    from matplotlib.lines import Line2D

    handles = {}
    for trial in search.trials:
        look = _look(trial)
        handles[look.words] = Line2D(
            [],
            [],
            color=INK,
            alpha=look.alpha,
            marker=look.marker,
            linestyle=look.dashes,
            label=look.words,
        )
    best = Line2D([], [], color=BEST, linewidth=5, label="the best")
    plain_legend(
        axes,
        handles=[*handles.values(), best],
        loc="upper center",
        bbox_to_anchor=(0.5, below),
        ncols=2,
        fontsize=SMALL,
    )
