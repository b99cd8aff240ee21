"""The page is checked as text, and once in a real browser where `chromium` is there."""

import dataclasses
import html
import re
import shutil
import subprocess
from dataclasses import fields

import pytest

from common.config import RunConfig
from common.measurements import (
    EdgeStep,
    GateCheck,
    Interval,
    ResidualSlice,
    Unmeasured,
    Weighted,
)
from common.records import (
    DataSet,
    MetricsRecord,
    ModelRecord,
    Objective,
    RateRecord,
    RunRecord,
    SearchRecord,
    TrialOptions,
    plain,
)
from common.run import Run
from reporting import report_physics
from reporting.report import Documents, figures_of, render
from reporting.report_run import reproduce
from reporting.search_page import search_page
from reporting.serving_section import replace_section, section
from tests.reporting.elements import HOSTILE, Elements, assert_harmless


@pytest.fixture(scope="module")
def page(documents) -> str:
    return render(documents, list(figures_of(documents)))


def test_the_page_loads_nothing_from_other_addresses(page):
    elements = Elements(page)
    assert elements.open == []
    assert not {"script", "link", "iframe", "img"} & elements.tags
    assert elements.addresses
    beside = {address for address in elements.addresses if not address.startswith("#")}
    assert beside <= {"model_card.md"}  # in the run's folder, as the page is
    assert "@import" not in page
    assert "url(h" not in page


def test_ids_inside_the_figures_are_unique_and_references_resolve(page):
    elements = Elements(page).elements
    names = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(names) == len(set(names))
    references = {
        value[1:]
        for _, attributes in elements
        for name, value in attributes.items()
        if name == "xlink:href"
    }
    assert references <= set(names)


def test_every_figure_has_a_description(page):
    figures = Elements(page).figures
    assert len(figures) == 16
    assert all(figure["role"] == "img" and len(figure["aria-label"]) > 20 for figure in figures)


def test_the_page_shows_verdict_search_and_commands(page):
    for text in (
        "Gate passed",
        "another sample",
        "pfn-0a1b2c3d-b ★ best",
        "loss is not finite in <epoch 2>",
        "3.2e-07",
        (
            "python -m evaluating.evaluate --run runs/pfn-0a1b2c3d --name pfn"
            " --trial pfn-0a1b2c3d-b --min-improvement 0 --max-closure 0.01"
        ),
        "python pipeline.py --num-epochs 3",
        "not recorded",
        "Beside this page in runs/pfn-0a1b2c3d: every number in metrics.json, the figures as PDF",
        "68 % half-width / median, model",
        "here it is jets of this project's own generator, which are not CMS's",
    ):
        assert text in Elements(page).text
    assert "loss is not finite in &lt;epoch 2&gt;" in page


def test_the_uncertainty_of_jets_is_shown_where_a_network_has_it(page, documents):
    for text in (
        "Uncertainty of each jet",
        "Jets within their own uncertainty",
        "from q16 to q84",
        "Pull, ",
        "expected: 68 %",
        "Among jets of the same pT",
    ):
        assert text in Elements(page).text
    others = Documents(metrics=dataclasses.replace(documents.metrics, uncertainty=None))
    assert "ncertainty" not in render(others, [])
    names = {drawing.name for drawing in figures_of(others)}
    assert not {"uncertainty-coverage", "uncertainty-width"} & names


def test_the_rates_of_both_models_are_compared(documents):
    rates = [
        RateRecord(batch_size=32, threads=2, jets_per_second=80_000.0),
        RateRecord(batch_size=1000, threads=2, jets_per_second=100_000.0),
    ]
    slower = [dataclasses.replace(rate, jets_per_second=60_000.0) for rate in rates]
    raw = {field.name: getattr(documents.export, field.name) for field in fields(ModelRecord)}
    raw_record = ModelRecord(**{**raw, "model": "pfn-raw", "rates": slower})
    export = dataclasses.replace(documents.export, rates=rates, raw=raw_record)
    page = render(dataclasses.replace(documents, export=export), [])
    for text in (
        '<a href="model_card.md">',
        "<td>pfn</td><td>80,000</td><td>100,000</td>",
        "<td>pfn-raw</td><td>60,000</td><td>60,000</td>",
        "<td>raw over features</td><td>0.75</td><td>0.60</td>",
        "on 2 threads",
        "Jets/s in batches of 1,000",
    ):
        assert text in page
    assert "model_card.md" not in render(documents, [])  # an export of an earlier version


