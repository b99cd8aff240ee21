"""The gate before deployment: compares a model with the standard JEC and tests its closure.

Model and standard JEC are compared on the same jets, in bootstrap draws of them, so that
fluctuations which move both do not count. Beside the gain in resolution, the gate tests:

  - closure: |median response - 1| is at most `max_closure`, or that of the standard JEC in the same
    bin where that is larger. Bins of pT from 30 GeV up in each region; from 60 GeV up also all
    jets, slices of eta, and slices of the columns in physics.groups.RESIDUALS. Below 60 GeV the cut
    on the reconstructed pT biases every calibration, so the standard JEC's bias is the measure.
  - resolution: IQR / median in each region, and in its bins of pT
  - tails: the share of jets whose response is off by more than 30 %, or by more than a factor 1.5
  - flavour spread: the median response's standard deviation between flavours, without its noise
  - coverage: the share of jets within their own interval, of a network that gives one, in each
    region, and in bins of the pT of the file

Resolution, tails and flavour spread are at most so many times those of the standard JEC. The
`default` gate refuses a model that is worse than allowed by more than the interval of the margin,
so that a small test set makes the gate milder but does not make it refuse by chance. The `strict`
gate refuses a model that could
be worse than allowed within that interval. The intervals are normal, of the standard error of the
draws, at the level of 95 % for all of them together (Bonferroni: 1 - 0.05 / number of tests). The
gain has the plain interval that the report shows.

Sources: O. J. Dunn, J. Am. Stat. Assoc. 56 (1961) 52 (many intervals); B. Efron, R. Tibshirani, An
Introduction to the Bootstrap (1993), chapter 13 (the normal interval).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from common.measurements import GateSettings
from physics import groups, metrics
from physics import response as r
from physics.bootstrap import LEVEL, interval
from physics.interval import interval_text
from physics.metrics import Record, Sample
from physics.response import Floats
from physics.tails import TAILS

MIN_JETS = 100
"""Jets that a bin or slice must have. With fewer, the error of a median is itself uncertain by a
third, which is too much for one of a hundred tests. A whole region needs only groups.MIN_JETS jets.
"""

SAME = 1e-6
"""Margins are fractions; beyond this digit two calibrations are the same (float32)."""

REASONS = 4
"""Failures that are described in a sentence for each quantity; further ones are only counted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """A number with its limit and the error of the margin, all in the quantity's own unit."""

    __test__ = False  # pytest must not collect it

    quantity: str
    where: str
    num_jets: int
    unit: str
    value: float
    standard: float | None
    limit: float
    margin: float
    """limit - |value|."""
    error: float
    """Standard error of the margin."""


def judge(
    sample: Sample, settings: GateSettings, uncertainty: Mapping[str, Any] | None = None
) -> tuple[Record, list[str]]:
    """Judge a model on its test jets.

    Args:
        sample: the test jets (physics.metrics.sample_of).
        settings: which gate, and its limits.
        uncertainty: the record of physics.uncertainty.measure, for a network that gives an interval
            for each jet; empty where that could not be measured.

    Returns:
        The record of all tests (common.measurements.Gate), and the reasons why the gate refuses the
        model; the model passes if there are none.
    """
    strict = settings.gate == "strict"
    tests = [
        *closure_tests(sample, settings),
        *resolution_tests(sample, settings),
        *tail_tests(sample, settings),
        *flavour_tests(sample, settings),
    ]
    if uncertainty:
        tests += coverage_tests(uncertainty, settings)
    level = 1 - (1 - LEVEL) / max(len(tests), 1)
    checks = [evaluate(test, level, strict) for test in tests]
    gain = gain_check(sample, settings)
    unmeasured = unmeasured_groups(sample, settings)

    reasons = missing_answer_reasons(sample, uncertainty)
    if gain is None:
        reasons.append(missing_gain_reason(sample))
    else:
        checks.insert(0, gain)
        if not gain["passed"]:
            reasons.append(gain_reason(gain, strict))
    reasons += failure_reasons(checks, strict)
    reasons += missing_reasons(sample, settings, tests, uncertainty)
    record = {
        "level": level,
        "num_tests": len(tests),
        "checks": checks,
        "unmeasured": unmeasured,
    }
    return record, reasons


