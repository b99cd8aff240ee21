"""Everything measured on the test jets, as one record of plain numbers.

metrics.json holds it and the report shows it. Compared on the same jets: `model` (this network),
`standard` (jetPt as it is in the file: CMS's L1 + L2L3 corrections), `baseline` where an earlier
model is given, and `uncorrected` where jetRawPt is among the observers. Where eventWeight is, the
summary is given a second time with the jets weighted to the spectrum of collisions. A number with
an interval is {"value", "low", "high"} (physics.bootstrap). A group with fewer than
physics.groups.MIN_JETS jets is left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from physics import groups
from physics import response as r
from physics.bootstrap import LEVEL, REPLICATES, bootstrap_quantiles, interval
from physics.interval import Interval
from physics.response import Bin, Floats, Mask

NEEDED = ("jetPt", "genJetPt", "genJetEta")
"""Columns (GeV, GeV, none) without which nothing can be measured.

partonFlav and hadronFlav add flavours, jetRawPt adds `uncorrected`.
"""

WEIGHT = "eventWeight"

DISTRIBUTION_EDGES = np.linspace(0.5, 1.5, 51)

Record = dict[str, Any]
"""A part of metrics.json: names -> plain numbers, texts, None, and lists and dicts of these."""

Quantiles = Mapping[str, Mapping[str, Floats]]
"""Calibration -> group -> (replicates + 1, 5), as physics.bootstrap gives them."""


def measure(
    columns: Mapping[str, np.ndarray],
    output: Floats,
    *,
    baseline: Floats | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> Record:
    """All metrics of a model's answers.

    columns: name -> (N,), at least NEEDED. output: (N,), log(pT_gen / jetPt) as the model sees it;
    baseline: the same of an earlier model. Jets with no finite answer, or without generator jet,
    are counted and left out of everything else. `advance` is called after each draw of the
    bootstrap. No NaN or infinity is returned.
    """
    responses = calibrated_responses(columns, output, baseline)
    answered = np.isfinite(responses["model"])
    measurable = np.ones(len(answered), dtype=bool)
    for values in responses.values():
        measurable &= np.isfinite(values) & (values > 0)
    kept = {name: np.asarray(values)[measurable] for name, values in columns.items()}
    responses = {name: values[measurable] for name, values in responses.items()}

    masks = groups.masks(kept)
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    quantiles: Quantiles = {name: {} for name in responses}
    if masks:
        quantiles = bootstrap_quantiles(
            responses, masks, replicates=replicates, seed=seed, advance=advance
        )

    summary = _bins(groups.SUMMARY, quantiles, sizes, kept)
    without_answer = ~answered & (np.asarray(columns["genJetPt"]) > 0)
    return {
        **_headline(summary),
        "closure": _closure(quantiles, sizes),
        "flavour": _flavour(quantiles, sizes),
        "bins": summary,
        "curves": _bins(groups.CURVES, quantiles, sizes, kept),
        "weighted": _weighted(responses, masks, sizes, kept, replicates=replicates, seed=seed),
        "core": _core(responses, masks),
        "residuals": _residuals(kept, masks, quantiles),
        "eta": _eta(quantiles, sizes),
        "distribution": _distribution(responses, kept),
        "num_jets": len(output),
        "num_measured": int(np.count_nonzero(measurable)),
        "num_without_answer": int(np.count_nonzero(without_answer)),
        "num_far": {name: r.num_far(values) for name, values in responses.items()},
        "interval": LEVEL,
        "replicates": replicates,
    }


def calibrated_responses(
    columns: Mapping[str, np.ndarray], output: Floats, baseline: Floats | None
) -> dict[str, Floats]:
    """Calibration -> response (N,), the model first; NaN where there is none.

    columns: jetPt and genJetPt (GeV), perhaps jetRawPt. output, baseline: log(pT_gen / jetPt).
    """
    momenta = {"model": r.calibrated_pt(columns["jetPt"], output), "standard": columns["jetPt"]}
    if baseline is not None:
        momenta["baseline"] = r.calibrated_pt(columns["jetPt"], baseline)
    if "jetRawPt" in columns:
        momenta["uncorrected"] = columns["jetRawPt"]
    return {name: r.response(pt, columns["genJetPt"]) for name, pt in momenta.items()}


# ------------------------------------------------------------------------------------------- bins


def _intervals(
    formula: Callable[[Floats], Floats], quantiles: Quantiles, group: str
) -> dict[str, Interval]:
    """Calibration -> value and interval of a formula in a group.

    formula: (..., 5) quantiles -> (...).
    """
    return {name: interval(formula(of_group[group])) for name, of_group in quantiles.items()}


def _place(one: Bin, num_jets: int) -> Record:
    """Which bin this is, as JSON can hold it: an open end is null."""
    return {
        "region": one.region,
        "pt_range": one.range,
        "pt_low": one.low,
        "pt_high": None if math.isinf(one.high) else one.high,
        "num_jets": num_jets,
    }


def _bins(
    bins: Iterable[Bin],
    quantiles: Quantiles,
    sizes: Mapping[str, int],
    columns: Mapping[str, np.ndarray],
) -> list[Record]:
    """Each bin's median, resolution and half width by calibration, and the gain of the model.

    The gain is given by both widths. `pt` is the median pT_gen (GeV) of the bin's jets. Bins that
    are not in `sizes` are left out.
    """
    gen_pt, gen_eta = columns["genJetPt"], columns["genJetEta"]
    records = []
    for one in bins:
        if one.name not in sizes:
            continue
        record = _place(one, sizes[one.name])
        record["pt"] = float(np.median(gen_pt[one.contains(gen_pt, gen_eta)]))
        for name, of_group in quantiles.items():
            q = of_group[one.name]
            record[name] = {
                "median": interval(r.median(q)),
                "resolution": interval(r.resolution(q)),
                "half_width": interval(r.half_width(q)),
            }
        # Both sides of a gain come from the same draws, so that its interval is paired.
        model = quantiles["model"][one.name]
        standard = quantiles["standard"][one.name]
        record["gain"] = interval(r.gain(model, standard))
        record["gain_half_width"] = interval(r.gain(model, standard, width=r.half_width))
        if "baseline" in quantiles:
            earlier = quantiles["baseline"][one.name]
            record["gain_over_baseline"] = interval(r.gain(model, earlier))
        records.append(record)
    return records


def _headline(summary: list[Record]) -> Record:
    """Gain (per cent) and resolution over all jets above 30 GeV; null where there are too few."""
    whole = next((record for record in summary if record["region"] == "all"), None)
    if whole is None:
        return dict.fromkeys(("gain", "gain_half_width", "gain_over_baseline", "resolution"))
    resolutions = {}
    for name, entry in whole.items():
        # Of the record's entries only calibrations have a resolution.
        if isinstance(entry, dict) and "resolution" in entry:
            resolutions[name] = entry["resolution"]
    return {
        "gain": whole["gain"],
        "gain_half_width": whole["gain_half_width"],
        "gain_over_baseline": whole.get("gain_over_baseline"),
        "resolution": resolutions,
    }


def _weighted(
    responses: Mapping[str, Floats],
    masks: Mapping[str, Mask],
    sizes: Mapping[str, int],
    columns: Mapping[str, np.ndarray],
    *,
    replicates: int,
    seed: int,
) -> Record | None:
    """The summary's bins with each jet counted eventWeight times.

    None where jets have no weights, equal ones, or ones <= 0.
    """
    weights = np.asarray(columns.get(WEIGHT, ()), dtype=np.float64)
    if not len(weights) or not np.isfinite(weights).all():
        return None
    if weights.min() <= 0 or weights.min() == weights.max():
        return None
    chosen = {one.name: masks[one.name] for one in groups.SUMMARY if one.name in masks}
    quantiles = bootstrap_quantiles(
        responses, chosen, replicates=replicates, seed=seed, weights=weights
    )
    summary = _bins(groups.SUMMARY, quantiles, {name: sizes[name] for name in chosen}, columns)
    # L. Kish, Survey Sampling (1965): so many jets of equal weight would have the same error.
    effective = weights.sum() ** 2 / np.sum(weights**2)
    return {**_headline(summary), "bins": summary, "effective_jets": float(effective)}


def _core(responses: Mapping[str, Floats], masks: Mapping[str, Mask]) -> list[Record]:
    """Mean, and mean and width of the normal core, by calibration in the summary's bins."""
    records = []
    for one in groups.SUMMARY:
        if one.name in masks:
            record: Record = {"bin": one.name}
            for name, values in responses.items():
                record[name] = moments(values[masks[one.name]])
            records.append(record)
    return records


