"""report.html: one self-contained page made of a run's JSON documents, and nothing else.

No script, no address, no font from elsewhere: it opens from a disk, in the Kubeflow UI's sandboxed
frame, on a phone, in dark mode and on paper. Whatever document is missing leaves a sentence in its
place.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence

from physics.gate import holds, percent
from physics.response import PT_EDGES
from reporting import page, serving_section
from reporting.figures import LABELS, Drawing, drawings, gallery, objective

PUBLISHED = {
    "PFN": {"barrel": (0.2, 1.4, 4.5, 8.0, 2.2), "endcap": (1.0, 6.9, 12.9, 5.0, 5.9)},
    "ParticleNet": {"barrel": (0.6, 1.6, 4.8, 7.8, 2.5), "endcap": (1.3, 7.1, 11.9, 9.4, 5.8)},
}
"""Gain of resolution (per cent) published for these networks on 286,645 CMS open-data test jets, in
our pT bins and above 30 GeV.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
    """What the page is made of; all but the metrics may be missing."""

    metrics: Mapping
    run: Mapping | None = None
    search: Mapping | None = None
    history: Sequence[Mapping] | None = None
    options: Mapping | None = None
    export: Mapping | None = None
    service: Mapping | None = None


def render(documents: Documents, figures: Sequence[Drawing]) -> str:
    """The page as text, with these figures (those of `figures_of`, drawn once for the page and for
    the files beside it).
    """
    sections = [
        _verdict(documents.metrics),
        _physics(documents, figures),
        _closure(documents.metrics, figures),
        _flavour(documents.metrics, figures),
        _uncertainty(documents.metrics.get("uncertainty"), figures),
        _search(documents, figures),
        _training(documents),
        serving_section.section(
            documents.export, documents.metrics.get("inference"), documents.service
        ),
        _data(documents),
        _reproduce(documents),
    ]
    title = (
        "Jet energy calibration:"
        f" {documents.metrics.get('run_id') or documents.metrics.get('model', 'report')}"
    )
    return page.document(title, "\n".join(sections))


def figures_of(documents: Documents) -> Iterable[Drawing]:
    """The figures of the page, one by one."""
    metrics = documents.metrics
    return drawings(metrics, documents.history, documents.search, metrics["config"]["max_closure"])


# --------------------------------------------------------------------------------------- sections


def _verdict(metrics: Mapping) -> str:
    passed = metrics["passed"]
    word = (
        "Gate passed: this model may be deployed"
        if passed
        else "Gate not passed: this model is not deployed"
    )
    reasons = "".join(f"<li>{page.escaped(reason)}</li>" for reason in metrics["reasons"])
    tiles = "".join(_tile(*tile) for tile in _tiles(metrics))
    return (
        f'<section class="verdict {"good" if passed else "bad"}"><h2>{word}</h2>'
        + (f"<ul>{reasons}</ul>" if reasons else "")
        + f'<div class="tiles">{tiles}</div>'
        + f'<p class="small">Measured once, on {metrics["num_measured"]:,} test jets that neither'
        " training nor the search saw. "
        f"Brackets: {100 * metrics['interval']:g} % intervals, {metrics['replicates']} bootstrap"
        " draws of the jets; "
        "gains and reductions compare the same jets. With few jets of a flavour the spread comes"
        " out too large, for every "
        "calibration alike.</p></section>"
    )


def _tiles(metrics: Mapping) -> Iterable[tuple[str, str, str]]:
    """(what, number, remark) of each headline."""
    gain, config = metrics["gain"], metrics["config"]
    at_least = f"all jets above 30 GeV; asked: at least {config['min_improvement']:g} %"
    yield (
        "Resolution gain over the standard JEC",
        percent(gain) if gain else "not measured",
        at_least,
    )
    if metrics.get("gain_over_baseline"):
        remark = f"the same jets; baseline: {metrics['baseline']}"
        yield (
            "Resolution gain over the baseline model",
            percent(metrics["gain_over_baseline"]),
            remark,
        )
    if metrics.get("weighted"):
        remark = (
            "all jets above 30 GeV, each counted by eventWeight"
            f" ({metrics['weighted']['effective_jets']:,.0f} effective jets)"
        )
        yield "The same gain, weighted", percent(metrics["weighted"]["gain"]), remark
    closure = metrics["closure"]
    for record in closure["bins"]:
        if record["pt_low"] == closure["from_gev"] and record["pt_high"] is None:
            remark = (
                f"median response − 1 above {closure['from_gev']:g} GeV; allowed:"
                f" ±{100 * config['max_closure']:g} %"
            )
            yield f"Closure, {record['region']}", percent(record["model"], 100, 2), remark
    for region, entry in metrics["flavour"]["regions"].items():
        spreads = {name: f"{100 * one['value']:.2f} %" for name, one in entry["spread"].items()}
        remark = (
            f"from {spreads['standard']} (standard JEC) to {spreads['model']},"
            f" {', '.join(entry['flavours'])}"
        )
        yield f"Flavour spread removed, {region}", percent(entry["reduction"]), remark
    if found := metrics.get("uncertainty"):
        band = found["bands"][0]
        remark = (
            f"between the {band['low']} and {band['high']} given for each jet; wanted:"
            f" {100 * band['nominal']:g} %"
        )
        yield "Jets within their own uncertainty", percent(band["coverage"], 100, sign=""), remark


