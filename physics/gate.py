"""The gate before deployment: is the model, on the test jets, not worse than the standard
calibration, and does it close?

It judges with the statistical intervals in hand: a model fails only where the data show that it
misses the target, so that a small test set makes the gate milder, never random. How mild is in the
report: the intervals stand beside every number.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.choices import MAX_CLOSURE, MIN_IMPROVEMENT


def gate(
    metrics: Mapping, min_improvement: float = MIN_IMPROVEMENT, max_closure: float = MAX_CLOSURE
) -> tuple[bool, list[str]]:
    """(passed, reasons) for the dictionary of physics.metrics.measure; reasons are sentences, one
    for each miss, empty if it passed.

    Passed means: every jet got a finite answer; the upper end of the interval of the gain (per
    cent) is at least `min_improvement`; and in each closure bin the interval of the bias reaches
    into [-max_closure, max_closure]. What cannot be measured (too few jets) did not pass.
    """
    reasons = [
        *_unanswered(metrics),
        *_gain(metrics, min_improvement),
        *_closure(metrics, max_closure),
    ]
    return not reasons, reasons


def _unanswered(metrics: Mapping) -> list[str]:
    missing = metrics["num_without_answer"]
    return (
        [f"{missing:,} of {metrics['num_jets']:,} jets got no finite answer from the model"]
        if missing
        else []
    )


def _gain(metrics: Mapping, minimum: float) -> list[str]:
    gain = metrics["gain"]
    if gain is None:
        return [
            f"the resolution gain cannot be measured: {metrics['num_measured']:,} test jets are"
            " too few"
        ]
    if gain["high"] >= minimum:
        return []
    return [
        f"the resolution gain over the standard JEC, {percent(gain)}, lies below {minimum:+g} %"
        " with its whole interval"
    ]


def _closure(metrics: Mapping, maximum: float) -> list[str]:
    closure = metrics["closure"]
    if not closure["bins"]:
        return [
            "closure cannot be measured: too few test jets with pT above"
            f" {closure['from_gev']:g} GeV"
        ]
    return [
        f"closure fails for {record['region']} jets {_where(record)} GeV: median response off by "
        f"{percent(record['model'], 100, 2)}, allowed {100 * maximum:g} %"
        for record in closure["bins"]
        if not holds(record["model"], maximum)
    ]


def _where(record: Mapping) -> str:
    return (
        f"above {record['pt_low']:g}" if record["pt_high"] is None else f"at {record['pt_range']}"
    )


def holds(bias: Mapping[str, float], maximum: float) -> bool:
    """True if the interval of a bias reaches into [-maximum, maximum]."""
    return bias["low"] <= maximum and bias["high"] >= -maximum


def percent(
    interval: Mapping[str, float], scale: float = 1.0, digits: int = 1, sign: str = "+"
) -> str:
    """An interval as text: '+4.1 % [3.2, 5.0]'; without the plus where `sign` is empty."""
    value, low, high = (scale * interval[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"
