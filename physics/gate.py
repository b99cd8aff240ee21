"""The gate before deployment: is the model not worse than the standard calibration, and closed?

It judges with the statistical intervals in hand: a model fails only where the data show that it
misses the target, so that a small test set makes the gate milder, never random. How mild is in the
report: the intervals stand beside every number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from common.choices import MAX_CLOSURE, MIN_IMPROVEMENT
from physics.interval import percent


def gate(
    metrics: Mapping[str, Any],
    min_improvement: float = MIN_IMPROVEMENT,
    max_closure: float = MAX_CLOSURE,
) -> tuple[bool, list[str]]:
    """(passed, reasons) for the record of physics.metrics.measure.

    Passed means: every jet got a finite answer; the upper end of the interval of the gain (per
    cent) is at least `min_improvement`; and in each closure bin the interval of the bias reaches
    into [-max_closure, max_closure]. What cannot be measured (too few jets) did not pass. The
    reasons are sentences, one for each miss, none if it passed.
    """
    reasons = []
    missing, gain = metrics["num_without_answer"], metrics["gain"]
    if missing:
        reasons.append(
            f"{missing:,} of {metrics['num_jets']:,} jets got no finite answer from the model"
        )

    if gain is None:
        reasons.append(
            f"the resolution gain cannot be measured: {metrics['num_measured']:,} test jets are"
            " too few"
        )
    elif gain["high"] < min_improvement:
        reasons.append(
            f"the resolution gain over the standard JEC, {percent(gain)}, lies below"
            f" {min_improvement:+g} % with its whole interval"
        )

    reasons += closure_misses(metrics["closure"], max_closure)
    return not reasons, reasons


def closure_misses(closure: Mapping[str, Any], maximum: float) -> Iterator[str]:
    """A sentence for each closure bin whose bias is off by more than `maximum`, a fraction."""
    if not closure["bins"]:
        yield (
            "closure cannot be measured: too few test jets with pT above"
            f" {closure['from_gev']:g} GeV"
        )
    for record in closure["bins"]:
        bias = record["model"]
        if not holds(bias, maximum):
            is_open = record["pt_high"] is None
            where = f"above {record['pt_low']:g}" if is_open else f"at {record['pt_range']}"
            yield (
                f"closure fails for {record['region']} jets {where} GeV: median response off by"
                f" {percent(bias, 100, 2)}, allowed {100 * maximum:g} %"
            )


def holds(bias: Mapping[str, float], maximum: float) -> bool:
    """True if the interval of a bias reaches into [-maximum, maximum]."""
    return bias["low"] <= maximum and bias["high"] >= -maximum
