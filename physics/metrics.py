"""Everything measured on the test jets, as one record of plain numbers.

metrics.json holds it and the report shows it. Compared on the same jets: `model` (this network),
`standard` (jetPt as it is in the file: CMS's L1 + L2L3 corrections), `trees` where boosted trees
were trained (physics.boosted_trees), `baseline` where an earlier model is given, and `uncorrected`
where jetRawPt is among the observers. Where eventWeight is, the summary is given a second time with
the jets weighted to the spectrum of collisions. A number with an interval is {"value", "low",
"high"} (physics.bootstrap). What cannot be measured, such as a bin with fewer than
physics.groups.MIN_JETS jets, is in the list `unmeasured` with the reason.

`sample_of` makes the jets' responses, groups and bootstrap draws; `measure` makes the record of
them, and physics.gate judges them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from physics import groups
from physics import response as r
from physics.bootstrap import LEVEL, REPLICATES, bootstrap_quantiles, interval
from physics.core import core_errors
from physics.interval import Interval
from physics.response import Bin, Floats, Mask

REQUIRED_COLUMNS = ("jetPt", "genJetPt", "genJetEta")
"""Columns (GeV, GeV, none) without which nothing can be measured.

partonFlav and hadronFlav add flavours, jetRawPt adds `uncorrected`.
"""

WEIGHT = "eventWeight"

MAX_GAIN_WIDTH = 10.0
"""Largest width of a gain's interval, in percentage points. Gains are a few per cent, so that a
wider interval which contains zero is not shown.
"""

LARGEST = float(np.finfo(np.float32).max)
"""GeV; the largest pT that a served model can return, as it answers in float32."""

DISTRIBUTION_EDGES = np.linspace(0.5, 1.5, 51)

Record = dict[str, Any]
"""A part of metrics.json: names -> plain numbers, texts, None, and lists and dicts of these."""

Quantiles = Mapping[str, Mapping[str, Floats]]
"""Calibration -> group -> (replicates + 1, 5), as physics.bootstrap gives them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Test jets with their responses, groups and bootstrap draws."""

    columns: Mapping[str, np.ndarray]
    """Observers of the N jets that are measured."""
    measurable: Mask
    """Which jets of the test set can be measured: (num_jets,) bool, N of them True."""
    responses: Mapping[str, Floats]
    """Calibration -> response (N,), finite and positive."""
    masks: groups.Masks
    """Group -> which jets (N,), for the groups with at least MIN_JETS jets."""
    sizes: Mapping[str, int]
    """Group -> number of jets, of every group."""
    quantiles: Quantiles
    num_jets: int
    """Number of jets in the test set."""
    num_without_answer: int
    """Jets with a generator jet, but no finite and positive answer of the model."""
    left_out: Mapping[str, int]
    """Cause -> number of jets that are not measured."""
    unmeasured: list[Record]
    """What could not be measured, and why (common.measurements.Unmeasured)."""
    replicates: int
    seed: int


def measure(
    columns: Mapping[str, np.ndarray],
    output: Floats,
    *,
    baseline: Floats | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> Record:
    """Compute all metrics of a model's answers.

    Args:
        columns: observer -> (N,); momenta in GeV.
        output: (N,), log(pT_gen / jetPt) as the model predicts it.
        baseline: (N,), the same by an earlier model.
        replicates: number of draws of the bootstrap.
        seed: of the draws.
        advance: is called after each draw.

    Returns:
        The record of `record_of`.
    """
    sample = sample_of(
        columns, output, baseline=baseline, replicates=replicates, seed=seed, advance=advance
    )
    return record_of(sample)


def sample_of(
    columns: Mapping[str, np.ndarray],
    output: Floats,
    *,
    baseline: Floats | None = None,
    trees: Floats | None = None,
    pileup: Floats | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    advance: Callable[[], None] | None = None,
) -> Sample:
    """Select the jets that can be measured, and draw their bootstrap samples.

    Jets without a finite answer of a model, or without generator jet, are counted and left out.

    Args:
        columns: name -> (N,), at least REQUIRED_COLUMNS.
        output: the model's answers (N,), log(pT_gen / jetPt).
        baseline: the same of an earlier model.
        trees: the same of boosted trees.
        pileup: a measure of the pile-up of each jet's event, (N,).
        replicates: number of bootstrap draws.
        seed: of the draws.
        advance: called after each draw.
    """
    responses = calibrated_responses(columns, output, baseline, trees)
    if pileup is not None:
        columns = {**columns, groups.PILEUP: pileup}
    unmeasured: list[Record] = []
    has_pt = usable(responses["standard"])
    if "uncorrected" in responses and not usable(responses["uncorrected"])[has_pt].all():
        # A column that only the report uses must not decide which jets the gate uses.
        del responses["uncorrected"]
        reason = "jetRawPt has values that are not finite and positive"
        unmeasured.append(
            unmeasured_record("uncorrected response", "all jets", len(output), reason)
        )

    measurable, left_out, num_without_answer = _measurable(columns, responses)
    if not measurable.all():  # otherwise copies would take memory for nothing
        columns = _SelectedColumns(columns, measurable)
        for name in responses:  # one after another, since each is a copy
            responses[name] = responses[name][measurable]

    masks = groups.masks(columns)
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    masks = masks.select(name for name in sizes if sizes[name] >= groups.MIN_JETS)
    quantiles: Quantiles = {name: {} for name in responses}
    if masks:
        quantiles = bootstrap_quantiles(
            responses, masks, replicates=replicates, seed=seed, advance=advance
        )
    return Sample(
        columns=columns,
        measurable=measurable,
        responses=responses,
        masks=masks,
        sizes=sizes,
        quantiles=quantiles,
        num_jets=len(output),
        num_without_answer=num_without_answer,
        left_out=left_out,
        unmeasured=unmeasured,
        replicates=replicates,
        seed=seed,
    )


class _SelectedColumns(Mapping[str, np.ndarray]):
    """Columns of some jets, which are selected each time that a column is read.

    The evaluation's columns are mapped from files, and copies of all would need memory.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], jets: Mask) -> None:
        """Take columns (num_jets,), and which jets to select, (num_jets,) bool."""
        self.columns, self.jets = columns, jets

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a copy of the selected jets' values."""
        return np.asarray(self.columns[name])[self.jets]

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a column, without reading it."""
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.columns)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.columns)


def usable(response: Floats) -> Mask:
    """Return where a response (N,) can be measured, that is finite and positive: (N,) bool."""
    return np.isfinite(response) & (response > 0)


def _measurable(
    columns: Mapping[str, np.ndarray], responses: Mapping[str, Floats]
) -> tuple[Mask, dict[str, int], int]:
    """Select the jets that are measured.

    Returns:
        The mask of the measured jets, (num_jets,); the number of other jets by cause, each counted
        under the first cause that applies; and the number of jets without a finite model output.
    """
    gen_pt = np.asarray(columns["genJetPt"], dtype=np.float64)
    causes = {
        "genJetPt is not finite": ~np.isfinite(gen_pt),
        "no generator jet (genJetPt is 0)": ~(gen_pt > 0),
        "genJetEta is not finite": ~np.isfinite(np.asarray(columns["genJetEta"])),
        "jetPt is not finite and positive": ~usable(responses["standard"]),
        "the model has no finite answer": ~usable(responses["model"]),
    }
    if "baseline" in responses:
        causes["the baseline has no finite answer"] = ~usable(responses["baseline"])
    measurable = np.ones(len(gen_pt), dtype=bool)
    left_out = {}
    for cause, holds in causes.items():
        left_out[cause] = int(np.count_nonzero(measurable & holds))
        measurable &= ~holds
    without_answer = left_out["the model has no finite answer"]
    return (
        measurable,
        {cause: number for cause, number in left_out.items() if number},
        without_answer,
    )


def record_of(sample: Sample) -> Record:
    """Compute all metrics of a sample, for JSON: none of them is NaN or infinite."""
    columns, responses, quantiles = sample.columns, sample.responses, sample.quantiles
    unmeasured = [*sample.unmeasured, *_too_few(sample)]
    summary, missing = _bins(groups.SUMMARY, quantiles, sample)
    unmeasured += missing
    curves, missing = _bins(groups.CURVES, quantiles, sample)
    unmeasured += missing
    weighted, missing = _weighted(sample)
    unmeasured += missing
    flavour, missing = _flavour(sample)
    unmeasured += missing
    return {
        **_headline(summary),
        "closure": _closure(sample),
        "flavour": flavour,
        "bins": summary,
        "curves": curves,
        "weighted": weighted,
        "core": _core(sample),
        "residuals": _residuals(sample),
        "eta": _eta(sample, groups.ETA_SLICES),
        "fine_eta": _eta(sample, groups.JERC_ETA_SLICES),
        "distribution": _distribution(responses, columns),
        "num_jets": sample.num_jets,
        "num_measured": len(responses["model"]),
        "num_without_answer": sample.num_without_answer,
        "num_far": {name: r.num_far(values) for name, values in responses.items()},
        "interval": LEVEL,
        "replicates": sample.replicates,
        "unmeasured": unmeasured,
        "left_out": dict(sample.left_out),
    }


def calibrated_responses(
    columns: Mapping[str, np.ndarray],
    output: Floats,
    baseline: Floats | None,
    trees: Floats | None = None,
) -> dict[str, Floats]:
    """Return calibration -> response (N,), the model first; NaN where there is none.

    columns: jetPt and genJetPt (GeV), perhaps jetRawPt. output, baseline, trees:
    log(pT_gen / jetPt).
    """
    jet_pt, gen_pt = columns["jetPt"], columns["genJetPt"]
    responses = {
        "model": _served_response(r.calibrated_pt(jet_pt, output), gen_pt),
        "standard": _served_response(jet_pt, gen_pt),
    }
    if trees is not None:
        responses["trees"] = _served_response(r.calibrated_pt(jet_pt, trees), gen_pt)
    if baseline is not None:
        responses["baseline"] = _served_response(r.calibrated_pt(jet_pt, baseline), gen_pt)
    if "jetRawPt" in columns:
        responses["uncorrected"] = _served_response(columns["jetRawPt"], gen_pt)
    return responses


def _served_response(pt: Floats, gen_pt: Floats) -> Floats:
    """Return the response (N,) of momenta (N,) (GeV); NaN where there is none.

    A served model answers in float32, which holds no larger momentum.
    """
    response = r.response(np.where(np.abs(pt) <= LARGEST, pt, np.nan), gen_pt)
    return np.where(np.abs(response) <= LARGEST, response, np.nan)


# ----------------------------------------------------------------------------- what is not measured


def unmeasured_record(quantity: str, where: str, num_jets: int, reason: str) -> Record:
    """Return the record of a number that is not measured (common.measurements.Unmeasured)."""
    return {"quantity": quantity, "where": where, "num_jets": num_jets, "reason": reason}


def _too_few(sample: Sample) -> list[Record]:
    """Return the bins and slices that hold too few jets, and the columns that cannot be sliced."""
    places = {bin_.name: bin_.text for bin_ in (*groups.SUMMARY, *groups.CURVES, *groups.CLOSURE)}
    for low, high in groups.ETA_SLICES:
        places[groups.eta_name(low, high)] = f"eta from {low:g} to {high:g}"
    for column, edges in groups.slice_edges(sample.columns).items():
        for low, high in itertools.pairwise(edges):
            group = groups.slice_name(column, low, high)
            places[group] = f"{column} from {low:.4g} to {high:.4g}"
    reason = f"fewer than {groups.MIN_JETS} jets"
    records = []
    for group, where in places.items():
        if sample.sizes[group] < groups.MIN_JETS:
            records.append(unmeasured_record("response", where, sample.sizes[group], reason))
    if groups.has_flavours(sample.columns):
        for bin_ in groups.FLAVOUR_BINS:
            for flavour in r.FLAVOURS:
                number = sample.sizes[groups.flavour_name(bin_, flavour)]
                # Both regions together are for the gate alone.
                if number < groups.MIN_JETS and bin_.region != "all":
                    quantity = f"response of {flavour}"
                    records.append(unmeasured_record(quantity, bin_.text, number, reason))
    for name in groups.RESIDUALS:
        if name in sample.columns:
            values = np.asarray(sample.columns[name], dtype=np.float64)
            number = int(np.count_nonzero(~np.isfinite(values)))
            if number:
                reason = f"{number:,} values are not finite"
                records.append(
                    unmeasured_record("closure", f"slices of {name}", len(values), reason)
                )
    return records


# ------------------------------------------------------------------------------------------- bins


def _intervals(
    formula: Callable[[Floats], Floats], quantiles: Quantiles, group: str
) -> dict[str, Interval]:
    """Return calibration -> value and interval of a formula in a group.

    formula: (..., 5) quantiles -> (...).
    """
    return {name: interval(formula(of_group[group])) for name, of_group in quantiles.items()}


def _place(bin_: Bin, num_jets: int) -> Record:
    """Return the edges of a bin for JSON; an open end is None."""
    return {
        "region": bin_.region,
        "pt_range": bin_.range,
        "pt_low": bin_.low,
        "pt_high": None if math.isinf(bin_.high) else bin_.high,
        "num_jets": num_jets,
    }


def _bins(
    bins: Iterable[Bin], quantiles: Quantiles, sample: Sample
) -> tuple[list[Record], list[Record]]:
    """Return each bin's median, resolution and half width by calibration, and the model's gain.

    The gain is given by both widths. `pt` is the median pT_gen (GeV) of the bin's jets. Bins with
    too few jets are left out. Also returns what is not measured for another reason.
    """
    gen_pt = sample.columns["genJetPt"]
    records: list[Record] = []
    unmeasured: list[Record] = []
    for bin_ in bins:
        if bin_.name not in sample.masks:
            continue
        record = _place(bin_, sample.sizes[bin_.name])
        # Both sides of a gain come from the same draws, so that its interval is paired.
        model = quantiles["model"][bin_.name]
        standard = quantiles["standard"][bin_.name]
        if not (r.resolution(standard).min() > 0 and r.half_width(standard).min() > 0):
            reason = "the response of the standard JEC has no width, or one of a few jets has"
            reason += " all the weight"
            unmeasured.append(unmeasured_record("gain", bin_.text, record["num_jets"], reason))
            continue
        record["pt"] = float(np.median(gen_pt[sample.masks[bin_.name]]))
        for name, of_group in quantiles.items():
            q = of_group[bin_.name]
            record[name] = {
                "median": interval(r.median(q)),
                "resolution": interval(r.resolution(q)),
                "half_width": interval(r.half_width(q)),
            }
        record["ratio"] = {}
        for name, of_group in quantiles.items():
            if name != "standard":
                ratio = r.median(of_group[bin_.name]) / r.median(standard)
                record["ratio"][name] = interval(ratio)
        record["gain"] = interval(r.gain(model, standard))
        record["gain_half_width"] = interval(r.gain(model, standard, width=r.half_width))
        for name in ("trees", "baseline"):
            other = quantiles[name][bin_.name] if name in quantiles else None
            if other is not None and r.resolution(other).min() > 0:
                record[f"gain_over_{name}"] = interval(r.gain(model, other))
        records.append(record)
    return records, unmeasured


def _headline(summary: list[Record]) -> Record:
    """Return gain (per cent) and resolution over all jets above 30 GeV.

    Null where there are too few.
    """
    whole = next((record for record in summary if record["region"] == "all"), None)
    if whole is None:
        names = ("gain", "gain_half_width", "gain_over_trees", "gain_over_baseline", "resolution")
        return dict.fromkeys(names)
    resolutions = {}
    for name, entry in whole.items():
        # Of the record's entries only calibrations have a resolution.
        if isinstance(entry, dict) and "resolution" in entry:
            resolutions[name] = entry["resolution"]
    return {
        "gain": whole["gain"],
        "gain_half_width": whole["gain_half_width"],
        "gain_over_trees": whole.get("gain_over_trees"),
        "gain_over_baseline": whole.get("gain_over_baseline"),
        "resolution": resolutions,
    }


def _weighted(sample: Sample) -> tuple[Record | None, list[Record]]:
    """Return the summary's bins with each jet counted eventWeight times, and what is not measured.

    None where jets have no weights, or weights that cannot be used. A bin is left out if it has
    fewer than MIN_JETS effective jets, or if the interval of its gain is wider than MAX_GAIN_WIDTH
    and contains zero.
    """
    if WEIGHT not in sample.columns:
        return None, []
    weights = np.asarray(sample.columns[WEIGHT], dtype=np.float64)
    whole = groups.SUMMARY[-1]
    if reason := weights_problem(weights):
        return None, [unmeasured_record("weighted gain", whole.text, len(weights), reason)]
    bins: list[Bin] = []
    unmeasured: list[Record] = []
    effective = {}
    for bin_ in groups.SUMMARY:
        if bin_.name not in sample.masks:
            continue
        effective[bin_.name] = effective_jets(weights[sample.masks[bin_.name]])
        if effective[bin_.name] < groups.MIN_JETS:
            number = sample.sizes[bin_.name]
            reason = f"{effective[bin_.name]:.1f} effective jets, fewer than {groups.MIN_JETS}"
            unmeasured.append(unmeasured_record("weighted gain", bin_.text, number, reason))
        else:
            bins.append(bin_)
    if not bins:
        return None, unmeasured
    quantiles = bootstrap_quantiles(
        sample.responses,
        sample.masks.select(bin_.name for bin_ in bins),
        replicates=sample.replicates,
        seed=sample.seed,
        # Weights are relative: the largest is 1, so that no sum of them overflows.
        weights=weights / weights.max(),
    )
    records, missing = _bins(bins, quantiles, sample)
    unmeasured += missing
    summary = []
    for record in records:
        bin_ = Bin(
            region=record["region"], low=record["pt_low"], high=record["pt_high"] or math.inf
        )
        record["effective_jets"] = effective[bin_.name]
        gain = record["gain"]
        if gain["high"] - gain["low"] > MAX_GAIN_WIDTH and gain["low"] <= 0 <= gain["high"]:
            reason = f"too uncertain to tell, from {gain['low']:.1f} to {gain['high']:.1f} % by"
            reason += f" {effective[bin_.name]:,.0f} effective jets"
            unmeasured.append(
                unmeasured_record("weighted gain", bin_.text, record["num_jets"], reason)
            )
        else:
            summary.append(record)
    # Wherever a bin has enough jets, all jets above 30 GeV are enough.
    above_30 = effective[whole.name]
    return {**_headline(summary), "bins": summary, "effective_jets": above_30}, unmeasured


def weights_problem(weights: Floats) -> str:
    """Say why weights (N,) cannot be used; empty if they can."""
    if not len(weights):
        return "there are no jets"
    if number := int(np.count_nonzero(~np.isfinite(weights))):
        return f"eventWeight has {number:,} values that are not finite"
    if number := int(np.count_nonzero(weights <= 0)):
        return f"eventWeight has {number:,} values that are zero or negative"
    if weights.min() == weights.max():
        return "all values of eventWeight are equal, so that the weighted gain is the gain"
    return ""


def effective_jets(weights: Floats) -> float:
    """Return the effective sample size of positive weights (N,): (sum w)^2 / sum w^2.

    It is the number of jets of equal weight with the same statistical error. Source: L. Kish,
    Survey Sampling (1965).
    """
    relative = weights / weights.max()
    return float(relative.sum() ** 2 / np.sum(relative**2))


def _core(sample: Sample) -> list[Record]:
    """Return mean, and mean and width of the normal core, by calibration in the summary's bins."""
    rng = np.random.default_rng(sample.seed)
    records = []
    for bin_ in groups.SUMMARY:
        if bin_.name in sample.masks:
            record: Record = {"bin": bin_.name}
            mask = sample.masks[bin_.name]
            for name, values in sample.responses.items():
                record[name] = moments(values[mask], rng)
            records.append(record)
    return records


