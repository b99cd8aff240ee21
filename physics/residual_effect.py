"""What a residual correction (physics.residual) does on the test jets: closure and gain without it.

Both are measured on the same draws of the same jets, so that their differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from physics import groups
from physics import response as r
from physics.bootstrap import REPLICATES, bootstrap_quantiles, interval
from physics.response import Floats

MEASURED_TO = 0.01
"""A bin's bias counts as measured if its interval reaches no farther than so to either side."""


def residual_effect(
    columns: Mapping[str, np.ndarray],
    output: Floats,
    without: Floats,
    *,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> dict[str, Any] | None:
    """Bias in each bin of the closure, and the gain above 30 GeV, with the correction and without.

    columns: name -> (N,) as in physics.metrics; output, without: (N,), log(pT_gen / jetPt) as the
    model sees it, with the correction and before it. Jets without a finite response are left out,
    and bins with fewer than MIN_JETS of them; None where that leaves no bin. `advance` is called
    after each draw of the bootstrap.
    """
    momenta = {
        "with": r.calibrated_pt(columns["jetPt"], output),
        "without": r.calibrated_pt(columns["jetPt"], without),
        "standard": columns["jetPt"],
    }
    responses = {name: r.response(pt, columns["genJetPt"]) for name, pt in momenta.items()}
    measurable = np.ones(len(output), dtype=bool)
    for values in responses.values():
        measurable &= np.isfinite(values) & (values > 0)
    responses = {name: values[measurable] for name, values in responses.items()}
    gen_pt, gen_eta = (np.asarray(columns[n])[measurable] for n in ("genJetPt", "genJetEta"))

    whole = groups.SUMMARY[-1]
    masks = {}
    for one in (whole, *groups.CLOSURE):
        mask = one.contains(gen_pt, gen_eta)
        if np.count_nonzero(mask) >= groups.MIN_JETS:
            masks[one.name] = mask
    if not masks:
        return None
    quantiles = bootstrap_quantiles(
        responses, masks, replicates=replicates, seed=seed, advance=advance
    )

    bins = []
    for one in groups.CLOSURE:
        if one.name in masks:
            biases = {n: r.bias(quantiles[n][one.name]) for n in ("with", "without")}
            corrected = interval(biases["with"])
            reach = max(
                corrected["high"] - corrected["value"], corrected["value"] - corrected["low"]
            )
            bins.append(
                {
                    "region": one.region,
                    "pt_range": one.range,
                    "pt_low": one.low,
                    "pt_high": None if math.isinf(one.high) else one.high,
                    "num_jets": int(np.count_nonzero(masks[one.name])),
                    "with_residual": corrected,
                    "without": interval(biases["without"]),
                    "measured": reach <= MEASURED_TO,
                }
            )
    gains = None
    if whole.name in masks:
        standard = quantiles["standard"][whole.name]
        of = {n: r.gain(quantiles[n][whole.name], standard) for n in ("with", "without")}
        gains = {
            "with_residual": interval(of["with"]),
            "without": interval(of["without"]),
            "difference": interval(of["with"] - of["without"]),
        }
    return {"bins": bins, "gain": gains, "measured_to": MEASURED_TO}
