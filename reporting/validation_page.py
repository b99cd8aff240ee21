"""The page of data.validate: what was found in the files, and each number beside its
target, drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data import targets
from data.checks import ERROR, Finding
from data.jetntuple import Columns
from data.targets import Measured
from reporting import figures as f
from reporting import page
from reporting.figures import Drawing

TARGET = "#9c9ca1"
HERE = "#e42536"


def render(
    sets: Mapping[str, Columns], findings: Sequence[Finding], measured: Sequence[Measured]
) -> str:
    """The page as text."""
    errors = sum(one.level == ERROR for one in findings)
    near = sum(one.within for one in measured)
    verdict = "Nothing wrong was found" if not errors else f"{errors} checks failed"
    jets = (
        ", ".join(f"{name} {len(columns['jetPt']):,}" for name, columns in sets.items())
        or "none could be read"
    )
    body = [
        (
            f'<section class="verdict {"good" if not errors else "bad"}"><h2>{verdict}</h2><p>Jets:'
            f" {page.escaped(jets)}. {near} of {len(measured)} numbers are as in CMS"
            " simulation.</p></section>"
        ),
        _findings(findings),
        page.section(
            "Beside CMS simulation", f.gallery(drawings(sets, measured)), _measured(measured)
        ),
    ]
    return page.document("Jets: validation", "\n".join(body))


def _findings(findings: Sequence[Finding]) -> str:
    rows = [[one.level, one.where, one.found, one.cure] for one in findings]
    return page.section(
        "Findings",
        (
            page.table(["Level", "Where", "Found", "What to do"], rows, kind="trials")
            if rows
            else "<p>None.</p>"
        ),
    )


def _measured(measured: Sequence[Measured]) -> str:
    rows = [
        [
            one.topic,
            one.where,
            f"{one.jets:,}",
            f"{one.value:.4g} ± {one.error:.2g}",
            f"{one.low:.4g} to {one.high:.4g}",
            _yes(one.within),
        ]
        for one in measured
    ]
    note = (
        "<p class='small'>Targets: CMS open simulation (JetNtuple, 13 TeV QCD), tolerances of this"
        " project. 'Within' allows two standard deviations of the sample at hand.</p>"
    )
    return (
        page.table(["Number", "Where", "Jets", "Here", "Target", "Within"], rows) + note
        if rows
        else "<p>Too few jets to compare.</p>"
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


# ---------------------------------------------------------------------------------------- figures


def drawings(sets: Mapping[str, Columns], measured: Sequence[Measured]) -> Iterator[Drawing]:
    """All figures that these jets allow."""
    topics = [
        (topic, list(group))
        for topic, group in itertools.groupby(measured, key=lambda one: one.topic)
    ]
    makers = [
        lambda topic=topic, group=group: beside_target(topic, group)
        for topic, group in topics
        if len(group) > 1
    ]
    makers += [
        lambda: histogram(sets, "genJetPt", np.geomspace(20, 3000, 40), f.PT_LABEL, log=True),
        lambda: histogram(sets, "nPF", np.arange(0, 320, 8), "Candidates stored with a jet"),
        lambda: histogram(
            sets, "nInCone", np.arange(0, 120, 3), r"Candidates within $\Delta R < 0.4$"
        ),
        lambda: histogram(
            sets,
            "fromPVFraction",
            np.linspace(0, 1, 41),
            "Share of charged hadrons' pT from the vertex",
        ),
        lambda: likelihood(sets),
    ]
    for make in makers:
        with f.style():
            drawing = make()
        if drawing:
            yield drawing


def beside_target(topic: str, group: Sequence[Measured]) -> Drawing:
    """Measured values with two standard deviations over their targets' bands."""
    figure, (axes,) = f.panels()
    places = np.arange(len(group))
    low, high = np.array([one.low for one in group]), np.array([one.high for one in group])
    axes.bar(places, high - low, bottom=low, width=0.8, color=TARGET, alpha=0.35, label="Target")
    values, errors = [one.value for one in group], [2 * one.error for one in group]
    axes.errorbar(
        places,
        values,
        yerr=errors,
        fmt="o",
        color=HERE,
        markersize=9,
        elinewidth=2,
        label="These jets",
    )
    axes.set_xticks(
        places, [one.where.removesuffix(" GeV") for one in group], fontsize=18, rotation=20
    )
    axes.minorticks_off()
    axes.set_xlabel(f.PT_LABEL if all(one.where.endswith("GeV") for one in group) else "")
    lowest, highest = min([*low, *values]), max([*high, *values])
    axes.set_ylim(lowest - 0.15 * (highest - lowest), highest + 0.45 * (highest - lowest))
    axes.set_ylabel(topic[0].upper() + topic[1:], fontsize=22)
    axes.legend(loc="upper right")
    words = ", ".join(
        f"{one.where} {one.value:.3g} (target {one.low:.3g} to {one.high:.3g})" for one in group
    )
    name = "".join(letter if letter.isalnum() else "-" for letter in topic)
    caption = f"{topic[0].upper() + topic[1:]}: these jets and their target."
    return Drawing(name=name, caption=caption, alt=f"{topic}: {words}.", figure=figure)


def histogram(
    sets: Mapping[str, Columns], column: str, edges: np.ndarray, label: str, *, log: bool = False
) -> Drawing | None:
    """One distribution, each set by itself, as a share of its jets."""
    figure, (axes,) = f.panels()
    colours = itertools.cycle((HERE, "#5790fc", "#f89c20", TARGET))
    means = []
    for (name, jets), colour in zip(sets.items(), colours, strict=False):
        values = jets[column][np.isfinite(jets[column])]
        counts = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(counts, edges, color=colour, linewidth=2.5, label=name)
        means.append(f"{name} {np.mean(values):.4g}" if len(values) else f"{name} none")
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("Share of jets")
    axes.legend()
    alt = f"Distribution of {column}; means: {', '.join(means)}."
    return Drawing(
        name=f"histogram-{column}",
        caption=f"{column}. Mean: {', '.join(means)}.",
        alt=alt,
        figure=figure,
    )


def likelihood(sets: Mapping[str, Columns]) -> Drawing | None:
    """jetQGl of light-quark and gluon jets."""
    together = (
        {
            name: np.concatenate([jets[name] for jets in sets.values()])
            for name in ("jetQGl", "partonFlav")
        }
        if sets
        else {}
    )
    kinds = {"uds": ((1, 2, 3), "#5790fc"), "g": ((21,), "#b05aa6")}
    chosen = {
        name: (
            together["jetQGl"][
                np.isin(np.abs(together["partonFlav"]), numbers) & (together["jetQGl"] >= 0)
            ]
            if together
            else np.zeros(0)
        )
        for name, (numbers, _) in kinds.items()
    }
    if min(map(len, chosen.values())) < targets.MIN_JETS:
        return None
    figure, (axes,) = f.panels()
    for name, values in chosen.items():
        counts, edges = np.histogram(values, np.linspace(0, 1, 26))
        axes.stairs(counts / len(values), edges, color=kinds[name][1], linewidth=2.5, label=name)
    axes.set_xlabel("Quark-gluon likelihood jetQGl")
    axes.set_ylabel("Share of jets")
    axes.legend(loc="upper center")
    caption = (
        "jetQGl of light-quark and gluon jets: one near 1, the other near 0, if it means something."
    )
    return Drawing(name="likelihood", caption=caption, alt=caption, figure=figure)
