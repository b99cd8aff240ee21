"""The few numbers by which runs are compared, which Kubeflow shows beside those of other runs.

They are flat scalars whose names stay the same from version to version.
"""

from __future__ import annotations

from collections.abc import Iterator

from reporting.records import Record, objective_value


def headline(metrics: Record, search: Record | None = None) -> dict[str, float]:
    """Name -> number, from the content of metrics.json and search.json.

    What was not measured is left out. Gains and shares are in per cent with the ends of their
    intervals, closure is (median response - 1) in per cent, resolution is IQR / median without
    unit. `validation_loss` is the objective of the trial that was exported.
    """
    numbers = dict(_numbers(metrics, search or {}))
    return {name: value for name, value in numbers.items() if value is not None}


def _numbers(metrics: Record, search: Record) -> Iterator[tuple[str, float | None]]:
    yield from _interval("resolution_gain_percent", metrics.get("gain"))
    weighted = metrics.get("weighted") or {}
    yield from _interval("weighted_resolution_gain_percent", weighted.get("gain"))
    yield from _interval("resolution_gain_over_baseline_percent", metrics.get("gain_over_baseline"))
    for calibration in ("model", "standard"):
        resolution = (metrics.get("resolution") or {}).get(calibration) or {}
        yield f"resolution_{calibration}", resolution.get("value")
    yield from _closure(metrics.get("closure") or {"bins": []})
    for region, entry in (metrics.get("flavour") or {"regions": {}})["regions"].items():
        yield f"flavour_spread_{region}_percent", 100 * entry["spread"]["model"]["value"]
        yield f"flavour_spread_removed_{region}_percent", entry["reduction"]["value"]
    for band in (metrics.get("uncertainty") or {"bands": []})["bands"][:1]:
        yield "uncertainty_coverage_percent", 100 * band["coverage"]["value"]
    yield "validation_loss", _loss(search, metrics.get("trial"))
    yield "test_jets", metrics.get("num_measured")
    yield "onnx_jets_per_second", (metrics.get("inference") or {}).get("jets_per_second")


def _interval(name: str, interval: Record | None) -> Iterator[tuple[str, float]]:
    for key, value in (interval or {}).items():
        yield f"{name}_{key}", value


def _closure(closure: Record) -> Iterator[tuple[str, float]]:
    """Of each region as a whole, and of the worst bin that the gate judges."""
    for record in closure["bins"]:
        if record["pt_low"] == closure["from_gev"] and record["pt_high"] is None:
            yield f"closure_{record['region']}_percent", 100 * record["model"]["value"]
    if closure.get("worst"):
        yield "closure_worst_bin_percent", 100 * closure["worst"]["model"]["value"]


def _loss(search: Record, trial_name: str | None) -> float | None:
    for trial in search.get("trials", []):
        if trial["name"] == trial_name:
            return objective_value(trial, search)
    return None
