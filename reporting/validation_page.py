"""Page of data.validate: findings of its checks, and figures of each number beside its target."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reporting import page
from reporting.drawing import (
    INK,
    PT_LABEL,
    SET_LOOKS,
    TEAL,
    Drawing,
    Look,
    calibration_look,
    draw_all,
    panels,
    plain_legend,
    slug,
)

Jets: TypeAlias = Mapping[str, NDArray[Any]]
"""Columns of data.summary, by name: one number a jet, (N,)."""

MIN_JETS = 100  # jets of a flavour; the distribution of fewer is dominated by fluctuations


class Finding(Protocol):
    """A problem that a check reports (data.checks)."""

    @property
    def level(self) -> str:
        """Severity."""

    @property
    def where(self) -> str:
        """The file or set with the problem."""

    @property
    def problem(self) -> str:
        """Description of the problem."""

    @property
    def remedy(self) -> str:
        """How to fix the problem."""


class Measurement(Protocol):
    """A number with its standard deviation, and a target range (data.targets)."""

    @property
    def topic(self) -> str:
        """The check that measured it."""

    @property
    def where(self) -> str:
        """The set or region."""

    @property
    def value(self) -> float:
        """The measured number."""

    @property
    def error(self) -> float:
        """Its statistical error."""

    @property
    def low(self) -> float:
        """Lower end of the range of CMS simulation."""

    @property
    def high(self) -> float:
        """Upper end of that range."""

    @property
    def jets(self) -> int:
        """Number of jets."""

    @property
    def within(self) -> bool:
        """Whether the value agrees with the range within its error."""


def render(
    sets: Mapping[str, Jets],
    findings: Sequence[Finding],
    measurements: Sequence[Measurement],
    *,
    num_errors: int,
) -> str:
    """Return the HTML of the page.

    Args:
        sets: Columns of the jets of each set.
        findings: Problems that the checks report.
        measurements: Numbers with their targets.
        num_errors: How many findings are errors.
    """
    jets = []
    for name, columns in sets.items():
        jets.append(f"{name} {len(columns['jetPt']):,}")
    rows = []
    for item in findings:
        rows.append([item.level, item.where, item.problem, item.remedy])
    head = ["Level", "Where", "Found", "What to do"]
    return page.render(
        "validation.html",
        title="Jets: validation",
        num_errors=num_errors,
        jets=", ".join(jets) or "none could be read",
        num_within=sum(item.within for item in measurements),
        num_measured=len(measurements),
        findings=page.Table(head=head, rows=rows, kind="trials", words=head[1:]) if rows else None,
        figures=list(drawings(sets, measurements)),
        measured=table_of_targets(measurements),
    )


def table_of_targets(measurements: Sequence[Measurement]) -> page.Table | None:
    """Return each number beside its target; None without any."""
    rows = []
    for measurement in measurements:
        rows.append(
            [
                measurement.topic,
                measurement.where,
                f"{measurement.jets:,}",
                f"{measurement.value:.4g} ± {measurement.error:.2g}",
                f"{measurement.low:.4g} to {measurement.high:.4g}",
                "yes" if measurement.within else "no",
            ]
        )
    head = ["Number", "Where", "Jets", "Here", "Target", "Within"]
    return page.Table(head=head, rows=rows) if rows else None


# ---------------------------------------------------------------------------------------- figures


def drawings(sets: Mapping[str, Jets], measurements: Sequence[Measurement]) -> Iterator[Drawing]:
    """Draw all figures for which there are jets."""
    makers: list[Callable[[], Drawing | None]] = []
    for topic, group in itertools.groupby(measurements, key=lambda measurement: measurement.topic):
        makers.append(partial(target_figure, topic, list(group)))
    pt_edges = np.geomspace(20, 3000, 40)
    makers.append(partial(histogram, sets, "genJetPt", pt_edges, PT_LABEL, log=True))
    histograms = {
        "nPF": (np.arange(0, 320, 8), "Candidates stored with a jet"),
        "nInCone": (np.arange(0, 120, 3), r"Candidates within $\Delta R < 0.4$"),
        "fromPVFraction": (np.linspace(0, 1, 41), "Share of charged hadrons' pT from the vertex"),
    }
    for column, (edges, label) in histograms.items():
        makers.append(partial(histogram, sets, column, edges, label))
    makers.append(partial(likelihood, sets))
    yield from draw_all(makers)


def target_figure(topic: str, group: Sequence[Measurement]) -> Drawing | None:
    """Draw measured values with two standard deviations over the bands of their targets.

    None for a single value, which the table shows as well.
    """
    if len(group) < 2:
        return None
    figure, (axes,) = panels()
    low, high, values, errors, names, words = [], [], [], [], [], []
    for measurement in group:
        values.append(measurement.value)
        errors.append(2 * measurement.error)
        low.append(measurement.low)
        high.append(measurement.high)
        names.append(measurement.where.removesuffix(" GeV"))
        target = f"{measurement.low:.3g} to {measurement.high:.3g}"
        words.append(f"{measurement.where} {measurement.value:.3g} (target {target})")
    look: Look = {"color": TEAL, "marker": "o", "label": "These jets"}
    if "standard JEC" in topic:
        look = calibration_look("standard")
    places = np.arange(len(group))
    heights = np.subtract(high, low)
    axes.bar(places, heights, bottom=low, width=0.8, color=INK, alpha=0.2, label="Target")
    axes.errorbar(
        places,
        values,
        yerr=errors,
        linestyle="none",
        markersize=9,
        elinewidth=2,
        **look,
    )
    axes.set_xticks(places, names, fontsize=20, rotation=20)
    axes.minorticks_off()
    # Some numbers belong to flavours or regions instead of bins of pT.
    axes.set_xlabel(
        PT_LABEL if all(measurement.where.endswith("GeV") for measurement in group) else ""
    )
    lowest, highest = min([*low, *values]), max([*high, *values])
    # Room for the legend above the points.
    axes.set_ylim(lowest - 0.15 * (highest - lowest), highest + 0.45 * (highest - lowest))
    title = topic[0].upper() + topic[1:]
    axes.set_ylabel(title, fontsize=22)
    axes.legend(loc="upper right")
    return Drawing(
        name=slug(topic),
        caption=f"{title}: these jets and their target.",
        alt=f"{topic}: {', '.join(words)}.",
        figure=figure,
    )


def histogram(
    sets: Mapping[str, Jets], column: str, edges: NDArray[Any], label: str, *, log: bool = False
) -> Drawing | None:
    """Draw the distribution of a column for each set, as shares of its jets; None without sets.

    Args:
        sets: Columns of the jets of each set.
        column: Name of the column.
        edges: Edges of the bins.
        label: Label of the x axis.
        log: Whether x is logarithmic.
    """
    if not sets:
        return None
    figure, (axes,) = panels()
    means = []
    for (name, jets), look in zip(sets.items(), itertools.cycle(SET_LOOKS), strict=False):
        values = jets[column][np.isfinite(jets[column])]
        counts = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(counts, edges, linewidth=2.5, label=name, **look)
        means.append(f"{name} {np.mean(values):.4g}" if len(values) else f"{name} none")
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("Share of jets")
    plain_legend(axes)
    return Drawing(
        name=f"histogram-{column}",
        caption=f"{column}. Mean: {', '.join(means)}.",
        alt=f"Distribution of {column}; means: {', '.join(means)}.",
        figure=figure,
    )


def likelihood(sets: Mapping[str, Jets]) -> Drawing | None:
    """Draw the likelihood jetQGl of light-quark and gluon jets; None with too few of them."""
    if not sets:
        return None
    value = np.concatenate([jets["jetQGl"] for jets in sets.values()])
    flavour = np.concatenate([jets["partonFlav"] for jets in sets.values()])
    # Jets without a likelihood have a negative one.
    light = value[np.isin(np.abs(flavour), (1, 2, 3)) & (value >= 0)]
    gluon = value[(np.abs(flavour) == 21) & (value >= 0)]
    if min(len(light), len(gluon)) < MIN_JETS:
        return None
    figure, (axes,) = panels()
    for name, values, look in (("uds", light, SET_LOOKS[0]), ("g", gluon, SET_LOOKS[1])):
        counts, edges = np.histogram(values, np.linspace(0, 1, 26))
        axes.stairs(counts / len(values), edges, linewidth=2.5, label=name, **look)
    axes.set_xlabel("Quark-gluon likelihood jetQGl")
    axes.set_ylabel("Share of jets")
    axes.legend(loc="upper center")
    caption = (
        "jetQGl of light-quark and gluon jets: one near 1, the other near 0, if it means something."
    )
    return Drawing(name="likelihood", caption=caption, alt=caption, figure=figure)
