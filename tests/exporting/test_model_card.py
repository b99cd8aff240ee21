"""Each exported model has a card: written by the export, completed by the evaluation, beside the
model repository and not in it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from common.layout import RunFolder
from common.records import ExportRecord, ModelCard
from reporting.model_card import complete_card
from serving.serve import models_at
from tests.exporting.test_export import make_run, run_export
from tests.records import metrics_record
from tests.weaver.conftest import synthetic_jets, write_jets

RAW = ("--raw-model", "required", "--max-batch-size", "8")


@pytest.fixture(scope="module")
def exported_run(tmp_path_factory) -> Path:
    files = tmp_path_factory.mktemp("jets")
    write_jets(files / "val.root", synthetic_jets(150, 1))
    folder = tmp_path_factory.mktemp("runs")
    run = make_run(str(folder), files)
    own = folder / "own.yaml"
    own.write_text("era: '2018'\ncampaign: UL\njet type: AK4 PF CHS\nJEC version: V5\n")
    assert run_export(run, more=(*RAW, "--card", str(own))) == 0
    return Path(run)


def test_the_card_has_the_user_s_values_and_the_models_provenance(exported_run):
    card = ModelCard.load(str(exported_run / "model_card.json"))
    record = ExportRecord.load(str(exported_run / "model" / "export.json"))
    assert card.models == ["small", "small-raw"]
    assert card.trained_on == {
        "era": "2018",
        "campaign": "UL",
        "jet type": "AK4 PF CHS",
        "JEC version": "V5",
    }
    assert (card.git_commit, card.data_fingerprint) == ("c0ffee", "f00d")
    assert card.version[0].isdigit()
    assert card.valid_range == record.valid_range
    assert card.limits
    assert (card.performance, card.gate) == ({}, "")
    text = (exported_run / "model_card.md").read_text()
    for word in ("AK4 PF CHS", "c0ffee", "f00d", f"{record.valid_range.max_pt:g} GeV", "2.5"):
        assert word in text


def test_the_card_is_outside_the_model_repository(exported_run):
    """Triton and kserve's server treat each folder of the repository as a model."""
    assert sorted(path.name for path in (exported_run / "model").iterdir()) == [
        "export.json",
        "small",
        "small-raw",
    ]


def test_the_server_knows_the_address_of_the_card(exported_run):
    assert {model.card for model in models_at(str(exported_run))} == {
        str(exported_run / "model_card.md")
    }
    assert {model.card for model in models_at(str(exported_run / "model"))} == {
        str(exported_run / "model_card.md")
    }


def test_the_evaluation_adds_performance_and_gate_to_the_card(exported_run):
    metrics = metrics_record(model="small")
    complete_card(RunFolder(str(exported_run)), metrics)
    card = ModelCard.load(str(exported_run / "model_card.json"))
    assert card.trained_on["era"] == "2018"
    assert metrics.gain.percent() in card.performance.values()
    assert card.gate == "passed"
    text = (exported_run / "model_card.md").read_text()
    assert metrics.gain.percent() in text

    other = metrics_record(model="another")
    complete_card(RunFolder(str(exported_run)), other)
    assert ModelCard.load(str(exported_run / "model_card.json")) == card
