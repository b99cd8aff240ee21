"""The records of a run: files of earlier versions are loaded, and invalid ones are refused."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from common.config import RunConfig, with_types
from common.errors import InputError
from common.measurements import Interval
from common.records import (
    EpochRecord,
    ExportRecord,
    MetricsRecord,
    RunRecord,
    SearchRecord,
    ServiceRecord,
    TrialOptions,
    find_history,
)
from common.run import Run
from tests.records import metrics_record

ARCHIVE = Path(__file__).parents[1] / "earlier_runs" / "5949c5d.tar.xz"
NAME = "pfn-regressor-open-d7106cc4"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The folder of a run from before files had a format."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            if f"/{NAME}/" in member.name and member.name.endswith(".json"):
                archive.extract(member, folder, filter="data")
    return folder / "runs" / NAME


@pytest.mark.parametrize(
    ("form", "path"),
    [
        (MetricsRecord, "metrics.json"),
        (SearchRecord, "search.json"),
        (ServiceRecord, "service.json"),
        (TrialOptions, f"trials/{NAME}-000/options.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_file_without_a_format_is_loaded_and_saved_unchanged(earlier, form, path):
    content = json.loads((earlier / path).read_text())
    assert form.load(str(earlier / path)).as_json() == {"format": 1, **content}


def test_an_earlier_run_and_its_trials_are_loaded(earlier):
    content = json.loads((earlier / "run.json").read_text())
    run = Run.load(str(earlier))
    assert run.id == NAME
    assert run.record.data["test"].jets == content["data"]["test"]["jets"]
    assert run.record.shared_jets == content["shared_jets"]
    first, last = find_history(str(earlier / f"trials/{NAME}-000/history.json"))
    assert (first.epoch, last.epoch) == (0, 1)
    assert last.val_loss < first.val_loss
    assert ExportRecord.load(str(earlier / "model/export.json")).raw.model.endswith("-raw")


def test_run_json_has_the_run_id_record_and_configuration(earlier, tmp_path):
    content = json.loads((earlier / "run.json").read_text())
    run = Run.load(str(earlier))
    Run(config=run.config.replace(s3_bucket=str(tmp_path)), record=run.record).save()
    again = json.loads((tmp_path / NAME / "run.json").read_text())
    assert again.pop("format") == 1
    config = with_types(content.pop("config"))
    assert config.pop("webhook") == "none"  # of earlier versions
    now = RunConfig().parameters()  # with the parameters that have come since
    assert again.pop("config") == {**now, **config, "s3_bucket": str(tmp_path)}
    since = RunRecord().as_json()  # the fields that have come since are empty
    assert again == {**{name: since[name] for name in since if name != "format"}, **content}


def test_a_trial_without_history_has_no_epochs(tmp_path):
    assert find_history(str(tmp_path / "history.json")) == []


def test_a_loss_of_null_is_no_loss(tmp_path):
    place = tmp_path / "history.json"
    place.write_text('[{"epoch": 0, "train_loss": null, "metrics": {}}]')
    assert find_history(str(place)) == [EpochRecord(epoch=0)]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"format": 2}, ["format 2"]),
        ({"num_jets": "many"}, ["MetricsRecord", "num_jets"]),
        ({"gain": {"value": 1.0, "low": 0.5}}, ["MetricsRecord", "gain", "high"]),
        ({"gain": {"value": 10**400, "low": 0.5, "high": 1}}, ["MetricsRecord", "gain", "value"]),
    ],
    ids=["a later form", "no number", "half an interval", "more than a float holds"],
)
def test_an_invalid_record_is_refused_with_its_file_and_field(content, facts):
    with pytest.raises(InputError) as refusal:
        MetricsRecord.from_json({**metrics_record().as_json(), **content}, "runs/x/metrics.json")
    for fact in ["runs/x/metrics.json", *facts]:
        assert fact in str(refusal.value)


def test_a_history_that_is_no_list_of_epochs_is_refused(tmp_path):
    place = tmp_path / "history.json"
    place.write_text('[{"train_loss": 1.0}]')
    with pytest.raises(InputError, match="epoch"):
        find_history(str(place))


def test_an_interval_is_formatted_with_its_bounds():
    gain = Interval(value=0.041, low=0.032, high=0.05)
    assert gain.percent(100) == "+4.1 % [3.2, 5.0]"
    assert gain.percent(100, 0, sign="") == "4 % [3, 5]"
    assert gain.text(digits=3) == "+0.041 [0.032, 0.050]"


def test_the_webhook_of_an_earlier_run_is_not_loaded_or_saved(earlier):
    """Earlier versions kept the URL, which is a secret, in run.json."""
    content = json.loads((earlier / "run.json").read_text())
    content["config"]["webhook"] = "https://hooks.example.org/canary-7f3a"
    (earlier / "run.json").write_text(json.dumps(content))
    run = Run.load(str(earlier))
    assert "canary" not in repr(run)
    run.save()
    assert "canary" not in (earlier / "run.json").read_text()