def _tile(what: str, number: str, remark: str) -> str:
    value, _, rest = number.partition(" [")
    rest = f' <span class="interval">[{page.escaped(rest)}</span>' if rest else ""
    what, value, remark = map(page.escaped, (what, value, remark))
    return (
        f'<div class="tile"><h3>{what}</h3><p class="number">{value}{rest}</p><p'
        f' class="small">{remark}</p></div>'
    )


def _physics(documents: Documents, figures: Sequence[Drawing]) -> str:
    metrics = documents.metrics
    return page.section(
        "Response and resolution",
        "<p>Response: calibrated pT over the generator jet's. Resolution: interquartile range of"
        " the response over its median.</p>",
        _figures(figures, "response", "resolution", "distribution"),
        "<h3>Beside the published results</h3>",
        _published(metrics, _sample(documents.run or {})),
        "<h3>All bins</h3>",
        _bins(metrics["bins"]),
        _weighted(metrics.get("weighted")),
        _intervals(metrics["bins"]),
        _core(metrics),
    )


def _sample(run: Mapping) -> str:
    """What the test jets are, as far as the run's parameters tell."""
    pattern = (run.get("config") or {}).get("data_test")
    if pattern == "sample":
        return "jets of this project's own generator, which are not CMS's"
    return f"the jets of {pattern}" if pattern else "the test jets of this run"


def _published(metrics: Mapping, sample: str) -> str:
    """Gain by bin next to the published one: the same bins, other jets."""
    ours = {
        (record["region"], record["pt_low"], record["pt_high"]): record
        for record in metrics["bins"]
    }
    edges = [*PT_EDGES[:-1], None]
    places = [*itertools.pairwise(edges), (PT_EDGES[0], None)]
    rows = []
    for region in ("barrel", "endcap"):
        for column, (low, high) in enumerate(places):
            record = ours.get((region, low, high))
            pt = (
                "all above 30"
                if column == len(places) - 1
                else (f"{low:g}–{high:g}" if high else f"above {low:g}")
            )
            own = percent(record["gain"]) if record else "too few jets"
            rows.append(
                [
                    region,
                    pt,
                    own,
                    *(f"{PUBLISHED[name][region][column]:+.1f} %" for name in PUBLISHED),
                ]
            )
    head = [
        "Region",
        "pT (GeV)",
        "This model, this sample",
        *(f"{name}, published" for name in PUBLISHED),
    ]
    note = (
        "<p class='small'>Gain in resolution (IQR / median) over the standard JEC. Published:"
        " jec-inference, 845,038 training and 286,645 test jets of CMS open simulation, 60 trials"
        " a model. The bins agree in all rows: generated pT, and |η| below 1.3 (barrel) or from"
        " 1.3 to 2.5 (endcap). <strong>The sample does not</strong>: here it is"
        f" {page.escaped(sample)}. So the published numbers are context, not a comparison.</p>"
    )
    return page.table(head, rows) + note


def _bins(records: Sequence[Mapping]) -> str:
    gains = {
        "gain": "Gain",
        "gain_half_width": "Gain by 68 % width",
        "gain_over_baseline": "Gain over baseline",
    }
    gains = {key: head for key, head in gains.items() if any(key in record for record in records)}
    rows = [
        [
            record["region"],
            record["pt_range"],
            f"{record['num_jets']:,}",
            *(f"{record[name]['median']['value']:.4f}" for name in ("standard", "model")),
            *(f"{record[name]['resolution']['value']:.4f}" for name in ("standard", "model")),
            *(percent(record[key]) for key in gains),
        ]
        for record in records
    ]
    measured = [
        f"{what}, {whose}" for what in ("Median", "Resolution") for whose in ("standard", "model")
    ]
    head = ["Region", "pT (GeV)", "Jets", *measured, *gains.values()]
    return page.table(head, rows) if rows else "<p>Too few test jets for any bin.</p>"