# ----------------------------------------------------------------------------------------- verdicts


def evaluate(test: Test, level: float, strict: bool) -> Record:
    """Return the test as a record, with the normal interval of its margin and its outcome."""
    reach = statistics.NormalDist().inv_cdf((1 + level) / 2) * test.error
    margin = {"value": test.margin, "low": test.margin - reach, "high": test.margin + reach}
    # In per cent and percentage points the last digit is 100 times as large.
    same = SAME * (100 if test.unit else 1)
    content = dataclasses.asdict(test)
    del content["error"]
    passed = margin["low" if strict else "high"] >= -same
    return {**content, "margin": margin, "passed": passed}


def gain_check(sample: Sample, settings: GateSettings) -> Record | None:
    """Test the gain over the standard JEC above 30 GeV; None where it cannot be measured."""
    whole = groups.SUMMARY[-1]
    if whole.name not in sample.masks:
        return None
    model = sample.quantiles["model"][whole.name]
    standard = sample.quantiles["standard"][whole.name]
    if not r.resolution(standard).min() > 0:
        return None
    gain = interval(r.gain(model, standard))
    margin = {end: value - settings.min_improvement for end, value in gain.items()}
    passed = margin["high"] >= 0
    if settings.gate == "strict":
        passed = margin["low"] > 0
    return {
        "quantity": "gain",
        "where": whole.text,
        "num_jets": sample.sizes[whole.name],
        "unit": "%",
        "value": gain["value"],
        "standard": None,
        "limit": settings.min_improvement,
        "margin": margin,
        "passed": passed,
    }


def missing_gain_reason(sample: Sample) -> str:
    """Return the reason that too few test jets remain to measure the gain."""
    whole = groups.SUMMARY[-1]
    return (
        f"the resolution gain cannot be measured: the test set has {sample.sizes[whole.name]:,}"
        f" {whole.text} whose responses can be compared with the standard JEC's"
    )


def gain_reason(check: Mapping[str, Any], strict: bool) -> str:
    """Say why the gain does not suffice, with its interval and the limit (%)."""
    limit = check["limit"]
    gain = {end: value + limit for end, value in check["margin"].items()}
    text = interval_text(gain, unit="%")
    if strict:
        return (
            f"the resolution gain over the standard JEC, {text}, is not above {limit:+g} % with its"
            " whole interval"
        )
    return (
        f"the resolution gain over the standard JEC, {text}, lies below {limit:+g} % with its whole"
        " interval"
    )


def failure_reasons(checks: list[Record], strict: bool) -> Iterator[str]:
    """Describe the worst failures of each quantity in a sentence each, and count the others."""
    failures: dict[str, list[Record]] = {}
    for check in checks:
        if not check["passed"] and check["quantity"] != "gain":
            failures.setdefault(check["quantity"], []).append(check)
    for quantity, misses in failures.items():
        misses.sort(key=significance)
        for check in misses[:REASONS]:
            yield failure_reason(check, strict)
        if len(misses) > REASONS:
            yield f"{quantity} fails for {len(misses) - REASONS} more groups of jets"


def significance(check: Mapping[str, Any]) -> float:
    """Return the margin in units of its interval; the lower it is, the surer is the failure."""
    margin = check["margin"]
    reach = max(margin["high"] - margin["value"], 1e-12)
    return float(margin["value"] / reach)


def failure_reason(check: Mapping[str, Any], strict: bool) -> str:
    """Describe a failed test: quantity, jets, value, limit, and by how much it misses the limit."""
    unit = f" {check['unit']}" if check["unit"] else ""
    digits = 2 if check["unit"] else 4
    # The limits of these quantities hold in both directions.
    either = check["quantity"] in ("closure", "coverage")
    sign = "+" if either else ""
    number = f"{check['value']:{sign}.{digits}f}{unit}"
    limit = f"{'±' if either else ''}{check['limit']:.{digits}f}{unit}"
    if check["standard"] is not None:
        limit += f" (standard JEC: {check['standard']:{sign}.{digits}f}{unit})"
    margin = check["margin"]
    if strict:
        text = interval_text(margin, unit=check["unit"], digits=digits)
        miss = f"could be worse: the margin, {text}, is not above zero with its whole interval"
    else:
        excess = {"value": -margin["value"], "low": -margin["high"], "high": -margin["low"]}
        text = interval_text(excess, unit=check["unit"], digits=digits, sign="")
        miss = f"worse than allowed by {text}"
    return f"{check['quantity']} fails for {check['where']}: {number}, allowed {limit}; {miss}"


