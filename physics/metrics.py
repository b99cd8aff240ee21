"""Everything measured on the test jets, as one dictionary of plain numbers: what metrics.json holds
and the report shows.

Compared on the same jets: `model` (this network), `standard` (jetPt as it is in the file: CMS's L1
+ L2L3 corrections), `baseline` where an earlier model is given, and `uncorrected` where jetRawPt is
among the observers. Where eventWeight is, the summary is given a second time with the jets weighted
to the spectrum of collisions. A number with an interval is {"value", "low", "high"}
(physics.bootstrap). A bin with fewer than MIN_JETS jets is left out: its quantiles would say
nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from physics import response as r
from physics.bootstrap import LEVEL, REPLICATES, bootstrap_quantiles, interval
from physics.response import Bin

# the median of 50 jets is known to about 0.18 of a jet's resolution; with fewer even that interval
# misleads
MIN_JETS = 50

NEEDED = ("jetPt", "genJetPt", "genJetEta")
"""Columns (GeV, GeV, none) without which nothing can be measured; partonFlav and hadronFlav add
flavours, jetRawPt `uncorrected`.
"""

RESIDUALS = ("rhoAll", "PV_npvsGood", "jetMult", "QG_mult")
"""Columns against which the bias that is left is shown, where they are among the observers."""
SLICES = 8  # of each of these, with equally many jets

WEIGHT = "eventWeight"

ETA_EDGES = tuple(np.linspace(-2.5, 2.5, 11).round(2).tolist())
DISTRIBUTION_EDGES = np.linspace(0.5, 1.5, 51)

SUMMARY = [
    *r.bins(r.PT_EDGES),
    *(Bin(region=region, low=r.PT_EDGES[0], high=math.inf) for region in (*r.REGIONS, "all")),
]
"""Bins of the summary table; the last one, all jets above 30 GeV, gives the headline gain."""

CURVES = r.bins(r.FINE_PT_EDGES)

CLOSURE = [
    *(Bin(region=region, low=r.CLOSURE_FROM, high=math.inf) for region in r.REGIONS),
    *(one for one in CURVES if one.low >= r.CLOSURE_FROM),
]
"""Where closure must hold: each region as a whole (known best), then in its pT bins (a trend may
cancel in the whole).
"""

Quantiles = dict[str, dict[str, np.ndarray]]


def measure(
    columns: Mapping[str, np.ndarray],
    output: np.ndarray,
    *,
    baseline: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """All metrics of a model's answers. columns: name -> (N,); output: (N,), log(pT_gen / jetPt) as
    the model sees it; baseline: the same of an earlier model.

    Jets with no finite answer, or without generator jet, are counted and left out of everything
    else. No NaN or infinity is returned.
    """
    responses = _responses(columns, output, baseline)
    answered = np.isfinite(responses["model"])
    measurable = np.all(
        [np.isfinite(values) & (values > 0) for values in responses.values()], axis=0
    )
    kept = {name: np.asarray(values)[measurable] for name, values in columns.items()}
    responses = {name: values[measurable] for name, values in responses.items()}
    groups = _groups(kept)
    found: Quantiles = {name: {} for name in responses}
    if groups:
        found = bootstrap_quantiles(
            responses, groups, replicates=replicates, seed=seed, advance=advance
        )
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in groups.items()}
    summary = [_record(one, found, sizes, kept) for one in SUMMARY if one.name in sizes]
    return {
        **_headline(summary),
        "closure": _closure(found, sizes),
        "flavour": _flavour(found, sizes),
        "bins": summary,
        "curves": [_record(one, found, sizes, kept) for one in CURVES if one.name in sizes],
        "weighted": _weighted(responses, groups, sizes, kept, replicates=replicates, seed=seed),
        "core": _core(responses, groups),
        "residuals": {
            name: _residuals(name, edges, kept[name], groups, found)
            for name, edges in _slices(kept).items()
        },
        "eta": [
            _eta_record(low, high, found, sizes)
            for low, high in _eta_slices()
            if _eta_name(low, high) in sizes
        ],
        "distribution": _distribution(responses, kept),
        "num_jets": len(output),
        "num_measured": int(np.count_nonzero(measurable)),
        "num_without_answer": int(
            np.count_nonzero(~answered & (np.asarray(columns["genJetPt"]) > 0))
        ),
        "num_far": {name: r.num_far(values) for name, values in responses.items()},
        "interval": LEVEL,
        "replicates": replicates,
    }


# ----------------------------------------------------------------------------------- jets, groups


def _responses(
    columns: Mapping[str, np.ndarray], output: np.ndarray, baseline: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Calibration -> response (N,), the model first."""
    momenta = {"model": r.calibrated_pt(columns["jetPt"], output), "standard": columns["jetPt"]}
    if baseline is not None:
        momenta["baseline"] = r.calibrated_pt(columns["jetPt"], baseline)
    if "jetRawPt" in columns:
        momenta["uncorrected"] = columns["jetRawPt"]
    return {name: r.response(pt, columns["genJetPt"]) for name, pt in momenta.items()}