def moments(values: Floats, rng: np.random.Generator) -> dict[str, float | None]:
    """Compute the mean of responses (N,), N > 0, and mean and width of their normal core.

    Errors are one standard deviation (physics.core). The core's numbers are None where there is
    no core.
    """
    mean, sigma = r.gaussian_core(values)
    mean_error, sigma_error = map(float, core_errors(values, rng))
    numbers = (mean, sigma, mean_error, sigma_error)
    if not all(math.isfinite(number) for number in numbers) or not mean > 0:
        return {"mean": float(np.mean(values)), "core_mean": None, "core_sigma": None}
    return {
        "mean": float(np.mean(values)),
        "core_mean": mean,
        "core_mean_error": mean_error,
        "core_sigma": sigma,
        "core_sigma_error": sigma_error,
        "core_resolution": sigma / mean,
    }


# ------------------------------------------------------------------------------- closure, flavour


def _closure(sample: Sample) -> Record:
    """Return bias (median response - 1) in each bin of CLOSURE, and the worst bin.

    The worst bin is the one whose interval lies farthest from zero.
    """
    bins = []
    for bin_ in groups.CLOSURE:
        if bin_.name in sample.masks:
            place = _place(bin_, sample.sizes[bin_.name])
            bins.append(place | _intervals(r.bias, sample.quantiles, bin_.name))
    worst = max(bins, key=lambda record: distance_from_zero(record["model"]), default=None)
    return {"from_gev": r.CLOSURE_FROM, "worst": worst, "bins": bins}