def _weighted(weighted: Mapping | None) -> str:
    """The same bins with the jets counted as collisions make them; folded away."""
    if not weighted:
        return (
            "<p class='small'>Each jet counts once: there are no event weights among the observers,"
            " or they are all alike.</p>"
        )
    note = (
        "<p class='small'>Each jet counted eventWeight times, as often as collisions make it;"
        f" {weighted['effective_jets']:,.0f} effective jets. Above, and in all figures, each jet"
        " counts once.</p>"
    )
    return (
        "<details><summary>The same bins,"
        f" weighted</summary>{_bins(weighted['bins'])}{note}</details>"
    )


def _intervals(records: Sequence[Mapping]) -> str:
    """Median and both widths with their intervals; folded away."""
    quantities = {
        "median": "Median",
        "resolution": "IQR / median",
        "half_width": "68 % half-width / median",
    }
    rows = [
        [
            record["region"],
            record["pt_range"],
            *(
                _with_ends(record[name][key])
                for key in quantities
                for name in ("standard", "model")
            ),
        ]
        for record in records
    ]
    head = [
        "Region",
        "pT (GeV)",
        *(f"{what}, {whose}" for what in quantities.values() for whose in ("standard", "model")),
    ]
    return (
        "<details><summary>Medians and widths with their"
        f" intervals</summary>{page.table(head, rows)}</details>"
        if rows
        else ""
    )


def _with_ends(found: Mapping) -> str:
    return f"{found['value']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"


def _core(metrics: Mapping) -> str:
    """Means and normal cores, as they are quoted elsewhere; folded away."""
    rows = [
        [
            record["bin"],
            *(
                _number(record[name], key)
                for key in ("mean", "core_mean", "core_resolution")
                for name in ("standard", "model")
            ),
        ]
        for record in metrics.get("core", [])
    ]
    columns = ("Mean", "Mean of the core", "Sigma / mean of the core")
    head = ["Bin", *(f"{what}, {whose}" for what in columns for whose in ("standard", "model"))]
    note = (
        "<p class='small'>Core: the normal distribution that fits within two standard deviations of"
        " its mean.</p>"
    )
    return (
        "<details><summary>Means and normal"
        f" cores</summary>{page.table(head, rows)}{note}</details>"
        if rows
        else ""
    )


def _number(record: Mapping, key: str) -> str:
    return "–" if record.get(key) is None else f"{record[key]:.4f}"


def _closure(metrics: Mapping, figures: Sequence[Drawing]) -> str:
    maximum = metrics["config"]["max_closure"]
    rows = [
        [
            record["region"],
            record["pt_range"],
            f"{record['num_jets']:,}",
            percent(record["standard"], 100, 2),
            percent(record["model"], 100, 2),
            "holds" if holds(record["model"], maximum) else "fails",
        ]
        for record in metrics["closure"]["bins"]
    ]
    head = [
        "Region",
        "pT (GeV)",
        "Jets",
        "Standard JEC",
        "This model",
        f"Within ±{100 * maximum:g} %",
    ]
    table = (
        "<details><summary>Every bin that the gate"
        f" judges</summary>{page.table(head, rows)}</details>"
        if rows
        else ""
    )
    return page.section(
        "Closure",
        _figures(figures, "closure", "eta", "residual"),
        table or "<p>Too few test jets to measure closure.</p>",
    )


def _flavour(metrics: Mapping, figures: Sequence[Drawing]) -> str:
    rows = [
        [
            region,
            *(percent(entry["spread"][name], 100, 2, sign="") for name in ("standard", "model")),
            percent(entry["reduction"]),
        ]
        + [
            percent(entry["uds_minus_g"][name], 100, 2) if "uds_minus_g" in entry else "–"
            for name in ("standard", "model")
        ]
        for region, entry in metrics["flavour"]["regions"].items()
    ]
    if not rows:
        return page.section(
            "Flavour",
            "<p>Not measured: no flavours among the observers, or too few jets of them.</p>",
        )
    head = [
        "Region",
        "Spread, standard",
        "Spread, model",
        "Removed",
        "uds − g, standard",
        "uds − g, model",
    ]
    note = (
        "<p class='small'>Spread: largest minus smallest median response of uds, c, b and gluon"
        f" jets above {metrics['flavour']['from_gev']:g} GeV. Published on CMS open simulation"
        " (another sample): 36 % removed in the barrel, 40 % in the endcap.</p>"
    )
    return page.section("Flavour", _figures(figures, "flavour"), page.table(head, rows), note)


