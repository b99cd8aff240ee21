"""Sections of report.html on physics: verdict, response, closure, flavour and uncertainty.

Each function takes metrics.json and returns the text and tables that templates/report.html shows.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from common.measurements import (
    Calibrated,
    ClosureBin,
    CoreBin,
    FlavourSpread,
    GateCheck,
    GateSettings,
    Interval,
    ResponseBin,
)
from common.measurements import Uncertainty as UncertaintyRecord
from common.records import MetricsRecord
from common.run import Run
from physics.groups import (
    CLOSURE_ALL,
    CLOSURE_REGIONS,
    MIN_JETS,
    SUMMARY,
    WHOLE_REGIONS,
)
from physics.response import PT_EDGES
from reporting.page import MISSING, Table
from reporting.report_gate import GateSection, gate_section

PUBLISHED_GAINS = {
    "PFN": {"barrel": (0.2, 1.4, 4.5, 8.0, 2.2), "endcap": (1.0, 6.9, 12.9, 5.0, 5.9)},
    "ParticleNet": {"barrel": (0.6, 1.6, 4.8, 7.8, 2.5), "endcap": (1.3, 7.1, 11.9, 9.4, 5.8)},
}
"""Gain in resolution (per cent) published for these networks on 286,645 CMS open-data test jets:
one value for each of our pT bins, then one for all jets above 30 GeV.
"""


# ---------------------------------------------------------------------------------------- verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """A number with its interval, its name and a remark, at the top of the report."""

    what: str
    number: str
    interval: str
    remark: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The decision of the gate with the main numbers."""

    passed: bool
    reasons: Sequence[str]
    gate: GateSection | None
    """None for a run of an earlier version."""
    left_out: Sequence[str]
    tiles: Sequence[Tile]
    num_measured: str
    level: str
    replicates: int


def verdict(metrics: MetricsRecord) -> Verdict:
    """Return the head of the report: the verdict of the gate and the tiles."""
    return Verdict(
        passed=metrics.passed,
        reasons=metrics.reasons,
        gate=gate_section(metrics),
        left_out=[f"{number:,} jets: {cause}" for cause, number in metrics.left_out.items()],
        tiles=tiles(metrics),
        num_measured=f"{metrics.num_measured:,}",
        level=f"{100 * metrics.interval:g} %",
        replicates=metrics.replicates,
    )


def tiles(metrics: MetricsRecord) -> list[Tile]:
    """Return the numbers at the top of the report, each with its interval."""
    result: list[Tile] = []

    def add(what: str, text: str, remark: str) -> None:
        """Add a number given as text; its interval, in brackets, is split off."""
        number, _, interval = text.partition(" [")
        interval = f"[{interval}" if interval else ""
        result.append(Tile(what=what, number=number, interval=interval, remark=remark))

    config, lowest = metrics.config, metrics.closure.from_gev
    checks = checks_of(metrics)
    add(
        "Resolution gain over the standard JEC",
        metrics.gain.percent(1, 2) if metrics.gain else "not measured",
        f"all jets above 30 GeV; {required_gain(config)}{outcome(checks.get('gain'))}",
    )
    if metrics.gain_over_trees:
        add(
            "Resolution gain over boosted trees",
            metrics.gain_over_trees.percent(),
            "the same jets; trees on jet-level columns, trained on the same jets",
        )
    if metrics.gain_over_baseline:
        add(
            "Resolution gain over the baseline model",
            metrics.gain_over_baseline.percent(),
            f"the same jets; baseline: {metrics.baseline}",
        )
    if metrics.weighted:
        gain = metrics.weighted.gain
        add(
            "The same gain, weighted",
            gain.percent() if gain else "too uncertain to tell",
            "all jets above 30 GeV, each counted by eventWeight"
            f" ({metrics.weighted.effective_jets:,.0f} effective jets)",
        )
    elif reason := _reason_without_weights(metrics):
        add("The same gain, weighted", "not measured", reason)
    for bin_ in metrics.closure.bins:
        # The bins of pT stand in a table below.
        if bin_.is_whole(lowest):
            check = checks.get(f"closure {bin_.region}")
            add(
                f"Closure, {bin_.region}",
                bin_.model.percent(100, 2),
                f"median response − 1 above {lowest:g} GeV; {allowed_closure(bin_, config)}"
                f"{outcome(check)}",
            )
    for region, entry in metrics.flavour.regions.items():
        check = checks.get(f"flavour spread {region}")
        limit = f"; allowed: {check.limit:.2f} %" if check else ""
        add(
            f"Flavour spread, {region}",
            entry.spread.model.percent(100, 2, sign=""),
            f"standard JEC: {100 * entry.spread.standard.value:.2f} %; removed:"
            f" {_spread_reduction(entry)}; {', '.join(entry.flavours)}{limit}{outcome(check)}",
        )
    if metrics.uncertainty:
        band = metrics.uncertainty.bands[0]
        check = checks.get("coverage all")
        limit = f" ± {check.limit:g} points" if check else ""
        add(
            "Jets within their own uncertainty",
            band.coverage.percent(100, 2, sign=""),
            f"between the {band.low} and {band.high} given for each jet; expected:"
            f" {100 * band.nominal:g} %{limit}{outcome(check)}",
        )
    return result