def test_the_page_shows_the_step_at_the_edges_of_the_valid_range(documents):
    def around(value: float) -> Interval:
        return Interval(value=value, low=value - 0.01, high=value + 0.01)

    step = EdgeStep(
        edge="pT = 18 GeV",
        num_inside=2345,
        num_outside=678,
        model_inside=around(1.05),
        standard_inside=around(1.08),
        standard_outside=around(1.1),
    )
    few = dataclasses.replace(step, edge="|η| = 2.5", standard_outside=None, num_outside=4)
    metrics = dataclasses.replace(documents.metrics, edges=[step, few])
    page = render(dataclasses.replace(documents, metrics=metrics), [])
    text = Elements(page).text
    values = "1.050 [1.040, 1.060] 1.080 [1.070, 1.090]"
    assert f"2,345 {values} 678 1.100 [1.090, 1.110] -5.0 %" in text
    assert "4 too few jets not measured" in text
    assert "edges of the valid range" not in render(documents, [])


def test_the_page_shows_numbers_of_serving(page):
    for text in (
        "no form of &lt;x&gt; in a graph",
        "12,346 jets/s in batches of 1,000 (2 threads of Some CPU;",
        "<td>pfn</td><td>0</td><td>6.1e-08</td>",
        "kserve at http://pfn.physics.example",
        "1.91 ms (median of 10; 1.8 to 2.5)",
    ):
        assert text in page
    row = "pfn 1.5 MB 2,048 0.052 MB 100.00 % of 1,000 3.2e-07"
    assert row in Elements(page).text


def test_the_service_s_section_is_replaced_in_an_existing_page(documents):
    """As the deploy step does it; a service of an earlier model is not this one's."""
    export, service = documents.export, documents.service
    inference = documents.metrics.inference
    before = render(dataclasses.replace(documents, service=None), [])
    assert "Not deployed yet" in before
    assert replace_section(before, export, inference, service) == render(documents, [])
    another = dataclasses.replace(export, sha256="def")
    assert replace_section(before, another, inference, service).count("Not deployed yet") == 1
    assert replace_section("<html></html>", export, None, service) == "<html></html>"


def test_weighted_and_baseline_bins_are_shown(documents):
    metrics = documents.metrics
    bins = [dataclasses.replace(bin_, gain_over_baseline=bin_.gain) for bin_ in metrics.bins]
    weighted = Weighted(
        gain=bins[-1].gain,
        gain_half_width=None,
        gain_over_baseline=None,
        resolution=None,
        bins=bins,
        effective_jets=1234.0,
    )
    page = render(Documents(metrics=dataclasses.replace(metrics, weighted=weighted, bins=bins)), [])
    assert "The same bins, weighted" in page
    assert "1,234 effective jets" in page
    assert page.count('<th scope="col">Gain over baseline</th>') == 2
    assert "Each jet counts once" in render(Documents(metrics=metrics), [])


