"""The page is checked as text, and once in a real browser where `chromium` is there."""

import html
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from reporting.report import Documents, figures_of, render
from reporting.serving_section import updated


@pytest.fixture(scope="module")
def page(run_documents) -> str:
    documents = Documents(**run_documents)
    return render(documents, list(figures_of(documents)))


class Elements(HTMLParser):
    """Collects every element with its attributes, and checks that tags close in order."""

    VOID = ("meta", "br", "img", "use", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere(page):
    elements = Elements(page)
    assert elements.open == []
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in elements.found}
    links = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href")
    ]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "@import" not in page
    assert "url(h" not in page


def test_names_inside_the_figures_are_unique_and_references_resolve(page):
    elements = Elements(page).found
    names = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(names) == len(set(names))
    used = {
        value[1:]
        for _, attributes in elements
        for name, value in attributes.items()
        if name == "xlink:href"
    }
    assert used <= set(names)


def test_every_figure_has_words(page):
    figures = [attributes for tag, attributes in Elements(page).found if tag == "svg"]
    assert len(figures) == 15
    assert all(
        attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in figures
    )


def test_verdict_search_and_commands_are_there(page):
    for text in (
        "Gate passed",
        "another sample",
        "pfn-0a1b2c3d-b ★ best",
        "loss is not finite in &lt;epoch 2&gt;",
        "3.2e-07",
        (
            "python -m physics.evaluate --run runs/pfn-0a1b2c3d --name pfn --trial pfn-0a1b2c3d-b"
            " --min-improvement 0 --max-closure 0.02"
        ),
        "python pipeline.py --num-epochs 3",
        "not recorded",
        "Beside this page in runs/pfn-0a1b2c3d: every number in metrics.json, the figures as PDF",
        "68 % half-width / median, model",
        "here it is jets of this project&#x27;s own generator, which are not CMS&#x27;s",
    ):
        assert text in page


def test_the_uncertainty_of_jets_is_told_where_a_network_gives_it(page, run_documents):
    for text in (
        "Uncertainty of each jet",
        "Jets within their own uncertainty",
        "from q16 to q84",
        "Pull, ",
        "Among jets of the same pT",
    ):
        assert text in page
    metrics = {
        name: value for name, value in run_documents["metrics"].items() if name != "uncertainty"
    }
    documents = Documents(metrics=metrics)
    assert "ncertainty" not in render(documents, [])
    assert not {"uncertainty-coverage", "uncertainty-width"} & {
        drawing.name for drawing in figures_of(documents)
    }


def test_serving_numbers_are_there(page):
    for text in (
        "<td>1.5 MB</td><td>2,048</td><td>0.052 MB</td><td>100.00 % of 1,000</td><td>3.2e-07</td>",
        "no form of &lt;x&gt; in a graph",
        "12,346 jets/s in batches of 1,000 (2 threads of Some CPU;",
        "<td>pfn</td><td>0</td><td>6.1e-08</td>",
        "kserve at http://pfn.physics.example",
        "1.91 ms (median of 10; 1.8 to 2.5)",
    ):
        assert text in page


def test_the_service_s_answers_come_into_a_page_that_was_written_before(run_documents):
    """As the deploy step does it; a service of a model that was exported before is not
    this one's.
    """
    metrics, export, service = (run_documents[name] for name in ("metrics", "export", "service"))
    before = render(Documents(**{**run_documents, "service": None}), [])
    assert "Not deployed yet" in before
    assert updated(before, export, metrics["inference"], service) == render(
        Documents(**run_documents), []
    )
    assert (
        updated(before, {**export, "sha256": "def"}, metrics["inference"], service).count(
            "Not deployed yet"
        )
        == 1
    )
    assert updated("<html></html>", export, None, service) == "<html></html>"


def test_weighted_and_baseline_bins_are_shown(run_documents):
    bins = [
        {**record, "gain_over_baseline": record["gain"]}
        for record in run_documents["metrics"]["bins"]
    ]
    weighted = {"bins": bins, "gain": bins[-1]["gain"], "effective_jets": 1234.0}
    page = render(
        Documents(metrics=run_documents["metrics"] | {"weighted": weighted, "bins": bins}), []
    )
    assert "The same bins, weighted" in page
    assert "1,234 effective jets" in page
    assert page.count('<th scope="col">Gain over baseline</th>') == 2
    assert "Each jet counts once" in render(Documents(metrics=run_documents["metrics"]), [])


def test_a_failed_gate_says_why(run_documents):
    metrics = run_documents["metrics"] | {
        "passed": False,
        "reasons": ["closure fails for barrel jets at 60-80 GeV"],
    }
    page = render(Documents(metrics=metrics), [])
    assert "Gate not passed" in page
    assert "<li>closure fails for barrel jets" in page


@pytest.mark.parametrize("missing", ["run", "search", "history", "options", "export", "service"])
def test_each_document_may_be_missing(run_documents, missing):
    kept = {name: value for name, value in run_documents.items() if name != missing}
    assert Elements(render(Documents(**kept), [])).open == []


def test_without_any_jets_there_is_still_a_page(run_documents):
    from physics.gate import gate
    from physics.metrics import measure
    from tests.physics.jets import make_jets

    metrics = measure(make_jets(0), [], replicates=20)
    passed, reasons = gate(metrics)
    documents = Documents(
        metrics=run_documents["metrics"]
        | metrics
        | {
            "passed": passed,
            "reasons": reasons,
            "uncertainty": None,
        }
    )
    page = render(documents, list(figures_of(documents)))
    assert "cannot be measured" in page
    assert "<svg" not in page


@pytest.mark.parametrize("best", ["minimize", "maximize"])
def test_the_search_table_puts_the_best_first(run_documents, best):
    search = run_documents["search"] | {"objective": {"name": "AvgLoss", "type": best}}
    page = render(Documents(metrics=run_documents["metrics"], search=search), [])
    order = sorted("abc", key=lambda letter: page.index(f"<td>pfn-0a1b2c3d-{letter}"))
    assert order == (["b", "a", "c"] if best == "minimize" else ["a", "b", "c"])


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def browse(tmp_path, *options: str) -> str:
    """One headless browser on an empty profile; what it prints."""
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
def test_in_a_browser_nothing_sticks_out_sideways(page, tmp_path, width):
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
    assert int(figures) == 15


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