def distance_from_zero(bias: Mapping[str, float]) -> float:
    """Return the distance from zero to the nearer end of a bias's interval.

    It is negative if the interval contains zero.
    """
    return max(bias["low"], -bias["high"])


def _flavour(sample: Sample) -> tuple[Record, list[Record]]:
    """Return the median response of each flavour by pT bin, and its spread in each region.

    The spread is measured from CLOSURE_FROM up. Also returns what is not measured.
    """
    bins: list[Record] = []
    unmeasured: list[Record] = []
    regions = {}
    if groups.has_flavours(sample.columns):
        for bin_ in groups.FLAVOUR_BINS:
            for flavour in r.FLAVOURS:
                group = groups.flavour_name(bin_, flavour)
                # Both regions together are for the gate alone.
                if group in sample.masks and bin_.region != "all":
                    place = _place(bin_, sample.sizes[group])
                    medians = _intervals(r.median, sample.quantiles, group)
                    bins.append({**place, "flavour": flavour, **medians})
        for bin_ in groups.CLOSURE_REGIONS:
            entry, missing = flavour_spread(bin_, sample)
            unmeasured += missing
            if entry:
                regions[bin_.region] = entry
    else:
        reason = "partonFlav and hadronFlav are not among the observers"
        whole = groups.CLOSURE_ALL
        number = sample.sizes[whole.name]
        unmeasured.append(unmeasured_record("flavour spread", whole.text, number, reason))
    return {"from_gev": r.CLOSURE_FROM, "regions": regions, "bins": bins}, unmeasured


