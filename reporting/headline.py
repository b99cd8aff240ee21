"""The main numbers of a run, by which runs are compared, and those that Kubeflow shows.

They are flat scalars, whose names stay the same from version to version.
"""

from __future__ import annotations

from collections import Counter

from common.measurements import Closure, Interval
from common.records import MetricsRecord, SearchRecord
from reporting.page import short_number
from reporting.search_page import status_words

MAX_KUBEFLOW_METRICS = 9
"""Most metrics of one artifact: Kubeflow's table shows ten rows a page, and KFP 2.15.0 fills one of
them with its own property `store_session_info`."""


def headline(metrics: MetricsRecord, search: SearchRecord | None = None) -> dict[str, float]:
    """Return the main numbers of a run by name, for the field `headline` of metrics.json.

    Numbers that were not measured are left out. Gains and shares are in per cent, with the ends of
    their intervals; closure is (median response - 1) in per cent; resolution is IQR / median,
    without unit. `validation_loss` is the objective of the exported trial.
    """
    numbers: dict[str, float | None] = {}
    weighted_gain = metrics.weighted.gain if metrics.weighted else None
    numbers |= _ends("resolution_gain_percent", metrics.gain)
    numbers |= _ends("weighted_resolution_gain_percent", weighted_gain)
    numbers |= _ends("resolution_gain_over_trees_percent", metrics.gain_over_trees)
    numbers |= _ends("resolution_gain_over_baseline_percent", metrics.gain_over_baseline)
    if metrics.resolution:
        numbers["resolution_model"] = metrics.resolution.model.value
        numbers["resolution_standard"] = metrics.resolution.standard.value
    numbers |= closures(metrics.closure)
    for region, entry in metrics.flavour.regions.items():
        numbers[f"flavour_spread_{region}_percent"] = 100 * entry.spread.model.value
        if entry.reduction:
            numbers[f"flavour_spread_removed_{region}_percent"] = entry.reduction.value
    if metrics.uncertainty:
        # The first band is the one nearest to 68 %.
        coverage = metrics.uncertainty.bands[0].coverage
        numbers["uncertainty_coverage_percent"] = 100 * coverage.value
    numbers["validation_loss"] = search.value_of(metrics.trial) if search else None
    numbers["test_jets"] = metrics.num_measured
    if metrics.inference:
        numbers["onnx_jets_per_second"] = metrics.inference.jets_per_second
    return {name: value for name, value in numbers.items() if value is not None}


def _ends(name: str, interval: Interval | None) -> dict[str, float]:
    """Return value, low and high end of an interval by name; empty without an interval."""
    if interval is None:
        return {}
    return {
        f"{name}_value": interval.value,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


def closures(closure: Closure) -> dict[str, float]:
    """Return the bias of each region, and of the worst bin that the gate judges (per cent)."""
    numbers = {}
    for bin_ in closure.bins:
        if bin_.is_whole(closure.from_gev):
            numbers[f"closure_{bin_.region}_percent"] = 100 * bin_.model.value
    if closure.worst:
        numbers["closure_worst_bin_percent"] = 100 * closure.worst.model.value
    return numbers


def kubeflow_metrics_of_evaluation(metrics: MetricsRecord) -> dict[str, float | str]:
    """Return the metrics of an evaluation by name, as Kubeflow shows and compares them.

    There are at most MAX_KUBEFLOW_METRICS. Kubeflow sorts them by name, so that names of one kind
    begin alike. The gain with the ends of its interval, closure (median response - 1) and coverage
    are in per cent; `resolution` is IQR / median, without unit. Numbers that were not measured are
    left out.
    """
    gain, baseline = metrics.gain, metrics.gain_over_baseline
    bias = closures(metrics.closure)
    # The most important come first, because later ones may be cut off.
    values: dict[str, float | str | None] = {
        "gain_percent": gain.value if gain else None,
        "gain_low": gain.low if gain else None,
        "gain_high": gain.high if gain else None,
        "gate_passed": str(metrics.passed).lower(),
        "closure_worst_percent": bias.get("closure_worst_bin_percent"),
        "closure_barrel_percent": bias.get("closure_barrel_percent"),
        "closure_endcap_percent": bias.get("closure_endcap_percent"),
        "gain_over_baseline_percent": baseline.value if baseline else None,
        "test_jets": metrics.num_measured,
    }
    if metrics.uncertainty:
        coverage = metrics.uncertainty.bands[0].coverage
        values["coverage_percent"] = 100 * coverage.value
    if metrics.resolution:
        values["resolution"] = metrics.resolution.model.value
    available = {name: value for name, value in values.items() if value is not None}
    return {name: round_number(available[name]) for name in list(available)[:MAX_KUBEFLOW_METRICS]}


def kubeflow_metrics_of_search(search: SearchRecord) -> dict[str, float | str]:
    """Return the metrics of a search by name, as Kubeflow shows and compares them."""
    values: dict[str, float | str] = {
        search.objective.name: round_number(search.best_value),
        "trials": len(search.trials),
    }
    for status, count in Counter(trial.status for trial in search.trials).items():
        if status != "Succeeded":
            values[f"trials_{status_words(status).replace(' ', '_')}"] = count
    return values


def round_number(value: float | str) -> float | str:
    """Round a float to four significant digits; return counts and text as they are."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def evaluation_lines(metrics: MetricsRecord) -> str:
    """Return an evaluation in three lines: gain, closure and verdict."""
    gain = metrics.gain.percent() if metrics.gain else "not measured"
    bias = []
    for name, value in closures(metrics.closure).items():
        where = name.removeprefix("closure_").removesuffix("_percent").replace("_", " ")
        bias.append(f"{where} {value:+.2f} %")
    limit = f"{100 * metrics.config.max_closure:g} %, or the standard JEC's own bias"
    if metrics.passed:
        verdict = f"gate passed, {metrics.num_measured:,} test jets"
    else:
        verdict = f"gate not passed: {'; '.join(metrics.reasons)}"
    return (
        f"resolution gain over the standard JEC: {gain}\n"
        f"closure: {', '.join(bias) or 'not measured'} (allowed: {limit})\n{verdict}\n"
    )


def search_lines(search: SearchRecord) -> str:
    """Return a search in three lines: the best trial, its parameters, and counts by status."""
    best = search.best
    parameters = ", ".join(f"{name} {short_number(v)}" for name, v in best.parameters.items())
    counts = Counter(status_words(trial.status) for trial in search.trials)
    ends = ", ".join(f"{number} {words}" for words, number in counts.items())
    return (
        f"best trial {best.name}: {search.objective.name} {search.best_value:.4g}\n"
        f"{parameters}\n{len(search.trials)} trials: {ends}\n"
    )