def moments(values: Floats) -> dict[str, float | None]:
    """Mean, and mean and width of the normal core of responses (N,), N > 0.

    Errors are one standard deviation: sigma / sqrt(n) of the core's mean, sigma / sqrt(2 n) of its
    width. Without a core its numbers are None.
    """
    mean, sigma = r.gaussian_core(values)
    if not math.isfinite(mean):
        return {"mean": float(np.mean(values)), "core_mean": None, "core_sigma": None}
    number = len(values)
    return {
        "mean": float(np.mean(values)),
        "core_mean": mean,
        "core_mean_error": sigma / number**0.5,
        "core_sigma": sigma,
        "core_sigma_error": sigma / (2 * number) ** 0.5,
        "core_resolution": sigma / mean,
    }


# ------------------------------------------------------------------------------- closure, flavour


def _closure(quantiles: Quantiles, sizes: Mapping[str, int]) -> Record:
    """Bias (median response - 1) in each bin of CLOSURE, and the worst bin.

    The worst bin is the one whose interval lies farthest from zero.
    """
    bins = []
    for one in groups.CLOSURE:
        if one.name in sizes:
            place = _place(one, sizes[one.name])
            bins.append(place | _intervals(r.bias, quantiles, one.name))
    worst = max(bins, key=lambda record: distance(record["model"]), default=None)
    return {"from_gev": r.CLOSURE_FROM, "worst": worst, "bins": bins}