def missing_answer_reasons(sample: Sample, uncertainty: Mapping[str, Any] | None) -> list[str]:
    """Say how many jets have no finite answer, or no finite uncertainty, from the model."""
    reasons = []
    if sample.num_without_answer:
        reasons.append(
            f"{sample.num_without_answer:,} of {sample.num_jets:,} jets got no finite answer from"
            " the model"
        )
    if uncertainty and uncertainty["num_without_answer"] > sample.num_without_answer:
        reasons.append(
            f"{uncertainty['num_without_answer']:,} of {sample.num_jets:,} jets got no finite"
            " uncertainty from the model"
        )
    return reasons


# ----------------------------------------------------------------------------------- what is judged


def judged_regions(settings: GateSettings) -> list[str]:
    """Return the regions of eta that the gate judges."""
    if settings.gate_regions == "both":
        return list(r.REGIONS)
    return [settings.gate_regions]


def judged_groups(sample: Sample) -> set[str]:
    """Return the names of the groups with enough jets to be judged."""
    whole = {bin_.name for bin_ in (*groups.WHOLE_REGIONS, *groups.CLOSURE_REGIONS)}
    return {name for name in sample.masks if name in whole or sample.sizes[name] >= MIN_JETS}


def closure_places(sample: Sample, settings: GateSettings) -> dict[str, str]:
    """Group -> its description, for each group in which closure is judged."""
    regions = judged_regions(settings)
    places = {}
    for bin_ in (groups.CLOSURE_ALL, *groups.CLOSURE_REGIONS, *groups.CURVES):
        if bin_.region in (*regions, "all"):
            places[bin_.name] = bin_.text
    above = f"above {r.CLOSURE_FROM:g} GeV"
    for low, high in (*groups.ETA_SLICES, *groups.FINE_ETA_SLICES):
        middle = np.array([(low + high) / 2])
        if any(r.in_region(middle, region)[0] for region in regions):
            places[groups.eta_name(low, high)] = f"jets at eta {low:g} to {high:g} {above}"
    for column, edges in groups.slice_edges(sample.columns).items():
        for low, high in itertools.pairwise(edges):
            group = groups.slice_name(column, low, high)
            places[group] = f"jets with {column} {low:.4g} to {high:.4g} {above}"
    return places


def closure_tests(sample: Sample, settings: GateSettings) -> Iterator[Test]:
    """Return |median response - 1| in each bin and slice with enough jets."""
    for group, where in closure_places(sample, settings).items():
        if group not in judged_groups(sample):
            continue
        model = 100 * r.bias(sample.quantiles["model"][group])
        standard = 100 * r.bias(sample.quantiles["standard"][group])
        limit = np.maximum(100 * settings.max_closure, np.abs(standard))
        yield _test("closure", where, sample.sizes[group], "%", model, standard, limit)


def resolution_tests(sample: Sample, settings: GateSettings) -> Iterator[Test]:
    """IQR / median in each region above 30 GeV, and in its bins of pT."""
    for bin_ in groups.SUMMARY:
        if bin_.region in judged_regions(settings) and bin_.name in judged_groups(sample):
            model = r.resolution(sample.quantiles["model"][bin_.name])
            standard = r.resolution(sample.quantiles["standard"][bin_.name])
            limit = settings.max_resolution_ratio * standard
            number = sample.sizes[bin_.name]
            yield _test("resolution", bin_.text, number, "", model, standard, limit)


def _test(
    quantity: str,
    where: str,
    num_jets: int,
    unit: str,
    model: Floats,
    standard: Floats,
    limit: Floats,
) -> Test:
    """Return a test of numbers in draws, (draws + 1,): row 0 is the sample."""
    margin = limit - np.abs(model)
    return Test(
        quantity=quantity,
        where=where,
        num_jets=num_jets,
        unit=unit,
        value=float(model[0]),
        standard=float(standard[0]),
        limit=float(limit[0]),
        margin=float(margin[0]),
        error=float(np.std(margin[1:])),
    )