def checks_of(metrics: MetricsRecord) -> dict[str, GateCheck]:
    """Return the gate's checks of all jets and of whole regions, by quantity and region.

    Empty for a run of an earlier version, which recorded no checks.
    """
    places = {group.text: group.region for group in (CLOSURE_ALL, *CLOSURE_REGIONS)}
    checks = {}
    for check in metrics.gate.checks if metrics.gate else ():
        if check.quantity == "gain":
            checks["gain"] = check
        elif check.quantity == "coverage" and check.where.startswith("jets, "):
            checks["coverage all"] = check
        elif check.where in places:
            checks[f"{check.quantity} {places[check.where]}"] = check
    return checks


def outcome(check: GateCheck | None) -> str:
    """Return the verdict on one check; empty without a check."""
    if check is None:
        return ""
    return "; passes" if check.passed else "; refused"


def required_gain(settings: GateSettings) -> str:
    """Return what the gate requires of the interval of the gain."""
    if settings.gate == "strict":
        return f"required: an interval above {settings.min_improvement:g} %"
    return f"required: an interval that reaches {settings.min_improvement:g} %"


def allowed_closure(bin_: ClosureBin, settings: GateSettings) -> str:
    """Return the largest bias that the gate allows in a bin.

    It is the limit, or the bias of the standard JEC where that is larger.
    """
    standard = abs(bin_.standard.value)
    if standard > settings.max_closure:
        return f"allowed: ±{100 * standard:.2f} %, as much as the standard JEC's own"
    return f"allowed: ±{100 * settings.max_closure:g} %"


def _spread_reduction(entry: FlavourSpread) -> str:
    """Return the share of the standard JEC's flavour spread that the model removes."""
    if entry.reduction:
        return entry.reduction.percent()
    return "too uncertain to tell" if entry.spread.standard.value > 0 else "none to remove"


def _reason_without_weights(metrics: MetricsRecord) -> str:
    """Return why there is no weighted gain of all jets; empty where no reason is recorded."""
    for entry in metrics.unmeasured:
        if entry.quantity == "weighted gain" and entry.where == SUMMARY[-1].text:
            return entry.reason
    return ""


# ------------------------------------------------------------------------- response and resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """Tables of response and resolution; None where there are no measurements."""

    published: Table
    sample: str
    bins: Table | None
    weighted: Table | None
    not_weighted: str
    """Why there is no weighted table."""
    effective_jets: str
    unmeasured: Sequence[str]
    """Bins that are not measured, with the reason."""
    intervals: Table | None
    cores: Table | None
    regions_without_figures: Sequence[str]
    """Sentences on regions that have too few jets for any figure."""


def response(metrics: MetricsRecord, run: Run | None) -> Response:
    """Return the section on response and resolution."""
    weighted = metrics.weighted
    # Describes the test jets as far as the parameters of the run do.
    sample = "the test jets of this run"
    if run:
        sample = f"the jets of {run.config.data_test}"
        if run.config.data_test == "sample":
            sample = "jets of this project's own generator, which are not CMS's"
    return Response(
        published=published_gains(metrics.bins),
        sample=sample,
        bins=_bins(metrics.bins),
        weighted=_bins(weighted.bins) if weighted else None,
        not_weighted=_reason_without_weights(metrics) or "eventWeight is not among the observers",
        effective_jets=f"{weighted.effective_jets:,.0f}" if weighted else "",
        unmeasured=[
            entry.text
            for entry in metrics.unmeasured
            if not entry.quantity.startswith("flavour spread")
        ],
        intervals=with_intervals(metrics.bins),
        cores=normal_cores(metrics.core),
        regions_without_figures=regions_without_figures(metrics),
    )


def regions_without_figures(metrics: MetricsRecord) -> list[str]:
    """Return a sentence on each region in which no bin has enough test jets."""
    sentences = []
    for bin_ in WHOLE_REGIONS:
        if any(curve.region == bin_.region for curve in metrics.curves):
            continue
        sentences.append(
            f"No figures of the {bin_.region}: none of its bins of pT holds {MIN_JETS} test jets."
        )
    return sentences