def _groups(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name -> which jets, for every bin, flavour in a bin and slice of eta that holds at least
    MIN_JETS jets.
    """
    gen_pt, gen_eta = columns["genJetPt"], columns["genJetEta"]
    found = {one.name: one.contains(gen_pt, gen_eta) for one in (*SUMMARY, *CURVES, *CLOSURE)}
    if "partonFlav" in columns and "hadronFlav" in columns:
        flavour = r.flavour(columns["partonFlav"], columns["hadronFlav"])
        found |= {
            _of(one, name): found[one.name] & (flavour == name)
            for one in _flavour_bins()
            for name in r.FLAVOURS
        }
    for low, high in _eta_slices():
        found[_eta_name(low, high)] = (
            (gen_pt >= r.CLOSURE_FROM) & (gen_eta >= low) & (gen_eta < high)
        )
    for name, edges in _slices(columns).items():
        for low, high in itertools.pairwise(edges):
            found[_slice_name(name, low, high)] = (
                _closing(columns) & (columns[name] >= low) & (columns[name] < high)
            )
    return {name: mask for name, mask in found.items() if np.count_nonzero(mask) >= MIN_JETS}


def _closing(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The jets for which closure means something: (N,) bool."""
    return Bin(region="all", low=r.CLOSURE_FROM, high=math.inf).contains(
        columns["genJetPt"], columns["genJetEta"]
    )


def _slices(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Column of RESIDUALS -> edges between which equally many jets lie; nothing for a column that
    has no two values.
    """
    closing = _closing(columns)
    found = {}
    for name in RESIDUALS:
        values = np.asarray(columns.get(name, ()), dtype=np.float64)
        if len(values) and np.isfinite(values).all() and closing.any():
            found[name] = equal_slices(values[closing], SLICES)
    return {name: edges for name, edges in found.items() if len(edges)}


def equal_slices(values: np.ndarray, number: int) -> np.ndarray:
    """Edges of `number` slices with equally many values, as far as equal values allow; upper edges
    excluded.

    values: (N,), N > 0. Returns ascending edges, the last just above the largest value; none for
    fewer than two slices.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, number + 1), method="nearest"))
    return np.r_[edges[:-1], np.nextafter(edges[-1], np.inf)] if len(edges) > 2 else np.zeros(0)


def _slice_name(name: str, low: float, high: float) -> str:
    return f"{name} {low:.9g} to {high:.9g}"


def _flavour_bins() -> list[Bin]:
    """The pT bins of the summary, then each region from CLOSURE_FROM up, where flavours are
    compared free of the threshold's bias.
    """
    return [
        *r.bins(r.PT_EDGES),
        *(Bin(region=region, low=r.CLOSURE_FROM, high=math.inf) for region in r.REGIONS),
    ]


def _of(one: Bin, flavour: str) -> str:
    return f"{flavour} in {one.name}"


def _eta_slices() -> list[tuple[float, float]]:
    return list(itertools.pairwise(ETA_EDGES))


def _eta_name(low: float, high: float) -> str:
    return f"eta {low:g} to {high:g}"