def tail_tests(sample: Sample, settings: GateSettings) -> Iterator[Test]:
    """Yield the shares of jets in the tails above 30 GeV, all jets and in each region.

    The margin is a mean over the jets, so its error is the standard deviation over sqrt(N), the
    limit of infinitely many draws.
    """
    regions = judged_regions(settings)
    for bin_ in groups.SUMMARY[::-1]:
        is_whole = bin_.low == r.PT_EDGES[0] and math.isinf(bin_.high)
        if not is_whole or bin_.region not in (*regions, "all"):
            continue
        if bin_.name not in sample.masks:
            continue
        mask = sample.masks[bin_.name]
        for quantity, is_far in TAILS.items():
            model = 100.0 * is_far(sample.responses["model"][mask])
            standard = 100.0 * is_far(sample.responses["standard"][mask])
            margin = settings.max_tail_ratio * standard - model
            yield Test(
                quantity=quantity,
                where=bin_.text,
                num_jets=len(margin),
                unit="%",
                value=float(np.mean(model)),
                standard=float(np.mean(standard)),
                limit=float(settings.max_tail_ratio * np.mean(standard)),
                margin=float(np.mean(margin)),
                error=float(np.std(margin) / math.sqrt(len(margin))),
            )


def flavour_places(settings: GateSettings) -> list[r.Bin]:
    """Return where the flavour spread is judged."""
    regions = judged_regions(settings)
    return [
        bin_
        for bin_ in (groups.CLOSURE_ALL, *groups.CLOSURE_REGIONS)
        if bin_.region in (*regions, "all")
    ]


def flavour_tests(sample: Sample, settings: GateSettings) -> Iterator[Test]:
    """Yield the flavour spread above 60 GeV, all jets and in each region."""
    for bin_ in flavour_places(settings):
        flavours = metrics.flavours_in(bin_, sample)
        if len(flavours) < 2:
            continue
        spreads = {}
        for name in ("model", "standard"):
            medians = metrics.flavour_medians(bin_, flavours, sample.quantiles[name])
            spreads[name] = 100 * r.signed_root(r.spread_squared(medians))
        limit = settings.max_flavour_ratio * spreads["standard"]
        margin = limit - spreads["model"]
        yield Test(
            quantity="flavour spread",
            where=bin_.text,
            num_jets=sample.sizes[bin_.name],
            unit="%",
            value=max(float(spreads["model"][0]), 0.0),
            standard=max(float(spreads["standard"][0]), 0.0),
            limit=max(float(limit[0]), 0.0),
            margin=float(margin[0]),
            error=float(np.std(margin[1:])),
        )


def coverage_tests(uncertainty: Mapping[str, Any], settings: GateSettings) -> Iterator[Test]:
    """Compare the coverage of the jets' own intervals with its nominal value.

    Over all jets, in each region, and in its bins of the pT of the file.
    """
    nominal = 100 * uncertainty["bands"][0]["nominal"]
    for record in uncertainty["regions"]:
        region = record["region"]
        if region not in (*judged_regions(settings), "all"):
            continue
        where = "jets" if region == "all" else f"{region} jets"
        if record["pt_range"]:
            if record["num_jets"] < MIN_JETS:
                continue
            is_open = record["pt_range"].startswith(">")
            pt = f"above {record['pt_range'][1:]}" if is_open else f"of {record['pt_range']}"
            where += f" with jetPt {pt} GeV"
        share = record["coverage"]["value"]
        difference = 100 * share - nominal
        yield Test(
            quantity="coverage",
            where=f"{where}, {nominal:g} % expected",
            num_jets=record["num_jets"],
            unit="points",
            value=difference,
            standard=None,
            limit=settings.max_coverage_points,
            margin=settings.max_coverage_points - abs(difference),
            error=100 * math.sqrt(share * (1 - share) / record["num_jets"]),
        )


# ------------------------------------------------------------------------ what could not be judged


