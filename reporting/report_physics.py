"""What report.html says of the physics: the verdict, then response, closure, flavour, uncertainty.

Each function takes the content of metrics.json and returns what templates/report.html shows of it,
as text and tables.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from physics.gate import holds
from physics.interval import percent
from physics.response import PT_EDGES
from reporting.page import MISSING, Table
from reporting.records import Record

PUBLISHED = {
    "PFN": {"barrel": (0.2, 1.4, 4.5, 8.0, 2.2), "endcap": (1.0, 6.9, 12.9, 5.0, 5.9)},
    "ParticleNet": {"barrel": (0.6, 1.6, 4.8, 7.8, 2.5), "endcap": (1.3, 7.1, 11.9, 9.4, 5.8)},
}
"""Gain of resolution (per cent) published for these networks on 286,645 CMS open-data test jets, in
our pT bins and above 30 GeV.
"""

BOTH = ("standard", "model")
"""The calibrations that tables compare."""


# ---------------------------------------------------------------------------------------- verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """A headline: a number with its interval, and what it is."""

    what: str
    number: str
    interval: str
    remark: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's decision with the numbers that count."""

    passed: bool
    reasons: Sequence[str]
    tiles: Sequence[Tile]
    num_measured: str
    level: str
    replicates: int


def verdict(metrics: Record) -> Verdict:
    tiles = []
    for what, text, remark in _headlines(metrics):
        number, _, interval = text.partition(" [")
        interval = f"[{interval}" if interval else ""
        tiles.append(Tile(what=what, number=number, interval=interval, remark=remark))
    return Verdict(
        passed=metrics["passed"],
        reasons=metrics["reasons"],
        tiles=tiles,
        num_measured=f"{metrics['num_measured']:,}",
        level=f"{100 * metrics['interval']:g} %",
        replicates=metrics["replicates"],
    )


def _headlines(metrics: Record) -> Iterator[tuple[str, str, str]]:
    """(what, number with its interval, remark) of each headline."""
    gain, config = metrics["gain"], metrics["config"]
    yield (
        "Resolution gain over the standard JEC",
        percent(gain) if gain else "not measured",
        f"all jets above 30 GeV; required: at least {config['min_improvement']:g} %",
    )
    if metrics.get("gain_over_baseline"):
        yield (
            "Resolution gain over the baseline model",
            percent(metrics["gain_over_baseline"]),
            f"the same jets; baseline: {metrics['baseline']}",
        )
    if weighted := metrics.get("weighted"):
        yield (
            "The same gain, weighted",
            percent(weighted["gain"]),
            "all jets above 30 GeV, each counted by eventWeight"
            f" ({weighted['effective_jets']:,.0f} effective jets)",
        )
    lowest = metrics["closure"]["from_gev"]
    for record in metrics["closure"]["bins"]:
        if record["pt_low"] == lowest and record["pt_high"] is None:
            yield (
                f"Closure, {record['region']}",
                percent(record["model"], 100, 2),
                f"median response − 1 above {lowest:g} GeV; allowed:"
                f" ±{100 * config['max_closure']:g} %",
            )
    for region, entry in metrics["flavour"]["regions"].items():
        standard, model = (f"{100 * entry['spread'][name]['value']:.2f} %" for name in BOTH)
        yield (
            f"Flavour spread removed, {region}",
            percent(entry["reduction"]),
            f"from {standard} (standard JEC) to {model}, {', '.join(entry['flavours'])}",
        )
    if widths := metrics.get("uncertainty"):
        band = widths["bands"][0]
        yield (
            "Jets within their own uncertainty",
            percent(band["coverage"], 100, sign=""),
            f"between the {band['low']} and {band['high']} given for each jet; expected:"
            f" {100 * band['nominal']:g} %",
        )


# ------------------------------------------------------------------------- response and resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """Tables of response and resolution; None for those that nothing is known for."""

    published: Table
    sample: str
    bins: Table | None
    weighted: Table | None
    effective_jets: str
    intervals: Table | None
    cores: Table | None


def response(metrics: Record, run: Record) -> Response:
    weighted = metrics.get("weighted")
    return Response(
        published=_published(metrics["bins"]),
        sample=_sample(run),
        bins=_bins(metrics["bins"]),
        weighted=_bins(weighted["bins"]) if weighted else None,
        effective_jets=f"{weighted['effective_jets']:,.0f}" if weighted else "",
        intervals=_intervals(metrics["bins"]),
        cores=_cores(metrics.get("core", [])),
    )


def _published(records: Sequence[Record]) -> Table:
    """The gain by bin next to the published ones: the same bins, other jets."""
    own = {(record["region"], record["pt_low"], record["pt_high"]): record for record in records}
    edges = [*PT_EDGES[:-1], None]
    bins = [*itertools.pairwise(edges), (PT_EDGES[0], None)]
    rows = []
    for region in ("barrel", "endcap"):
        for column, (low, high) in enumerate(bins):
            pt = f"{low:g}–{high:g}" if high else f"above {low:g}"
            if column == len(bins) - 1:
                pt = "all above 30"
            record = own.get((region, low, high))
            gain = percent(record["gain"]) if record else "too few jets"
            published = [f"{gains[region][column]:+.1f} %" for gains in PUBLISHED.values()]
            rows.append([region, pt, gain, *published])
    head = ["Region", "pT (GeV)", "This model, this sample"]
    return Table(head=[*head, *(f"{name}, published" for name in PUBLISHED)], rows=rows)


def _sample(run: Record) -> str:
    """What the test jets are, as far as the run's parameters say."""
    pattern = (run.get("config") or {}).get("data_test")
    if pattern == "sample":
        return "jets of this project's own generator, which are not CMS's"
    return f"the jets of {pattern}" if pattern else "the test jets of this run"