def flavours_in(bin_: Bin, sample: Sample) -> list[str]:
    """List the flavours with at least MIN_FLAVOUR_JETS jets in a bin of FLAVOUR_BINS."""
    flavours = []
    for name in r.FLAVOURS:
        if sample.sizes.get(groups.flavour_name(bin_, name), 0) >= groups.MIN_FLAVOUR_JETS:
            flavours.append(name)
    return flavours


def flavour_medians(bin_: Bin, flavours: Iterable[str], of_group: Mapping[str, Floats]) -> Floats:
    """Return the median response of flavours in a bin: (replicates + 1, flavours).

    of_group: group -> quantiles of one calibration.
    """
    medians = [r.median(of_group[groups.flavour_name(bin_, name)]) for name in flavours]
    return np.stack(medians, axis=-1)


def flavour_spread(bin_: Bin, sample: Sample) -> tuple[Record | None, list[Record]]:
    """Measure how much the median response differs between flavours with enough jets in a bin.

    `reduction` is the share of the standard JEC's spread that the model removes (per cent, paired),
    `uds_minus_g` the difference between light quarks and gluons. None with fewer than two flavours.
    Also returns what is not measured.
    """
    unmeasured: list[Record] = []
    flavours = flavours_in(bin_, sample)
    for name in r.FLAVOURS:
        if name not in flavours:
            number = sample.sizes[groups.flavour_name(bin_, name)]
            reason = f"{name} is left out: {number} jets, fewer than {groups.MIN_FLAVOUR_JETS}"
            unmeasured.append(unmeasured_record("flavour spread", bin_.text, number, reason))
    if len(flavours) < 2:
        reason = "fewer than two flavours have enough jets"
        number = sample.sizes[bin_.name]
        unmeasured.append(unmeasured_record("flavour spread", bin_.text, number, reason))
        return None, unmeasured

    medians: dict[str, Floats] = {}
    spreads: dict[str, Floats] = {}
    for calibration, of_group in sample.quantiles.items():
        medians[calibration] = flavour_medians(bin_, flavours, of_group)
        spread = r.signed_root(r.spread_squared(medians[calibration]))
        spreads[calibration] = np.maximum(spread, 0)
    entry: Record = {
        "flavours": flavours,
        "spread": {name: interval(rows) for name, rows in spreads.items()},
        "reduction": None,
    }
    if entry["spread"]["standard"]["low"] > 0 and spreads["standard"][0] > 0:
        # A few draws may have no spread at all, which would divide by zero.
        standard = np.maximum(spreads["standard"], 1e-9)
        entry["reduction"] = interval(100 * (1 - spreads["model"] / standard))
    else:
        reason = "the standard JEC may have none, so that no share of it can be removed"
        number = sample.sizes[bin_.name]
        unmeasured.append(unmeasured_record("flavour spread removed", bin_.text, number, reason))
    if {"uds", "g"} <= set(flavours):
        uds, gluon = flavours.index("uds"), flavours.index("g")
        entry["uds_minus_g"] = {
            name: interval(values[:, uds] - values[:, gluon]) for name, values in medians.items()
        }
    return entry, unmeasured