def reasons_of_jets(columns: Mapping[str, np.ndarray], settings: GateSettings) -> list[str]:
    """Say why the gate would refuse every model on these test jets, before a model exists.

    columns: name -> (N,), at least physics.metrics.REQUIRED_COLUMNS.
    """
    # Which tests are possible depends on the jets alone, so that a model which changes nothing
    # shows it; the results of its tests are not used.
    sample = metrics.sample_of(columns, np.zeros(len(columns["jetPt"])), replicates=2)
    tests = [
        *closure_tests(sample, settings),
        *resolution_tests(sample, settings),
        *flavour_tests(sample, settings),
    ]
    reasons = []
    if gain_check(sample, settings) is None:
        reasons.append(missing_gain_reason(sample))
    return [*reasons, *missing_reasons(sample, settings, tests, None)]


def missing_reasons(
    sample: Sample,
    settings: GateSettings,
    tests: Iterable[Test],
    uncertainty: Mapping[str, Any] | None,
) -> Iterator[str]:
    """Name each quantity that the gate requires but that cannot be measured.

    Both gates require closure, jets in each region, and the coverage of a network that gives
    intervals. The strict gate also requires resolution, closure and flavour spread of each region.
    """
    judged_places = {(test.quantity, test.where) for test in tests}
    if not any(test.quantity == "closure" for test in tests):
        yield (
            f"closure cannot be measured: too few test jets with pT above {r.CLOSURE_FROM:g} GeV"
        )
    strict = settings.gate == "strict"
    required_groups = [("resolution", bin_) for bin_ in groups.WHOLE_REGIONS]
    if strict:
        required_groups += [("closure", bin_) for bin_ in groups.CLOSURE_REGIONS]
    for quantity, bin_ in required_groups:
        if bin_.region not in judged_regions(settings) or (quantity, bin_.text) in judged_places:
            continue
        if strict or not sample.sizes[bin_.name]:
            yield (
                f"{quantity} cannot be measured for {bin_.text}: {sample.sizes[bin_.name]:,} test"
                f" jets, at least {groups.MIN_JETS} are needed; where the model is for one region,"
                " give --gate-regions barrel or endcap"
            )
    if uncertainty is not None and not any(test.quantity == "coverage" for test in tests):
        yield (
            "coverage cannot be measured: fewer than"
            f" {groups.MIN_JETS} test jets got a finite interval from the model"
        )
    if strict:
        for bin_ in flavour_places(settings):
            if ("flavour spread", bin_.text) not in judged_places:
                yield (
                    f"the flavour spread cannot be measured for {bin_.text}: fewer than two"
                    f" flavours have {groups.MIN_FLAVOUR_JETS} jets, or partonFlav and hadronFlav"
                    " are not among the observers; the strict gate needs it"
                )


def unmeasured_groups(sample: Sample, settings: GateSettings) -> list[Record]:
    """List the bins and slices with too few jets to be judged.

    The many narrow slices are one entry.
    """
    judged_names = judged_groups(sample)
    bins = {bin_.name: bin_ for bin_ in (*groups.CLOSURE_REGIONS, *groups.CURVES)}
    records = []
    for bin_ in groups.WHOLE_REGIONS:
        if bin_.region in judged_regions(settings) and bin_.name not in judged_names:
            number = sample.sizes[bin_.name]
            reason = f"{number} jets, fewer than {groups.MIN_JETS}"
            records.append(
                metrics.unmeasured_record("resolution and tails", bin_.text, number, reason)
            )
    narrow = 0
    for group, where in closure_places(sample, settings).items():
        if group in judged_names:
            continue
        number = sample.sizes[group]
        if group in bins:
            reason = f"{number} jets, fewer than {MIN_JETS}"
            records.append(metrics.unmeasured_record("closure", where, number, reason))
        else:
            narrow += 1
    if narrow:
        reason = f"fewer than {MIN_JETS} jets in {narrow} of them"
        number = sample.sizes[groups.CLOSURE_ALL.name]
        records.append(
            metrics.unmeasured_record("closure", "slices of eta and others", number, reason)
        )
    for bin_ in flavour_places(settings):
        if len(metrics.flavours_in(bin_, sample)) < 2:
            reason = f"fewer than two flavours with {groups.MIN_FLAVOUR_JETS} jets"
            number = sample.sizes[bin_.name]
            records.append(metrics.unmeasured_record("flavour spread", bin_.text, number, reason))
    return records