def _bins(records: Sequence[Record]) -> Table | None:
    gains = {
        "gain": "Gain",
        "gain_half_width": "Gain by 68 % width",
        "gain_over_baseline": "Gain over baseline",
    }
    gains = {key: name for key, name in gains.items() if any(key in record for record in records)}
    rows = []
    for record in records:
        medians = [f"{record[name]['median']['value']:.4f}" for name in BOTH]
        resolutions = [f"{record[name]['resolution']['value']:.4f}" for name in BOTH]
        place = [record["region"], record["pt_range"], f"{record['num_jets']:,}"]
        rows.append([*place, *medians, *resolutions, *(percent(record[key]) for key in gains)])
    head = ["Region", "pT (GeV)", "Jets", *_of_both("Median", "Resolution"), *gains.values()]
    return Table(head=head, rows=rows) if rows else None


def _of_both(*quantities: str) -> list[str]:
    """The heads of quantities that a table gives for both calibrations."""
    return [f"{quantity}, {name}" for quantity in quantities for name in BOTH]


def _intervals(records: Sequence[Record]) -> Table | None:
    """Median and both widths with their intervals."""
    quantities = {
        "median": "Median",
        "resolution": "IQR / median",
        "half_width": "68 % half-width / median",
    }
    rows = [
        [
            record["region"],
            record["pt_range"],
            *(_with_ends(record[name][key], 4) for key in quantities for name in BOTH),
        ]
        for record in records
    ]
    head = ["Region", "pT (GeV)", *_of_both(*quantities.values())]
    return Table(head=head, rows=rows) if rows else None


def _with_ends(interval: Record, digits: int, sign: str = "") -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    return f"{value:{sign}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _cores(records: Sequence[Record]) -> Table | None:
    """Means and normal cores, as they are quoted elsewhere."""
    quantities = {
        "mean": "Mean",
        "core_mean": "Mean of the core",
        "core_resolution": "Sigma / mean of the core",
    }
    rows = []
    for record in records:
        values = [record[name].get(key) for key in quantities for name in BOTH]
        cells = [MISSING if value is None else f"{value:.4f}" for value in values]
        rows.append([record["bin"], *cells])
    return Table(head=["Bin", *_of_both(*quantities.values())], rows=rows) if rows else None


# ------------------------------------------------------------------------------- closure, flavour


def closure(metrics: Record) -> Table | None:
    """Every bin that the gate judges."""
    allowed = metrics["config"]["max_closure"]
    rows = [
        [
            record["region"],
            record["pt_range"],
            f"{record['num_jets']:,}",
            percent(record["standard"], 100, 2),
            percent(record["model"], 100, 2),
            "holds" if holds(record["model"], allowed) else "fails",
        ]
        for record in metrics["closure"]["bins"]
    ]
    head = ["Region", "pT (GeV)", "Jets", "Standard JEC", "This model"]
    return Table(head=[*head, f"Within ±{100 * allowed:g} %"], rows=rows) if rows else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flavour:
    """How far apart the flavours are."""

    spreads: Table
    lowest_pt: str


def flavour(metrics: Record) -> Flavour | None:
    rows = []
    for region, entry in metrics["flavour"]["regions"].items():
        spreads = [percent(entry["spread"][name], 100, 2, sign="") for name in BOTH]
        gaps = [MISSING, MISSING]
        if "uds_minus_g" in entry:
            gaps = [percent(entry["uds_minus_g"][name], 100, 2) for name in BOTH]
        rows.append([region, *spreads, percent(entry["reduction"]), *gaps])
    if not rows:
        return None
    head = ["Region", *_of_both("Spread"), "Removed", *_of_both("uds − g")]
    lowest = metrics["flavour"]["from_gev"]
    return Flavour(spreads=Table(head=head, rows=rows), lowest_pt=f"{lowest:g}")


# ----------------------------------------------------------------------------- uncertainty of a jet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """Whether the uncertainty given for each jet covers, and whether it tells jets apart."""

    low: str
    high: str
    num_jets: str
    shares: Table
    pull_median: str
    pull_width: str
    ratio: str
    """Measured widths of wide over narrow jets of the same pT; empty with too few jets."""
    predicted_ratio: str
    problems: Sequence[str]


def uncertainty(measured: Record | None) -> Uncertainty | None:
    """The section's content; None for a network with one answer a jet."""
    if not measured:
        return None
    band, pull, same_pt = measured["bands"][0], measured["pull"], measured["same_pt"]
    crossed = sum(one["num_crossed"] for one in measured["bands"])
    problems = {
        "an answer that is not finite": measured["num_without_answer"],
        "a lower quantile above the higher one": crossed,
    }
    return Uncertainty(
        low=band["low"],
        high=band["high"],
        num_jets=f"{measured['num_jets']:,}",
        shares=_shares(measured),
        pull_median=_with_ends(pull["median"], 3, sign="+"),
        pull_width=_with_ends(pull["half_width"], 3),
        ratio=_with_ends(same_pt["ratio"], 2) if same_pt else "",
        predicted_ratio=f"{same_pt['predicted_ratio']:.2f}" if same_pt else "",
        problems=[f"{number:,} jets have {what}" for what, number in problems.items() if number],
    )


def _shares(measured: Record) -> Table:
    rows = []
    for band in measured["bands"]:
        where = f"from {band['low']} to {band['high']}"
        coverage = percent(band["coverage"], 100, sign="")
        rows.append([where, f"{100 * band['nominal']:g} %", coverage])
    for one in measured["below"]:
        where = f"below {one['column']}"
        rows.append([where, f"{100 * one['level']:g} %", percent(one["share"], 100, sign="")])
    return Table(head=["Generator jet", "Expected", "Measured"], rows=rows)