def test_the_tiles_show_the_gate_s_limits(documents):
    def remark(metrics, what: str) -> str:
        (tile_,) = [tile for tile in report_physics.tiles(metrics) if tile.what == what]
        return f"{tile_.number} {tile_.remark}"

    metrics = documents.metrics
    worse = Interval(value=-0.017, low=-0.02, high=-0.014)
    # Where the standard JEC has a larger bias, the limit is that bias.
    bins = [dataclasses.replace(tile_, standard=worse) for tile_ in metrics.closure.bins]
    biased = dataclasses.replace(
        metrics, closure=dataclasses.replace(metrics.closure, bins=bins, worst=bins[0])
    )
    assert "±1 %" in remark(metrics, "Closure, barrel")
    assert "±1.70 %" in remark(biased, "Closure, barrel")

    what = "Resolution gain over the standard JEC"
    strict = dataclasses.replace(metrics, config=dataclasses.replace(metrics.config, gate="strict"))
    assert "interval that reaches 0 %" in remark(metrics, what)
    assert "interval above 0 %" in remark(strict, what)

    barrel = metrics.flavour.regions["barrel"]
    uncertain = dataclasses.replace(barrel, reduction=None)
    regions = {**metrics.flavour.regions, "barrel": uncertain}
    unknown = dataclasses.replace(
        metrics, flavour=dataclasses.replace(metrics.flavour, regions=regions)
    )
    assert barrel.spread.standard.value > 0
    assert "too uncertain" in remark(unknown, "Flavour spread, barrel")


def test_the_tiles_show_the_gate_s_values_and_outcomes(documents):
    """Each to two digits, with its limit and the outcome."""
    metrics = documents.metrics
    tiles = {tile.what: tile for tile in report_physics.tiles(metrics)}
    wheres = {
        ("gain", "jets above 30 GeV"): "Resolution gain over the standard JEC",
        ("closure", "barrel jets above 60 GeV"): "Closure, barrel",
        ("closure", "endcap jets above 60 GeV"): "Closure, endcap",
        ("flavour spread", "barrel jets above 60 GeV"): "Flavour spread, barrel",
        ("flavour spread", "endcap jets above 60 GeV"): "Flavour spread, endcap",
    }
    checks_by_place = {(check.quantity, check.where): check for check in metrics.gate.checks}
    assert set(wheres) <= set(checks_by_place)
    for place, what in wheres.items():
        check, tile = checks_by_place[place], tiles[what]
        assert float(tile.number.removesuffix(" %")) == pytest.approx(check.value, abs=0.00501)
        assert tile.remark.endswith("; passes" if check.passed else "; refused")
        if check.quantity == "flavour spread":
            assert f"allowed: {check.limit:.2f} %" in tile.remark
        elif check.quantity == "closure":
            limit = float(tile.remark.split("±")[1].split(" %")[0])
            assert limit == pytest.approx(check.limit, abs=0.00501)

    checks = [dataclasses.replace(check, passed=False) for check in metrics.gate.checks]
    refused_metrics = dataclasses.replace(
        metrics, gate=dataclasses.replace(metrics.gate, checks=checks)
    )
    tiles = {tile.what: tile for tile in report_physics.tiles(refused_metrics)}
    assert all(tiles[what].remark.endswith("; refused") for what in wheres.values())
    # A run of an earlier version has the numbers without the gate's.
    earlier = report_physics.tiles(dataclasses.replace(metrics, gate=None))
    assert not any("passes" in tile.remark for tile in earlier)


def test_the_tile_of_coverage_shows_the_gate_s_value(documents):
    coverage = documents.metrics.uncertainty.bands[0].coverage
    check = GateCheck(
        quantity="coverage",
        where="jets, 68 % expected",
        num_jets=6000,
        unit="points",
        value=100 * coverage.value - 68,
        standard=None,
        limit=4.0,
        margin=Interval(value=3.0, low=2.0, high=3.9),
        passed=True,
    )
    gate = dataclasses.replace(documents.metrics.gate, checks=[check])
    tile = report_physics.tiles(dataclasses.replace(documents.metrics, gate=gate))[-1]
    assert float(tile.number.removesuffix(" %")) == pytest.approx(68 + check.value, abs=0.00501)
    assert tile.remark.endswith("expected: 68 % ± 4 points; passes")