def distance(bias: Mapping[str, float]) -> float:
    """How far from zero a bias surely is: the end of its interval that is nearer to zero.

    Negative if zero lies inside.
    """
    return max(bias["low"], -bias["high"])


def _flavour(quantiles: Quantiles, sizes: Mapping[str, int]) -> Record:
    """Median response of each flavour by pT bin, and its spread in each region.

    The spread is measured from CLOSURE_FROM up.
    """
    bins = []
    for one in groups.FLAVOUR_BINS:
        for flavour in r.FLAVOURS:
            group = groups.flavour_name(one, flavour)
            if group in sizes:
                place = _place(one, sizes[group])
                medians = _intervals(r.median, quantiles, group)
                bins.append({**place, "flavour": flavour, **medians})
    regions = {}
    for one in groups.CLOSURE_REGIONS:
        entry = flavour_spread(one, quantiles)
        if entry:
            regions[one.region] = entry
    return {"from_gev": r.CLOSURE_FROM, "regions": regions, "bins": bins}


def flavour_spread(one: Bin, quantiles: Quantiles) -> Record | None:
    """Spread of the median response between the flavours that have enough jets in a bin.

    `reduction` is what the model takes off it (per cent, paired), `uds_minus_g` the difference
    between light quarks and gluons. None with fewer than two flavours.
    """
    groups_of = {name: groups.flavour_name(one, name) for name in r.FLAVOURS}
    flavours = [name for name in r.FLAVOURS if groups_of[name] in quantiles["model"]]
    if len(flavours) < 2:
        return None
    medians: dict[str, Floats] = {}
    for calibration, of_group in quantiles.items():
        of_flavours = [r.median(of_group[groups_of[name]]) for name in flavours]
        medians[calibration] = np.stack(of_flavours, axis=-1)  # (replicates + 1, flavours)

    spreads = {name: r.spread(values) for name, values in medians.items()}
    # A spread of exactly zero would divide by zero.
    reduction = 100 * (1 - spreads["model"] / np.maximum(spreads["standard"], 1e-9))
    entry = {
        "flavours": flavours,
        "spread": {name: interval(rows) for name, rows in spreads.items()},
        "reduction": interval(reduction),
    }
    if {"uds", "g"} <= set(flavours):
        uds, gluon = flavours.index("uds"), flavours.index("g")
        entry["uds_minus_g"] = {
            name: interval(values[:, uds] - values[:, gluon]) for name, values in medians.items()
        }
    return entry


# ------------------------------------------------------------------------------- slices, histogram


def _residuals(
    columns: Mapping[str, np.ndarray], masks: Mapping[str, Mask], quantiles: Quantiles
) -> dict[str, list[Record]]:
    """Column -> bias in each of its slices that holds enough jets, from CLOSURE_FROM up.

    `middle` is the median value of a slice's jets.
    """
    residuals: dict[str, list[Record]] = {}
    for column, edges in groups.slice_edges(columns).items():
        residuals[column] = []
        for low, high in itertools.pairwise(edges):
            group = groups.slice_name(column, low, high)
            if group in masks:
                inside = columns[column][masks[group]]
                place = {
                    "low": float(low),
                    "high": float(high),
                    "middle": float(np.median(inside)),
                    "num_jets": len(inside),
                }
                residuals[column].append(place | _intervals(r.bias, quantiles, group))
    return residuals


def _eta(quantiles: Quantiles, sizes: Mapping[str, int]) -> list[Record]:
    """Bias in each slice of eta that holds enough jets, from CLOSURE_FROM up."""
    records = []
    for low, high in groups.ETA_SLICES:
        group = groups.eta_name(low, high)
        if group in sizes:
            place = {"eta_low": low, "eta_high": high, "num_jets": sizes[group]}
            records.append(place | _intervals(r.bias, quantiles, group))
    return records


def _distribution(
    responses: Mapping[str, Floats], columns: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Histogram of the response above 30 GeV in each region.

    region -> calibration -> counts between `edges`.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for one in groups.WHOLE_REGIONS:
        mask = one.contains(columns["genJetPt"], columns["genJetEta"])
        counts[one.region] = {}
        for name, values in responses.items():
            histogram, _ = np.histogram(values[mask], DISTRIBUTION_EDGES)
            counts[one.region][name] = histogram.tolist()
    return {"edges": DISTRIBUTION_EDGES.round(3).tolist(), "counts": counts}