def published_gains(bins: Sequence[ResponseBin]) -> Table:
    """Return the gain by bin beside published gains, which were measured on other jets."""
    own = {(bin_.region, bin_.pt_low, bin_.pt_high): bin_.gain for bin_ in bins}
    # The last bin is open; the last published number is for all jets above the first edge.
    places: list[tuple[float, float | None]] = [*itertools.pairwise(PT_EDGES[:-1])]
    places += [(PT_EDGES[-2], None), (PT_EDGES[0], None)]
    rows = []
    for region in ("barrel", "endcap"):
        for column, (low, high) in enumerate(places):
            pt = f"{low:g}–{high:g}" if high else f"above {low:g}"
            if column == len(places) - 1:
                pt = "all above 30"
            gain = own.get((region, low, high))
            row = [region, pt, gain.percent() if gain else "too few jets"]
            for gains in PUBLISHED_GAINS.values():
                row.append(f"{gains[region][column]:+.1f} %")
            rows.append(row)
    head = ["Region", "pT (GeV)", "This model, this sample"]
    return Table(head=[*head, *(f"{name}, published" for name in PUBLISHED_GAINS)], rows=rows)


def _bins(bins: Sequence[ResponseBin]) -> Table | None:
    """Return medians, resolutions and gains by bin, with the gain over a baseline if measured."""
    gains = ["Gain", "Gain by 68 % width"]
    if any(bin_.gain_over_baseline for bin_ in bins):
        gains.append("Gain over baseline")
    rows = []
    for bin_ in bins:
        row = [bin_.region, bin_.pt_range, f"{bin_.num_jets:,}"]
        if bin_.effective_jets is not None:
            row.append(f"{bin_.effective_jets:,.0f}")
        both = (bin_.standard, bin_.model)
        row += [f"{response.median.value:.4f}" for response in both]
        row += [f"{response.resolution.value:.4f}" for response in both]
        row += [bin_.gain.percent(), bin_.gain_half_width.percent()]
        if bin_.gain_over_baseline:
            row.append(bin_.gain_over_baseline.percent())
        rows.append(row)
    jets = ["Jets"]
    if any(bin_.effective_jets is not None for bin_ in bins):
        jets.append("Effective jets")
    head = ["Region", "pT (GeV)", *jets, *_of_both("Median", "Resolution"), *gains]
    return Table(head=head, rows=rows) if rows else None


def _of_both(*quantities: str) -> list[str]:
    """Return the column heads of quantities that a table shows for both calibrations."""
    heads = []
    for quantity in quantities:
        heads += [f"{quantity}, standard", f"{quantity}, model"]
    return heads


def with_intervals(bins: Sequence[ResponseBin]) -> Table | None:
    """Return median and both widths with their intervals, by bin."""
    rows = []
    for bin_ in bins:
        standard, model = bin_.standard, bin_.model
        pairs = [
            (standard.median, model.median),
            (standard.resolution, model.resolution),
            (standard.half_width, model.half_width),
        ]
        row = [bin_.region, bin_.pt_range]
        for pair in pairs:
            row += [interval.text(digits=4, sign="") for interval in pair]
        rows.append(row)
    quantities = _of_both("Median", "IQR / median", "68 % half-width / median")
    head = ["Region", "pT (GeV)", *quantities]
    return Table(head=head, rows=rows, kind="dense") if rows else None


def normal_cores(bins: Sequence[CoreBin]) -> Table | None:
    """Return means and the parameters of normal cores, which other analyses often quote."""
    rows = []
    for bin_ in bins:
        row = [bin_.bin]
        for moments in (bin_.standard, bin_.model):
            row.append(f"{moments.mean:.4f}")
        for moments in (bin_.standard, bin_.model):
            row.append(_with_error(moments.core_mean, moments.core_mean_error))
        for moments in (bin_.standard, bin_.model):
            row.append(_with_error(moments.core_sigma, moments.core_sigma_error))
        rows.append(row)
    head = ["Bin", *_of_both("Mean", "Mean of the core", "Sigma of the core")]
    return Table(head=head, rows=rows) if rows else None


def _with_error(value: float | None, error: float | None) -> str:
    """Return a number with its standard error, or a dash without a normal core."""
    if value is None or error is None:
        return MISSING
    return f"{value:.4f} ± {error:.4f}"


# ------------------------------------------------------------------------------- closure, flavour