def _uncertainty(found: Mapping | None, figures: Sequence[Drawing]) -> str:
    """Nothing for a network with one answer a jet."""
    if not found:
        return ""
    main = found["bands"][0]
    return page.section(
        "Uncertainty of each jet",
        "<p>The network also gives quantiles of log(pT_gen / pT) for each jet. Half of what lies"
        f" between {main['low']} and {main['high']} is the jet's own relative uncertainty. Measured"
        f" on {found['num_jets']:,} jets: does it cover, and does it tell well measured jets from"
        " others?</p>",
        _figures(figures, "uncertainty"),
        page.table(["Generator jet", "Wanted", "Found"], list(_shares(found))),
        _pull(found["pull"]),
        _same_pt(found["same_pt"]),
        _wrong(found),
        "<p class='small'>Shares have binomial intervals (Wilson). Bins are those of the corrected"
        " pT of the file: among the jets of one generated pT, no per-jet interval covers as it"
        " should, since that is the quantity it is for.</p>",
    )


def _shares(found: Mapping) -> Iterable[list[str]]:
    for band in found["bands"]:
        yield [
            f"from {band['low']} to {band['high']}",
            f"{100 * band['nominal']:g} %",
            percent(band["coverage"], 100, sign=""),
        ]
    for one in found["below"]:
        yield [
            f"below {one['column']}",
            f"{100 * one['level']:g} %",
            percent(one["share"], 100, sign=""),
        ]


def _wrong(found: Mapping) -> str:
    crossed = sum(band["num_crossed"] for band in found["bands"])
    counts = {
        "an answer that is not finite": found["num_without_answer"],
        "a lower quantile above the higher one": crossed,
    }
    return "".join(
        f"<p>{number:,} jets have {what}.</p>" for what, number in counts.items() if number
    )


def _pull(pull: Mapping) -> str:
    middle, width = (
        f"{one['value']:+.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        for one in (pull["median"], pull["half_width"])
    )
    return (
        f"<p>Pull, (log(pT_gen / pT) − median) / uncertainty: median {middle} (wanted: 0), 68 %"
        f" half-width {width[1:]} (wanted: 1).</p>"
    )


def _same_pt(found: Mapping | None) -> str:
    if not found:
        return ""
    ratio = found["ratio"]
    words = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return (
        "<p>Among jets of the same pT and region, the half with the larger predicted uncertainty"
        f" is measured worse by a factor <strong>{words}</strong>; predicted:"
        f" {found['predicted_ratio']:.2f}. 1 would mean that it knows no more than the pT.</p>"
    )


def _search(documents: Documents, figures: Sequence[Drawing]) -> str:
    search = documents.search
    drawn = _figures(figures, "search", "training", "parallel")
    if not search or not search.get("trials"):
        return page.section("Search", "<p>No search is recorded for this run.</p>", drawn)
    names = sorted({name for trial in search["trials"] for name in trial.get("parameters", {})})
    trials = sorted(search["trials"], key=lambda trial: _rank(trial, search))
    rows = [_trial(trial, search, names) for trial in trials]
    best = [trial["name"] == search.get("optimal") for trial in trials]
    goal = f"{search['objective']['type']} {search['objective']['name']} on the validation jets"
    goal = f"Algorithm {search.get('algorithm', 'not recorded')}; {goal}"
    seed = f", seed {search['seed']}" if search.get("seed") is not None else ""
    head = ["Trial", "Status", search["objective"]["name"], *names, "Reason"]
    table = page.table(head, rows, marked=best, kind="trials")
    return page.section("Search", f"<p>{page.escaped(goal + seed)}.</p>", drawn, table)


def _rank(trial: Mapping, search: Mapping) -> tuple[bool, float]:
    """Best trials first, those without a value last."""
    value = objective(trial, search)
    sign = -1 if search["objective"]["type"] == "maximize" else 1
    return value is None, sign * (value or 0.0)


def _trial(trial: Mapping, search: Mapping, names: Sequence[str]) -> list[str]:
    value = objective(trial, search)
    mark = " ★ best" if trial.get("name") == search.get("optimal") else ""
    parameters = [str(trial.get("parameters", {}).get(name, "–")) for name in names]
    return [
        trial["name"] + mark,
        trial["status"],
        "–" if value is None else f"{value:.5f}",
        *parameters,
        trial.get("reason") or "",
    ]


