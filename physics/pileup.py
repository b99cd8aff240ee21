"""Response and resolution against pile-up, in slices of a pile-up column with equally many jets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from physics import groups
from physics import response as r
from physics.bootstrap import interval
from physics.metrics import Sample


def against_pileup(sample: Sample) -> list[dict[str, Any]]:
    """Return median, resolution and the model's gain in each slice with enough jets.

    Slices are those of groups.PILEUP, in the pT bins of groups.PILEUP_BINS; empty without it.
    `middle` is the median value of a slice's jets.
    """
    records = []
    for bin_ in groups.PILEUP_BINS:
        for low, high in groups.pileup_slices(sample.columns):
            group = groups.pileup_name(low, high, bin_)
            if group not in sample.masks:
                continue
            standard = sample.quantiles["standard"][group]
            if not r.resolution(standard).min() > 0:
                continue
            record: dict[str, Any] = {
                "region": bin_.region,
                "pt_range": bin_.range,
                "pt_low": bin_.low,
                "pt_high": None if math.isinf(bin_.high) else bin_.high,
                "num_jets": sample.sizes[group],
                "low": low,
                "high": high,
                "middle": float(np.median(sample.columns[groups.PILEUP][sample.masks[group]])),
                "gain": interval(r.gain(sample.quantiles["model"][group], standard)),
            }
            for name, of_group in sample.quantiles.items():
                record[name] = {
                    "median": interval(r.median(of_group[group])),
                    "resolution": interval(r.resolution(of_group[group])),
                    "half_width": interval(r.half_width(of_group[group])),
                }
            records.append(record)
    return records