def closure(metrics: MetricsRecord) -> Table | None:
    """Return the bias of each bin that the closure test uses."""
    rows = []
    for bin_ in metrics.closure.bins:
        place = [bin_.region, bin_.pt_range, f"{bin_.num_jets:,}"]
        rows.append([*place, bin_.standard.percent(100, 2), bin_.model.percent(100, 2)])
    head = ["Region", "pT (GeV)", "Jets", "Standard JEC", "This model"]
    return Table(head=head, rows=rows) if rows else None


def edges(metrics: MetricsRecord) -> Table | None:
    """Return the median response on both sides of each edge of the model's valid range."""
    rows = []
    for edge in metrics.edges:
        row = [edge.edge, f"{edge.num_inside:,}"]
        row += [_median(edge.model_inside), _median(edge.standard_inside)]
        row += [f"{edge.num_outside:,}", _median(edge.standard_outside)]
        step = "not measured"
        if edge.model_inside and edge.standard_outside:
            step = f"{100 * (edge.model_inside.value - edge.standard_outside.value):+.1f} %"
        rows.append([*row, step])
    head = ["Edge", "Jets inside", "Model, inside", "Standard JEC, inside"]
    head += ["Jets outside", "Returned outside", "Step"]
    return Table(head=head, rows=rows) if rows else None


def _median(interval: Interval | None) -> str:
    return interval.text(digits=3, sign="") if interval else "too few jets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flavour:
    """Differences between the responses of flavours."""

    spreads: Table
    lowest_pt: str
    left_out: Sequence[str]
    """Flavours with too few jets."""


def flavour(metrics: MetricsRecord) -> Flavour | None:
    """Return the section on flavours; None where no region has jets of two flavours."""
    rows = []
    for region, entry in metrics.flavour.regions.items():
        spreads = _percent_of_both(entry.spread, sign="")
        # The difference needs jets of both flavours.
        gaps = [MISSING, MISSING]
        if entry.uds_minus_g:
            gaps = _percent_of_both(entry.uds_minus_g)
        rows.append([region, ", ".join(entry.flavours), *spreads, _spread_reduction(entry), *gaps])
    if not rows:
        return None
    head = ["Region", "Flavours", *_of_both("Spread"), "Removed", *_of_both("uds − g")]
    lowest = metrics.flavour.from_gev
    left_out = [
        unmeasured.text
        for unmeasured in metrics.unmeasured
        if unmeasured.quantity == "flavour spread"
    ]
    return Flavour(spreads=Table(head=head, rows=rows), lowest_pt=f"{lowest:g}", left_out=left_out)


def _percent_of_both(fractions: Calibrated[Interval], sign: str = "+") -> list[str]:
    """Return a fraction for the standard JEC and for the model, in per cent."""
    return [
        fraction.percent(100, 2, sign=sign) for fraction in (fractions.standard, fractions.model)
    ]


# ----------------------------------------------------------------------------- uncertainty of a jet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Coverage of the uncertainty predicted for each jet, and its power to separate jets."""

    low: str
    high: str
    num_jets: str
    shares: Table
    pull_median: str
    pull_width: str
    ratio: str
    """Measured width of jets with a large predicted uncertainty, divided by that of jets with a
    small one at the same pT; empty with too few jets."""
    predicted_ratio: str
    problems: Sequence[str]


def uncertainty(record: UncertaintyRecord | None) -> Uncertainty | None:
    """Return the section on uncertainty; None for a network with one output a jet."""
    if not record:
        return None
    band, pull, same_pt = record.bands[0], record.pull, record.same_pt
    problems = []
    if record.num_without_answer:
        problems.append(f"{record.num_without_answer:,} jets have an answer that is not finite")
    if num_crossed := sum(entry.num_crossed for entry in record.bands):
        problems.append(f"{num_crossed:,} jets have a lower quantile above the higher one")
    return Uncertainty(
        low=band.low,
        high=band.high,
        num_jets=f"{record.num_jets:,}",
        shares=shares(record),
        pull_median=pull.median.text(digits=3),
        pull_width=pull.half_width.text(digits=3, sign=""),
        ratio=same_pt.ratio.text(digits=2, sign="") if same_pt else "",
        predicted_ratio=f"{same_pt.predicted_ratio:.2f}" if same_pt else "",
        problems=problems,
    )


def shares(record: UncertaintyRecord) -> Table:
    """Return the share of jets in each band and below each quantile, with the expected share."""
    rows = []
    for band in record.bands:
        where = f"from {band.low} to {band.high}"
        rows.append([where, f"{100 * band.nominal:g} %", band.coverage.percent(100, sign="")])
    for below in record.below:
        where = f"below {below.column}"
        rows.append([where, f"{100 * below.level:g} %", below.share.percent(100, sign="")])
    return Table(head=["Generator jet", "Expected", "Measured"], rows=rows)
