"""Tails of the response: the shares of jets that are far off, for each calibration."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from physics import groups
from physics.bootstrap import LEVEL
from physics.interval import Interval
from physics.metrics import Sample
from physics.response import Floats, Mask
from physics.uncertainty import share

DEVIATIONS = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Half-width of a normal interval at LEVEL, in standard deviations."""


def off_by_30_percent(response: Floats) -> Mask:
    """Return which responses are off by more than 30 %: (N,)."""
    far: Mask = np.abs(response - 1) > 0.3
    return far


def off_by_a_factor(response: Floats) -> Mask:
    """Return which responses are above 1.5 or below 1 / 1.5.

    Args:
        response: (N,), pT over the generator's pT.

    Returns:
        (N,) bool.
    """
    far: Mask = (response > 1.5) | (response < 1 / 1.5)
    return far


TAILS: dict[str, Callable[[Floats], Mask]] = {
    "tail beyond 30 %": off_by_30_percent,
    "tail beyond a factor 1.5": off_by_a_factor,
}
"""Name of a tail -> which responses (N,) lie in it."""


def tails(sample: Sample) -> list[dict[str, Any]]:
    """Measure each tail in the bins of the summary with enough jets, by calibration.

    The shares are fractions with binomial intervals; `difference` is that of the model and the
    standard JEC, on the same jets.
    """
    records = []
    for bin_ in groups.SUMMARY:
        if bin_.name not in sample.masks:
            continue
        mask = sample.masks[bin_.name]
        for name, is_far in TAILS.items():
            far = {key: is_far(values[mask]) for key, values in sample.responses.items()}
            record: dict[str, Any] = {
                "tail": name,
                "region": bin_.region,
                "pt_range": bin_.range,
                "pt_low": bin_.low,
                "pt_high": None if math.isinf(bin_.high) else bin_.high,
                "num_jets": sample.sizes[bin_.name],
                "difference": mean_difference(far["model"], far["standard"]),
            }
            records.append(record | {key: share(which) for key, which in far.items()})
    return records


def mean_difference(one: Mask, other: Mask) -> Interval:
    """Return the difference of shares of two masks (N,) of the same jets, with normal interval."""
    differences = one.astype(np.float64) - other
    value = float(np.mean(differences))
    reach = DEVIATIONS * float(np.std(differences)) / math.sqrt(len(differences))
    return {"value": value, "low": value - reach, "high": value + reach}
