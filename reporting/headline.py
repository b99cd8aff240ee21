"""The few numbers by which runs are compared, as flat scalars with names that stay: what Kubeflow
shows of a run beside others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reporting.figures import objective


def headline(metrics: Mapping, search: Mapping | None = None) -> dict[str, float]:
    """Name -> number, from the content of metrics.json and search.json; what was not measured is
    left out.

    Gains and shares in per cent with the ends of their intervals, closure as (median response - 1)
    in per cent, resolution as IQR / median without unit. `validation_loss` is the objective of the
    trial that was exported.
    """
    return {name: value for name, value in _numbers(metrics, search or {}) if value is not None}


def _numbers(metrics: Mapping, search: Mapping) -> Iterator[tuple[str, float | None]]:
    yield from _interval("resolution_gain_percent", metrics.get("gain"))
    yield from _interval(
        "weighted_resolution_gain_percent", (metrics.get("weighted") or {}).get("gain")
    )
    yield from _interval("resolution_gain_over_baseline_percent", metrics.get("gain_over_baseline"))
    for calibration in ("model", "standard"):
        yield (
            f"resolution_{calibration}",
            ((metrics.get("resolution") or {}).get(calibration) or {}).get("value"),
        )
    yield from _closure(metrics.get("closure") or {"bins": []})
    for region, entry in (metrics.get("flavour") or {"regions": {}})["regions"].items():
        yield f"flavour_spread_{region}_percent", 100 * entry["spread"]["model"]["value"]
        yield f"flavour_spread_removed_{region}_percent", entry["reduction"]["value"]
    for band in (metrics.get("uncertainty") or {"bands": []})["bands"][:1]:
        yield "uncertainty_coverage_percent", 100 * band["coverage"]["value"]
    yield "validation_loss", _loss(search, metrics.get("trial"))
    yield "test_jets", metrics.get("num_measured")
    yield "onnx_jets_per_second", (metrics.get("inference") or {}).get("jets_per_second")


def _interval(name: str, found: Mapping | None) -> Iterator[tuple[str, float]]:
    yield from ((f"{name}_{key}", value) for key, value in (found or {}).items())


def _closure(closure: Mapping) -> Iterator[tuple[str, float]]:
    """Of each region as a whole, and of the worst bin that the gate judges."""
    for record in closure["bins"]:
        if record["pt_low"] == closure["from_gev"] and record["pt_high"] is None:
            yield f"closure_{record['region']}_percent", 100 * record["model"]["value"]
    if closure.get("worst"):
        yield "closure_worst_bin_percent", 100 * closure["worst"]["model"]["value"]


def _loss(search: Mapping, trial: str | None) -> float | None:
    found = next((one for one in search.get("trials", []) if one["name"] == trial), None)
    return objective(found, search) if found else None
