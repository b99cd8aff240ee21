"""The report's sections on trees, pile-up, tails, shuffled inputs and fine bins of eta."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest

from common.measurements import Importances, InputImportance, Trees
from common.records import MetricsRecord
from physics.groups import PILEUP_SLICES
from physics.metrics import record_of, sample_of
from physics.pileup import against_pileup
from physics.tails import tails
from reporting import baselines_section, details_figures, details_section, report_physics
from reporting.drawing import draw_all
from reporting.report import render
from tests.physics.jets import make_jets, target_of

TREES = Trees(
    columns=["jetPt", "jetEta"],
    missing=["fractionPhoton"],
    num_training_jets=12_345,
    num_trees=67,
    seconds=3.4,
    scikit_learn="1.9.1",
)
IMPORTANCES = Importances(
    num_jets=1000,
    gain=12.0,
    groups=[
        InputImportance(
            name="pf (particles)", inputs=["pf_features", "pf_mask"], gain_lost=[9, 11]
        ),
        InputImportance(name="jet_features", inputs=["jet_features"], gain_lost=[2, 2]),
    ],
)


@pytest.fixture(scope="module")
def metrics(documents) -> MetricsRecord:
    jets = make_jets(9000)
    sample = sample_of(
        jets,
        0.1 * target_of(jets),
        trees=0.05 * target_of(jets),
        pileup=jets["partonFlav"] * 0 + jets["jetPt"] % 40,
        replicates=30,
    )
    content = {
        **documents.metrics.as_json(),
        **record_of(sample),
        "tails": tails(sample),
        "pileup": {"column": "rhoAll", "slices": against_pileup(sample)},
    }
    record = MetricsRecord.from_json(content)
    return dataclasses.replace(record, trees=TREES, importances=IMPORTANCES)


def test_a_record_survives_its_json_form(metrics):
    assert MetricsRecord.from_json(metrics.as_json()) == metrics


def test_every_calibration_has_a_column_and_the_gain_over_it(metrics):
    section = baselines_section.content(metrics)
    table = section.bins
    assert table.head[3:] == [
        "Resolution, standard JEC",
        "Resolution, boosted trees",
        "Resolution, this model",
        "Gain over standard JEC",
        "Gain over boosted trees",
    ]
    last = metrics.bins[-1]
    assert table.rows[-1][-2:] == [last.gain.percent(), last.gain_over_trees.percent()]
    assert (section.columns, section.missing) == ("jetPt, jetEta", "fractionPhoton")
    assert "12,345" in section.trees
    tiles = {tile_.what: tile_ for tile_ in report_physics.tiles(metrics)}
    tile = tiles["Resolution gain over boosted trees"]
    assert f"{tile.number} {tile.interval}" == metrics.gain_over_trees.percent()


def test_without_trees_the_section_shows_the_reason(documents):
    bare = dataclasses.replace(documents.metrics, trees=Trees(reason="420 training jets are few"))
    section = baselines_section.content(bare)
    assert "420 training jets are few" in section.trees
    assert section.columns == ""
    assert "Gain over boosted trees" not in section.bins.head


def test_tables_show_the_measured_values(metrics):
    section = details_section.content(metrics)
    assert section.pileup_column == "rhoAll"
    assert len(section.pileup.rows) == 2 * PILEUP_SLICES
    assert section.pileup.rows[0][-1] == metrics.pileup.slices[0].gain.percent()
    assert len(section.tails.rows) == 6  # two tails in barrel, endcap and all
    assert len(section.tails.rows) + len(section.tail_bins.rows) == len(metrics.tails)
    assert section.inputs.rows[0][-1] == "10.0 ± 1.4"
    assert section.inputs.rows[1][-1] == "2.0 ± 0.0"
    assert len(section.fine_eta.rows) == len(metrics.fine_eta)


def test_bins_with_too_few_jets_are_counted(metrics):
    few = dataclasses.replace(metrics, fine_eta=metrics.fine_eta[:40])
    assert details_section.content(few).too_few.startswith("12 of 52 bins")


def test_the_figures_describe_their_content(metrics):
    ranges = details_figures.PILEUP_RANGES
    pileup = [details_figures.pileup(metrics, range_) for range_ in ranges]
    assert [range_.name for range_ in pileup] == ["pileup-60", "pileup-110"]
    assert "rhoAll" in pileup[0].alt
    assert "pf (particles) 10.0 ± 1.4" in details_figures.inputs(metrics).alt
    assert f"{len(metrics.fine_eta)} fine bins" in details_figures.fine_eta(metrics).alt


def test_the_page_has_all_sections(metrics, documents):
    with_details = dataclasses.replace(documents, metrics=metrics)
    makers = [
        partial(details_figures.pileup, metrics, range_) for range_ in details_figures.PILEUP_RANGES
    ]
    makers += [partial(details_figures.fine_eta, metrics), partial(details_figures.inputs, metrics)]
    page = render(with_details, list(draw_all(makers)))
    for heading in ("Beside simpler methods", "Pile-up", "Tails", "What the model uses"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<svg") == 4


def test_a_run_of_an_earlier_version_has_no_sections_of_details(documents):
    page = render(documents, [])
    assert documents.metrics.trees is None
    assert "<h2>Tails</h2>" not in page
    assert "<h2>Beside simpler methods</h2>" in page