def test_unusable_weights_are_not_reported_as_missing(documents):
    weighted = Weighted(
        gain=None,
        gain_half_width=None,
        gain_over_baseline=None,
        resolution=None,
        bins=[],
        effective_jets=15.0,
    )
    reason = "15.2 effective jets, fewer than 50"
    unmeasured = Unmeasured(
        quantity="weighted gain", where="jets above 30 GeV", num_jets=965, reason=reason
    )
    metrics = dataclasses.replace(documents.metrics, weighted=weighted, unmeasured=[unmeasured])
    page = Elements(render(Documents(metrics=metrics), [])).text
    assert f"Not weighted: {reason}" in page
    none = dataclasses.replace(documents.metrics, weighted=None, unmeasured=[])
    page = Elements(render(Documents(metrics=none), [])).text
    assert "Not weighted: eventWeight is not among the observers" in page


def test_a_failed_gate_shows_its_reasons(documents):
    reasons = ["closure fails for barrel jets at 60-80 GeV"]
    metrics = dataclasses.replace(documents.metrics, passed=False, reasons=reasons)
    page = render(Documents(metrics=metrics), [])
    assert "Gate not passed" in page
    assert "<li>closure fails for barrel jets" in page


@pytest.mark.parametrize("missing", ["run", "search", "history", "options", "export", "service"])
def test_each_document_may_be_missing(documents, missing):
    values = {field.name: getattr(documents, field.name) for field in dataclasses.fields(documents)}
    del values[missing]
    assert Elements(render(Documents(**values), [])).open == []


def test_a_page_is_made_without_any_jets(documents):
    from tests.physics.jets import make_jets, measure_and_judge

    record, reasons = measure_and_judge(make_jets(0), [], replicates=20)
    verdict = {"passed": not reasons, "reasons": reasons, "uncertainty": None}
    metrics = MetricsRecord.from_json({**plain(documents.metrics), **record, **verdict})
    empty = Documents(metrics=metrics)
    page = render(empty, list(figures_of(empty)))
    assert "cannot be measured" in page
    assert "<svg" not in page


@pytest.mark.parametrize("best", ["minimize", "maximize"])
def test_the_search_table_puts_the_best_first(documents, best):
    objective = Objective(name="AvgLoss", type=best)
    search = dataclasses.replace(documents.search, objective=objective)
    page = render(Documents(metrics=documents.metrics, search=search), [])
    order = sorted("abc", key=lambda letter: page.index(f'"Trial">pfn-0a1b2c3d-{letter}'))
    assert order == (["b", "a", "c"] if best == "minimize" else ["a", "b", "c"])


def test_importance_is_shown_with_its_caveat(documents):
    best = documents.search.best
    trials = [
        dataclasses.replace(best, name=f"pfn-0a1b2c3d-{number}", parameters={"k": str(number)})
        for number in range(9)
    ]
    search = dataclasses.replace(documents.search, trials=trials, optimal="pfn-0a1b2c3d-3")
    nine = Documents(metrics=documents.metrics, search=search)
    text = Elements(render(nine, list(figures_of(nine)))).text
    assert "Importance: k 0 % (chance: up to 0 %)." in text
    assert "searches with 9 trials" in text


def hostile_search(search: SearchRecord) -> SearchRecord:
    """The same search with HOSTILE in every name, value and reason."""
    trials = []
    for trial in search.trials:
        observations = {HOSTILE: trial.metrics["AvgLoss"]} if trial.metrics else {}
        hostile_values = {
            "name": trial.name + HOSTILE,
            "parameters": {HOSTILE: trial.parameters["fc-dim"] + HOSTILE},
            "metrics": observations,
            "reason": HOSTILE,
        }
        trials.append(dataclasses.replace(trial, **hostile_values))
    return dataclasses.replace(
        search,
        objective=Objective(name=HOSTILE),
        algorithm=HOSTILE,
        optimal=search.optimal + HOSTILE,
        trials=trials,
    )