# ---------------------------------------------------------------------------------------- numbers


def _place(one: Bin, sizes: dict[str, int]) -> dict[str, Any]:
    """Which bin this is, as JSON can hold it: an open end is null."""
    high = None if math.isinf(one.high) else one.high
    return {
        "region": one.region,
        "pt_range": one.range,
        "pt_low": one.low,
        "pt_high": high,
        "num_jets": sizes[one.name],
    }


def _record(
    one: Bin, found: Quantiles, sizes: dict[str, int], columns: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """One bin: median, resolution and half width of each calibration, and the gain of the model by
    both widths.
    """
    record = _place(one, sizes)
    record["pt"] = float(
        np.median(columns["genJetPt"][one.contains(columns["genJetPt"], columns["genJetEta"])])
    )
    for name, groups in found.items():
        q = groups[one.name]
        record[name] = {
            "median": interval(r.median(q)),
            "resolution": interval(r.resolution(q)),
            "half_width": interval(r.half_width(q)),
        }
    model, standard = found["model"][one.name], found["standard"][one.name]
    record["gain"] = interval(r.gain(model, standard))
    record["gain_half_width"] = interval(r.gain(model, standard, width=r.half_width))
    if "baseline" in found:
        record["gain_over_baseline"] = interval(r.gain(model, found["baseline"][one.name]))
    return record


def _weighted(
    responses: Mapping[str, np.ndarray],
    groups: Mapping[str, np.ndarray],
    sizes: dict[str, int],
    columns: Mapping[str, np.ndarray],
    *,
    replicates: int,
    seed: int,
) -> dict[str, Any] | None:
    """The summary's bins with each jet counted eventWeight times; null where jets have no weights,
    equal ones, or ones <= 0.
    """
    weights = np.asarray(columns.get(WEIGHT, ()), dtype=np.float64)
    if (
        not len(weights)
        or not np.isfinite(weights).all()
        or weights.min() <= 0
        or weights.min() == weights.max()
    ):
        return None
    chosen = {one.name: groups[one.name] for one in SUMMARY if one.name in groups}
    found = bootstrap_quantiles(
        responses, chosen, replicates=replicates, seed=seed, weights=weights
    )
    summary = [_record(one, found, sizes, columns) for one in SUMMARY if one.name in chosen]
    return {
        **_headline(summary),
        "bins": summary,
        "effective_jets": float(weights.sum() ** 2 / np.sum(weights**2)),
    }


def _core(
    responses: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Mean, and mean and width of the normal core, of each calibration's response in the summary's
    bins.
    """
    return [
        {
            "bin": one.name,
            **{name: _moments(values[groups[one.name]]) for name, values in responses.items()},
        }
        for one in SUMMARY
        if one.name in groups
    ]


def _moments(values: np.ndarray) -> dict[str, Any]:
    """Errors are one standard deviation: sigma / sqrt(n) of the core's mean, sigma / sqrt(2 n) of
    its width; null without a core.
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


def _residuals(
    name: str,
    edges: np.ndarray,
    values: np.ndarray,
    groups: Mapping[str, np.ndarray],
    found: Quantiles,
) -> list[dict[str, Any]]:
    """Bias in each slice of a column that holds enough jets, from CLOSURE_FROM up;

    `middle` is the median value of its jets.
    """
    records = []
    for low, high in itertools.pairwise(edges):
        group = _slice_name(name, low, high)
        if group in groups:
            inside = values[groups[group]]
            place = {
                "low": float(low),
                "high": float(high),
                "middle": float(np.median(inside)),
                "num_jets": len(inside),
            }
            records.append(
                place
                | {
                    calibration: interval(r.bias(quantiles[group]))
                    for calibration, quantiles in found.items()
                }
            )
    return records


def _headline(summary: list[dict[str, Any]]) -> dict[str, Any]:
    """Gain (per cent) and resolution over all jets above 30 GeV; null where there are too few."""
    whole = next((record for record in summary if record["region"] == "all"), None)
    if whole is None:
        return {
            "gain": None,
            "gain_half_width": None,
            "gain_over_baseline": None,
            "resolution": None,
        }
    resolutions = {
        name: entry["resolution"]
        for name, entry in whole.items()
        if isinstance(entry, dict) and "resolution" in entry
    }
    return {
        "gain": whole["gain"],
        "gain_half_width": whole["gain_half_width"],
        "gain_over_baseline": whole.get("gain_over_baseline"),
        "resolution": resolutions,
    }


def _closure(found: Quantiles, sizes: dict[str, int]) -> dict[str, Any]:
    """Bias (median response - 1) in each bin of CLOSURE, and the bin whose interval lies farthest
    from zero.
    """
    bins = [
        _place(one, sizes)
        | {name: interval(r.bias(groups[one.name])) for name, groups in found.items()}
        for one in CLOSURE
        if one.name in sizes
    ]
    worst = max(bins, key=lambda record: distance(record["model"]), default=None)
    return {"from_gev": r.CLOSURE_FROM, "worst": worst, "bins": bins}


def distance(bias: Mapping[str, float]) -> float:
    """How far from zero a bias surely is: the end of its interval that is nearer to zero, or minus
    something if zero lies inside.
    """
    return max(bias["low"], -bias["high"])


def _flavour(found: Quantiles, sizes: dict[str, int]) -> dict[str, Any]:
    """Median response of each flavour by pT bin, and its spread in each region from CLOSURE_FROM
    up.
    """
    bins = [
        _place(one, sizes)
        | {
            "flavour": name,
            "num_jets": sizes[_of(one, name)],
            **_medians(found, _of(one, name)),
        }
        for one in _flavour_bins()
        for name in r.FLAVOURS
        if _of(one, name) in sizes
    ]
    wholes = [one for one in _flavour_bins() if math.isinf(one.high) and one.low == r.CLOSURE_FROM]
    regions = {one.region: _spread(one, found) for one in wholes}
    return {
        "from_gev": r.CLOSURE_FROM,
        "regions": {region: entry for region, entry in regions.items() if entry},
        "bins": bins,
    }


def _medians(found: Quantiles, group: str) -> dict[str, Any]:
    return {name: interval(r.median(groups[group])) for name, groups in found.items()}


def _spread(one: Bin, found: Quantiles) -> dict[str, Any] | None:
    """Spread between the flavours that have enough jets, uds minus gluon, and what the model takes
    off both (per cent, paired).
    """
    names = [name for name in r.FLAVOURS if _of(one, name) in found["model"]]
    if len(names) < 2:
        return None
    medians = {
        cal: np.stack([r.median(groups[_of(one, name)]) for name in names], axis=-1)
        for cal, groups in found.items()
    }
    spreads = {cal: r.spread(values) for cal, values in medians.items()}
    entry = {"flavours": names, "spread": {cal: interval(rows) for cal, rows in spreads.items()}}
    entry["reduction"] = interval(
        100 * (1 - spreads["model"] / np.maximum(spreads["standard"], 1e-9))
    )
    if {"uds", "g"} <= set(names):
        uds, gluon = names.index("uds"), names.index("g")
        entry["uds_minus_g"] = {
            cal: interval(values[:, uds] - values[:, gluon]) for cal, values in medians.items()
        }
    return entry


def _eta_record(low: float, high: float, found: Quantiles, sizes: dict[str, int]) -> dict[str, Any]:
    group = _eta_name(low, high)
    return {"eta_low": low, "eta_high": high, "num_jets": sizes[group]} | {
        name: interval(r.bias(groups[group])) for name, groups in found.items()
    }


def _distribution(
    responses: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Histogram of the response above 30 GeV in each region: region -> calibration -> counts
    between `edges`.
    """
    whole = {
        one.region: one.contains(columns["genJetPt"], columns["genJetEta"])
        for one in SUMMARY[-3:-1]
    }
    counts = {
        region: {
            name: np.histogram(values[mask], DISTRIBUTION_EDGES)[0].tolist()
            for name, values in responses.items()
        }
        for region, mask in whole.items()
    }
    return {"edges": DISTRIBUTION_EDGES.round(3).tolist(), "counts": counts}
