"""Write the results of an evaluation: metrics.json, report.html, figures, and console output."""

from __future__ import annotations

import dataclasses
import math

from common import storage
from common.layout import RunFolder
from common.measurements import Gate
from common.records import MetricsRecord
from reporting.model_card import complete_card
from reporting.report import Documents, figures_of, render

DIGITS = 7
"""Significant digits in metrics.json: more than the intervals need, but still readable."""


def round_floats(metrics: MetricsRecord) -> MetricsRecord:
    """Return the record with floats rounded to DIGITS significant digits."""

    def round_value(value: object) -> object:
        if isinstance(value, dict):
            return {key: round_value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [round_value(item) for item in value]
        if isinstance(value, float) and math.isfinite(value):
            return float(f"{value:.{DIGITS}g}")
        return value

    content = {name: round_value(value) for name, value in metrics.as_json().items()}
    return MetricsRecord.from_json(content)


def write(uri: str, documents: Documents) -> None:
    """Write metrics.json, report.html and figures/<name>.pdf into the folder of a run.

    The measurements are also added to the model card there.
    """
    from reporting.drawing import pdf

    folder = RunFolder(uri)
    content = documents.metrics.as_json()
    # All limits are written, since defaults may change. Runs of earlier versions have fewer limits.
    content["config"] = dataclasses.asdict(documents.metrics.config)
    storage.write_json(folder.metrics, content)
    complete_card(folder, documents.metrics)
    # Drawing takes seconds, so that each figure is drawn once for the page and its file.
    figures = list(figures_of(documents))
    for drawing in figures:
        storage.write_bytes(folder.figure(drawing.name), pdf(drawing))
    storage.write_text(folder.report, render(documents, figures))


def unjudged_lines(gate: Gate) -> list[str]:
    """Return a line on each check that the gate could not make.

    Bins of closure are only counted, since the report lists them.
    """
    lines = []
    bins = 0
    for missing in gate.unmeasured:
        if missing.quantity == "closure":
            bins += 1
        else:
            lines.append(f"not judged: {missing.text}")
    if bins:
        lines.append(
            f"not judged: closure in {bins} groups of too few jets, which the report lists"
        )
    return lines


def verdict(metrics: MetricsRecord) -> list[str]:
    """Return the outcome of the evaluation in a few lines for the console."""
    gain = metrics.gain.percent() if metrics.gain else "not measured"
    lines = [
        f"resolution gain over the standard JEC: {gain} "
        f"(pT > 30 GeV, {metrics.num_measured:,} test jets)"
    ]
    if metrics.trees:
        over = metrics.gain_over_trees.percent() if metrics.gain_over_trees else "not measured"
        reason = f": {metrics.trees.reason}" if metrics.trees.reason else ""
        lines.append(f"resolution gain over boosted trees: {over}{reason}")
    if metrics.baseline and metrics.gain_over_baseline:
        baseline = storage.name(metrics.baseline)
        lines.append(f"resolution gain over {baseline}: {metrics.gain_over_baseline.percent()}")
    lowest = metrics.closure.from_gev
    for closure_bin in metrics.closure.bins:
        # The report has the bins of pT.
        if closure_bin.is_whole(lowest):
            bias = closure_bin.model.percent(100, 2)
            lines.append(f"closure, {closure_bin.region}, pT > {lowest:g} GeV: {bias}")
    for region, entry in metrics.flavour.regions.items():
        if entry.reduction:
            lines.append(f"flavour spread removed, {region}: {entry.reduction.percent()}")
    if metrics.uncertainty:
        band = metrics.uncertainty.bands[0]
        coverage = band.coverage.percent(100, sign="")
        lines.append(
            f"jets between the model's {band.low} and {band.high}: {coverage}, expected"
            f" {100 * band.nominal:g} %"
        )
    for cause, number in metrics.left_out.items():
        lines.append(f"left out: {number:,} jets ({cause})")
    if metrics.gate:
        lines += unjudged_lines(metrics.gate)
    lines.append("gate passed" if metrics.passed else "gate not passed:")
    for reason in metrics.reasons:
        lines.append(f"  - {reason}")
    return lines
