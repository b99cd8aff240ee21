"""The few numbers by which runs are compared, which Kubeflow shows beside those of other runs.

They are flat scalars whose names stay the same from version to version.
"""

from __future__ import annotations

from common.measurements import Closure, Interval
from common.records import MetricsRecord, SearchRecord


def headline(metrics: MetricsRecord, search: SearchRecord | None = None) -> dict[str, float]:
    """Name -> number, from metrics.json and search.json.

    What was not measured is left out. Gains and shares are in per cent with the ends of their
    intervals, closure is (median response - 1) in per cent, resolution is IQR / median without
    unit. `validation_loss` is the objective of the trial that was exported.
    """
    numbers: dict[str, float | None] = {}
    weighted_gain = metrics.weighted.gain if metrics.weighted else None
    numbers |= _ends("resolution_gain_percent", metrics.gain)
    numbers |= _ends("weighted_resolution_gain_percent", weighted_gain)
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
    """An interval as three numbers; none where it was not measured."""
    if interval is None:
        return {}
    return {
        f"{name}_value": interval.value,
        f"{name}_low": interval.low,
        f"{name}_high": interval.high,
    }


def closures(closure: Closure) -> dict[str, float]:
    """The bias of each region as a whole, and of the worst bin that the gate judges (per cent)."""
    numbers = {}
    for one in closure.bins:
        if one.is_whole(closure.from_gev):
            numbers[f"closure_{one.region}_percent"] = 100 * one.model.value
    if closure.worst:
        numbers["closure_worst_bin_percent"] = 100 * closure.worst.model.value
    return numbers