def test_names_and_values_never_become_markup(documents):
    search = hostile_search(documents.search)
    slices = []
    for place, bin_ in enumerate(documents.metrics.closure.bins):
        biases = bin_.by_calibration()
        slices.append(ResidualSlice(low=place, middle=place, high=place, num_jets=9, **biases))
    metrics = dataclasses.replace(
        documents.metrics,
        run_id=HOSTILE,
        run=f"runs/{HOSTILE}",
        reasons=[f"first reason: {HOSTILE}"],
        gain_over_baseline=documents.metrics.gain,
        baseline=HOSTILE,
        trial=search.optimal,
        residuals={HOSTILE: slices},
    )
    data_set = DataSet(dataset=HOSTILE, jets=1, read=1, files=1, fingerprint=HOSTILE)
    hostile_documents = Documents(
        metrics=metrics,
        run=Run(
            config=RunConfig(data_config=HOSTILE, data_test=HOSTILE),
            record=RunRecord(
                data={HOSTILE: data_set}, versions={HOSTILE: HOSTILE}, git_commit=HOSTILE
            ),
        ),
        search=search,
        history=documents.history,
        options=TrialOptions(network_options={HOSTILE: HOSTILE}, network_config=HOSTILE),
    )
    figures = list(figures_of(hostile_documents))
    page = render(hostile_documents, figures)
    assert_harmless(
        page,
        f"Jet energy calibration: {HOSTILE}",
        f"first reason: {HOSTILE}",
        f"Residual bias against {HOSTILE}",
        f"200{HOSTILE}",
        f"best trial pfn-0a1b2c3d-b{HOSTILE}",
        f"baseline: {HOSTILE}",
        f"here it is the jets of {HOSTILE}",
    )
    assert all(re.fullmatch(r"[\w-]+", drawing.name) for drawing in figures), "they name files"