def _training(documents: Documents) -> str:
    facts = dict(page.flat(documents.options or {}))
    for epoch in (documents.history or [])[-1:]:
        facts["epochs"] = len(documents.history or [])
        facts["jets per second, last epoch"] = (
            f"{epoch['jets_per_second']:,.0f}" if epoch.get("jets_per_second") else "not recorded"
        )
    seconds = sum(epoch.get("seconds") or 0 for epoch in documents.history or [])
    if seconds:
        facts["time in epochs"] = f"{seconds:,.0f} s"
    nothing = "<p>No record of the best trial's training was found.</p>"
    return page.section(
        "Training",
        page.facts(facts, "Options of the best trial, and its speed") if facts else nothing,
    )


def _data(documents: Documents) -> str:
    metrics, sets = documents.metrics, (documents.run or {}).get("data") or {}
    far = "jets off by more than a factor e, |log(pT / pT_gen)| ≥ 1"
    facts = {
        "test jets that pass the selection": f"{metrics['num_jets']:,}",
        "of these measured (finite answer, generator jet)": f"{metrics['num_measured']:,}",
        "jets without a finite answer": f"{metrics['num_without_answer']:,}",
        **{f"{far}: {LABELS[name]}": f"{number:,}" for name, number in metrics["num_far"].items()},
        **{
            f"jets in common, {names}": f"{number:,}"
            for names, number in ((documents.run or {}).get("shared_jets") or {}).items()
        },
    }
    return page.section(
        "Data",
        _sets(sets) if sets else "<p>No record of the data was found (run.json).</p>",
        page.facts(facts, "Test jets", shown=True),
        page.facts(dict(page.flat(sets)), "Fingerprints and decoded data"),
    )


def _sets(data: Mapping) -> str:
    """The three sets of jets, one a row."""
    uses = {
        "train": "the weights",
        "val": "the best epoch and trial, parity",
        "test": "this page, once",
    }
    numbers = {
        name: [f"{one[key]:,}" if key in one else "–" for key in ("files", "read", "jets")]
        for name, one in data.items()
    }
    rows = [[name, *found, uses.get(name, "")] for name, found in numbers.items()]
    return page.table(["Set", "Files", "Jets read", "Jets selected", "Used for"], rows)


def _reproduce(documents: Documents) -> str:
    run, metrics = documents.run or {}, documents.metrics
    commands = [_pipeline_command(run["config"], metrics["run"])] if run.get("config") else []
    commands.append(_evaluate_command(metrics))
    names = ("run_id", "git_commit", "data_fingerprint")
    facts = {name.replace("_", " "): run.get(name) or "not recorded" for name in names}
    facts["best trial"] = metrics.get("trial") or "not recorded"
    return page.section(
        "Reproduce",
        page.facts(facts, "Names", shown=True),
        "".join(f"<pre>{page.escaped(command)}</pre>" for command in commands),
        f"<p>Beside this page in {page.escaped(metrics['run'])}: every number in metrics.json, the"
        " figures as PDF in figures/.</p>",
        page.facts(dict(page.flat(run.get("config") or {})), "Parameters of the run"),
        page.facts(
            dict(page.flat({**(run.get("versions") or {}), **(run.get("images") or {})})),
            "Versions",
        ),
    )


def _evaluate_command(metrics: Mapping) -> str:
    """The command that writes this page again from the run's folder."""
    config = metrics["config"]
    given = {
        "run": metrics["run"],
        "name": metrics["model"],
        "trial": metrics.get("trial"),
        "baseline": metrics.get("baseline"),
        "min-improvement": f"{config['min_improvement']:g}",
        "max-closure": f"{config['max_closure']:g}",
        "seed": config["seed"],
        "replicates": metrics["replicates"],
    }
    flags = (
        part
        for name, value in given.items()
        if value is not None
        for part in (f"--{name}", str(value))
    )
    return shlex.join(["python", "-m", "physics.evaluate", *flags])


def _pipeline_command(config: Mapping, run: str) -> str:
    """The command of such a run: the flags that differ from their defaults; the search space is the
    one kept in the run's folder.
    """
    from common.config import RunConfig, flag

    defaults = RunConfig().parameters() | {
        "run_id": config.get("run_id"),
        "s3_bucket": config.get("s3_bucket"),
    }
    given = {name: value for name, value in config.items() if value != defaults.get(name)}
    if "search_space" in given:
        given["search_space"] = f"{run}/config/search_space.json"
    return shlex.join(
        [
            "python",
            "pipeline.py",
            *(part for name, value in given.items() for part in (f"--{flag(name)}", str(value))),
        ]
    )


def _figures(figures: Sequence[Drawing], *kinds: str) -> str:
    """The figures whose name is one of `kinds`, or begins with it and a dash."""
    return gallery(
        drawing
        for kind in kinds
        for drawing in figures
        if drawing.name == kind or drawing.name.startswith(kind + "-")
    )