# ------------------------------------------------------------------------------- slices, histogram


def _residuals(sample: Sample) -> dict[str, list[Record]]:
    """Return column -> bias in each of its slices that holds enough jets, from CLOSURE_FROM up.

    `middle` is the median value of a slice's jets.
    """
    residuals: dict[str, list[Record]] = {}
    for column, edges in groups.slice_edges(sample.columns).items():
        residuals[column] = []
        for low, high in itertools.pairwise(edges):
            group = groups.slice_name(column, low, high)
            if group in sample.masks:
                inside = sample.columns[column][sample.masks[group]]
                place = {
                    "low": float(low),
                    "high": float(high),
                    "middle": float(np.median(inside)),
                    "num_jets": len(inside),
                }
                residuals[column].append(place | _intervals(r.bias, sample.quantiles, group))
    return residuals


def _eta(sample: Sample, slices: Iterable[tuple[float, float]]) -> list[Record]:
    """Return the bias in each slice of eta that holds enough jets, from CLOSURE_FROM up."""
    records = []
    for low, high in slices:
        group = groups.eta_name(low, high)
        if group in sample.masks:
            place = {"eta_low": low, "eta_high": high, "num_jets": sample.sizes[group]}
            records.append(place | _intervals(r.bias, sample.quantiles, group))
    return records


def _distribution(
    responses: Mapping[str, Floats], columns: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Return the histogram of the response above 30 GeV in each region.

    region -> calibration -> counts between `edges`.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for bin_ in groups.WHOLE_REGIONS:
        mask = bin_.contains(columns["genJetPt"], columns["genJetEta"])
        counts[bin_.region] = {}
        for name, values in responses.items():
            histogram, _ = np.histogram(values[mask], DISTRIBUTION_EDGES)
            counts[bin_.region][name] = histogram.tolist()
    return {"edges": DISTRIBUTION_EDGES.round(3).tolist(), "counts": counts}