def test_text_of_a_service_never_becomes_markup(documents):
    export = dataclasses.replace(documents.export, model=HOSTILE, raw_reason=f"raw: {HOSTILE}")
    service = dataclasses.replace(documents.service, url=HOSTILE, kind=HOSTILE, name=HOSTILE)
    inference = dataclasses.replace(documents.metrics.inference, processor=HOSTILE)
    assert_harmless(
        section(export, inference, service),
        f"raw: {HOSTILE}",
        f"2 threads of {HOSTILE}",
        f"{HOSTILE} at {HOSTILE} gave the answers",
    )


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def browse(tmp_path, *options: str) -> str:
    """The output of one headless browser on an empty profile."""
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    command = [
        CHROMIUM,
        "--headless",
        *quiet,
        f"--user-data-dir={tmp_path}/profile",
        "--hide-scrollbars",
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_does_not_scroll_sideways_in_a_browser(page, tmp_path, width):
    # In a frame of that width, sandboxed as in the Kubeflow UI except that this page may look into
    # it.
    frame = (
        f'<iframe sandbox="allow-same-origin" srcdoc="{html.escape(page)}"'
        f' style="width:{width}px;height:900px;border:0"></iframe>'
    )
    measure = (
        "const d = document.querySelector('iframe').contentDocument;const text ="
        " [...d.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().height >"
        " 100).length;document.title = `${d.documentElement.scrollWidth} ${text}`;"
    )
    (tmp_path / "frame.html").write_text(
        f"<!doctype html><title></title>{frame}<script>onload = () => {{{measure}}}</script>"
    )
    dom = browse(tmp_path, "--window-size=1300,1000", "--dump-dom", f"file://{tmp_path}/frame.html")
    scroll, figures = dom.split("<title>")[1].split("</title>")[0].split()
    assert int(scroll) <= width
    assert int(figures) == 16


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_gate_s_table_is_visible_without_scrolling_sideways(page, tmp_path, width):
    frame = (
        f'<iframe sandbox="allow-same-origin" srcdoc="{html.escape(page)}"'
        f' style="width:{width}px;height:900px;border:0"></iframe>'
    )
    measure = (
        "const d = document.querySelector('iframe').contentDocument;"
        "const cells = [...d.querySelector('.verdict table').querySelectorAll('td')];"
        "const ends = cells.map(c => c.getBoundingClientRect().right);"
        "document.title = `${cells.length} ${Math.ceil(Math.max(...ends))}`;"
    )
    (tmp_path / "frame.html").write_text(
        f"<!doctype html><title></title>{frame}<script>onload = () => {{{measure}}}</script>"
    )
    dom = browse(tmp_path, "--window-size=1300,1000", "--dump-dom", f"file://{tmp_path}/frame.html")
    cells, end = dom.split("<title>")[1].split("</title>")[0].split()
    assert int(cells) >= 7 * 5
    assert int(end) <= width


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("which", ["report", "search"])
def test_on_a_phone_no_element_is_wider_than_the_page(page, documents, tmp_path, which):
    """With everything unfolded, in a window of 390 pixels; figures are scaled as a whole."""
    if which == "search":
        page = search_page(long_search(documents.search))
    frame = (
        f'<iframe sandbox="allow-same-origin" srcdoc="{html.escape(page)}"'
        ' style="width:390px;height:900px;border:0"></iframe>'
    )
    measure = (
        "const d = document.querySelector('iframe').contentDocument;"
        "d.querySelectorAll('details').forEach(one => one.open = true);"
        "const all = [...d.body.querySelectorAll('*')].filter(e => !e.closest('svg') || "
        "e.tagName === 'svg');"
        "const wide = all.filter(e => e.getBoundingClientRect().right > 390.5);"
        "document.title = `${all.length} ${wide.map(e => e.tagName + '.' + e.className + ' ' +"
        "e.textContent.slice(0, 40)).join(';')}`;"
    )
    (tmp_path / "frame.html").write_text(
        f"<!doctype html><title></title>{frame}<script>onload = () => {{{measure}}}</script>"
    )
    dom = browse(tmp_path, "--window-size=1300,1000", "--dump-dom", f"file://{tmp_path}/frame.html")
    number, _, wide = dom.split("<title>")[1].split("</title>")[0].partition(" ")
    assert int(number) > 50
    assert wide == ""


def long_search(search: SearchRecord) -> SearchRecord:
    """The same search with a dozen parameters of long names and values, and long reasons."""
    trials = []
    for number, trial in enumerate(search.trials):
        parameters = {}
        for place in range(12):
            parameters[f"parameter-with-a-name-{place}"] = f"{0.123456789012 * (number + place)}"
        reason = f"exit code 1: see {'folder/' * 20}training.log" if trial.reason else ""
        trials.append(dataclasses.replace(trial, parameters=parameters, reason=reason))
    return dataclasses.replace(search, trials=trials)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_a_browser_draws_the_page(page, tmp_path):
    from matplotlib.image import imread

    (tmp_path / "report.html").write_text(page)
    browse(
        tmp_path,
        "--window-size=1200,1800",
        f"--screenshot={tmp_path}/page.png",
        f"file://{tmp_path}/report.html",
    )
    image = imread(tmp_path / "page.png")[..., :3]
    red = (image[..., 0] > 0.8) & (image[..., 1] < 0.3) & (image[..., 2] < 0.35)
    blue = (image[..., 2] > 0.9) & (image[..., 0] < 0.5)
    assert red.sum() > 200  # points of the model, and of the standard JEC
    assert blue.sum() > 200


def test_the_report_shows_images_with_their_digests(documents):
    digest = "sha256:" + "0a" * 32
    record = RunRecord(
        images={"steps": "r.example/steps:1", "weaver": f"r.example/weaver@{digest}"},
        image_digests={"steps": digest, "weaver": digest},
    )
    run = dataclasses.replace(documents.run, record=record)
    assert reproduce(documents.metrics, run).versions == {
        "image steps": f"r.example/steps:1 ({digest})",
        "image weaver": f"r.example/weaver@{digest}",
    }
