"""`--compare`: one page of several runs, and what it refuses."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest

import pipeline
from common.layout import RunFolder
from common.measurements import ClosureBin, Interval
from common.records import MetricsRecord
from common.run import Run
from operations import compare
from reporting import comparison_page
from reporting.comparison_page import ComparedRun, about_jets, summary
from tests.physics.jets import good_metrics, good_output, jets, widths  # noqa: F401 (fixtures)
from tests.records import metrics_record
from tests.reporting.documents import documents  # noqa: F401 (fixture)

LABEL = {"target": "np.log(genJetPt / jetPt)"}


@pytest.fixture(scope="module")
def metrics(good_metrics) -> MetricsRecord:  # noqa: F811 (fixture)
    return MetricsRecord.from_json({**metrics_record().as_json(), **good_metrics})


@pytest.fixture
def make(tmp_path, metrics, documents):  # noqa: F811 (fixture)
    """Make the folder of an evaluated run."""

    def make_evaluated(run_id: str, **changes) -> Path:
        folder = RunFolder(str(tmp_path / run_id))
        config = documents.run.config.replace(run_id=run_id, s3_bucket=str(tmp_path))
        Run(config=config, record=documents.run.record).save()
        fields = {"run_id": run_id, "label": LABEL, "test_fingerprint": "00ff", **changes}
        dataclasses.replace(metrics, **fields).save(folder.metrics)
        return tmp_path / run_id

    return make_evaluated


@pytest.fixture
def no_drawings(monkeypatch):
    monkeypatch.setattr(comparison_page, "drawings", lambda _: [])


def call(tmp_path, *names: object) -> int:
    return pipeline.main(["--output", str(tmp_path), "--compare", *map(str, names)])


class Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.cells.append(data.strip())


def test_runs_are_named_by_id_or_by_folder_and_drawn(tmp_path, make, capsys):
    make("pfn-00000001")
    folder = make("pfn-00000002", gain=Interval(value=7.5, low=6.5, high=8.5))
    assert call(tmp_path, "pfn-00000001", folder) == 0
    page = (tmp_path / "comparison.html").read_text()
    cells = Words(page).cells
    assert "A: pfn-00000001" in cells
    assert "B: pfn-00000002" in cells
    assert "+7.5 % [6.5, 8.5]" in cells
    assert page.count("<svg") == 3  # these runs have no tails
    assert str(tmp_path / "comparison.html") in capsys.readouterr().out


def error_of(tmp_path, capsys, *names: object) -> str:
    assert call(tmp_path, *names) == 2
    assert not (tmp_path / "comparison.html").exists()
    return capsys.readouterr().err


def test_runs_of_different_labels_are_refused(tmp_path, make, capsys):
    make("pfn-00000001")
    make("pfn-00000002", label={"ratio": "genJetPt / jetPt"})
    error = error_of(tmp_path, capsys, "pfn-00000001", "pfn-00000002")
    assert "genJetPt / jetPt" in error
    assert "np.log(genJetPt / jetPt)" in error
    assert "pfn-00000002" in error


@pytest.mark.usefixtures("no_drawings")
def test_the_name_and_the_layout_of_a_label_do_not_matter(tmp_path, make):
    make("pfn-00000001")
    make("pfn-00000002", label={"y": "np.log(genJetPt/(jetPt))"})
    assert call(tmp_path, "pfn-00000001", "pfn-00000002") == 0


@pytest.mark.usefixtures("no_drawings")
def test_the_label_of_an_earlier_versions_run_is_that_of_its_data_config(tmp_path, make, capsys):
    make("pfn-00000001")
    folder = make("pfn-00000002", label={}, test_fingerprint="")
    (folder / "config").mkdir()
    source = Path("data/jec_pfn_open.yaml").read_text()
    (folder / "config" / "data.yaml").write_text(source)
    assert call(tmp_path, "pfn-00000001", "pfn-00000002") == 0
    (tmp_path / "comparison.html").unlink()
    (folder / "config" / "data.yaml").write_text(
        source.replace("np.log(genJetPt / jetPt)", "genJetPt")
    )
    assert "genJetPt," in error_of(tmp_path, capsys, "pfn-00000001", "pfn-00000002")


def test_a_run_that_was_not_evaluated_does_not_exist_or_is_named_twice_is_refused(
    tmp_path, make, capsys
):
    make("pfn-00000001")
    (make("pfn-00000002") / "metrics.json").unlink()
    for names, words in (
        (("pfn-00000001",), "2 to 8"),
        (("pfn-00000001", "pfn-00000002"), "pfn-00000002 has no metrics.json"),
        (("pfn-00000001", "pfn-00000003"), "pfn-00000003"),
        (("pfn-00000001", tmp_path / "pfn-00000001"), "named twice"),
    ):
        assert words in error_of(tmp_path, capsys, *names)


def compared_runs(metrics, *fingerprints: str) -> list[ComparedRun]:
    runs = []
    for number, fingerprint in enumerate(fingerprints):
        new_metrics = dataclasses.replace(metrics, test_fingerprint=fingerprint)
        runs.append(ComparedRun(name=f"run{number}", metrics=new_metrics))
    return runs


def test_the_page_says_whether_the_test_jets_are_the_same(metrics):
    assert f"same {metrics.num_measured:,} jets" in about_jets(compared_runs(metrics, "a", "a"))
    assert "(A, C; B)" in about_jets(compared_runs(metrics, "a", "b", "a"))
    assert "not known" in about_jets(compared_runs(metrics, "a", ""))


def test_unmeasured_quantities_have_no_number(metrics):
    bare = dataclasses.replace(metrics, gain=None, resolution=None, tails=[])
    row = summary([ComparedRun(name="run", metrics=bare)]).rows[0]
    assert row[3:6] == ["–", "–", "–"]
    assert row[-1] == "–"


def test_the_closure_of_the_summary_is_that_of_the_whole_region(metrics):
    whole = [
        entry for entry in metrics.closure.bins if entry.pt_low == 60 and entry.pt_high is None
    ]
    assert all(isinstance(entry, ClosureBin) for entry in whole)
    row = summary([ComparedRun(name="run", metrics=metrics)]).rows[0]
    assert row[6:8] == [entry.model.percent(100, 2) for entry in whole]


def test_no_more_runs_are_compared_than_there_are_letters():
    assert compare.MOST_RUNS <= 26


def test_bins_that_a_run_lacks_are_named_below_its_figure(metrics):
    few = [curve for curve in metrics.curves if curve.region == "barrel"][1:]
    assert few
    first = next(curve.pt_range for curve in metrics.curves if curve.region == "barrel")
    runs = [
        ComparedRun(name="pfn-00000001", metrics=metrics),
        ComparedRun(name="pfn-00000002", metrics=dataclasses.replace(metrics, curves=few)),
    ]
    gain = next(curve for curve in comparison_page.drawings(runs) if curve.name == "gain")
    assert f"B in the barrel at {first} GeV; B in the endcap." in gain.caption
    assert "A in" not in gain.caption
