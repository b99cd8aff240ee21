"""Compare closure and gain on the test jets with a residual correction and without it.

Both are measured on the same draws of the same jets, so that their differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from physics import groups
from physics import response as r
from physics.bootstrap import bootstrap_quantiles, interval
from physics.metrics import Sample, usable
from physics.response import Floats

MEASURED_TO = 0.01
"""Largest half-width of a bias's interval for which the bias counts as measured."""


def residual_effect(
    sample: Sample, without: Floats, *, advance: Callable[[], None] | None = None
) -> dict[str, Any] | None:
    """Return bias in each bin of closure and gain above 30 GeV, with and without correction.

    sample: the test jets with the answers of the whole model, as they are judged. without:
    (sample.num_jets,), log(pT_gen / jetPt) before the correction. None where no bin has MIN_JETS
    jets, or where a jet that is measured has no finite response without the correction. The gain is
    None where the standard JEC's response has no width. `advance` is called after each draw of the
    bootstrap.
    """
    jets = sample.columns
    pt = r.calibrated_pt(jets["jetPt"], np.asarray(without)[sample.measurable])
    response = r.response(pt, jets["genJetPt"])
    whole = groups.SUMMARY[-1]
    masks = sample.masks.select(bin_.name for bin_ in (whole, *groups.CLOSURE))
    if not masks or not usable(response).all():
        return None
    quantiles_without = bootstrap_quantiles(
        {"without": response},
        masks,
        replicates=sample.replicates,
        seed=sample.seed,
        advance=advance,
    )
    # These are the draws of the sample: they depend only on the number of jets and the seed.
    quantiles = {**sample.quantiles, "with": sample.quantiles["model"], **quantiles_without}

    bins = []
    for bin_ in groups.CLOSURE:
        if bin_.name in masks:
            biases = {n: r.bias(quantiles[n][bin_.name]) for n in ("with", "without")}
            bias_with = interval(biases["with"])
            reach = max(
                bias_with["high"] - bias_with["value"], bias_with["value"] - bias_with["low"]
            )
            bins.append(
                {
                    "region": bin_.region,
                    "pt_range": bin_.range,
                    "pt_low": bin_.low,
                    "pt_high": None if math.isinf(bin_.high) else bin_.high,
                    "num_jets": sample.sizes[bin_.name],
                    "with_residual": bias_with,
                    "without": interval(biases["without"]),
                    "measured": reach <= MEASURED_TO,
                }
            )
    gains = None
    standard = sample.quantiles["standard"].get(whole.name)
    if standard is not None and r.resolution(standard).min() > 0:
        of = {n: r.gain(quantiles[n][whole.name], standard) for n in ("with", "without")}
        gains = {
            "with_residual": interval(of["with"]),
            "without": interval(of["without"]),
            "difference": interval(of["with"] - of["without"]),
        }
    return {"bins": bins, "gain": gains, "measured_to": MEASURED_TO}
