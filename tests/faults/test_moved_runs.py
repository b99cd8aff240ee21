"""A folder of runs that was moved, or handed over, leads to its own prepared data."""

import shutil

import pytest

from common import storage
from common.errors import AccessError, InputError
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.fit.checkpoint import check_same
from weaver.prepared import columns
from weaver.prepared.columns import reference_to, resolve_reference
from weaver.prepared.prepare import prepare

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("data", "reference", "dataset"),
    [
        ("/a/runs/cache/k", "/a/runs/r-1/data/train.json", "../../cache/k"),
        ("s3://b/runs/cache/k", "s3://b/runs/r-1/data/train.json", "../../cache/k"),
        ("s3://b/cache/k", "s3://b/r-1/data/train.json", "s3://b/cache/k"),
        ("s3://other/runs/cache/k", "s3://b/runs/r-1/data/t.json", "s3://other/runs/cache/k"),
        ("/scratch/cache/k", "/a/runs/r-1/data/train.json", "/scratch/cache/k"),
        ("/a/other/cache/k", "/a/runs/r-1/data/train.json", "/a/other/cache/k"),
        ("root://s//a/cache/k", "root://s//a/r-1/data/train.json", "root://s//a/cache/k"),
    ],
)
def test_only_data_that_move_with_the_run_are_relative(data, reference, dataset, monkeypatch):
    monkeypatch.setattr(columns, "is_prepared", lambda uri: True)
    assert reference_to(data, reference) == {"dataset": dataset}
    assert resolve_reference(reference, dataset) == data


def test_a_run_is_used_whose_former_place_may_not_be_read(monkeypatch):
    def exists(uri):
        if uri.startswith("/home/alice/"):
            raise AccessError(f"cannot read {uri}: Permission denied")
        return uri == "/home/bob/runs/cache/k/dataset.json"

    monkeypatch.setattr(storage, "exists", exists)
    reference = "/home/bob/runs/r-1/data/train.json"
    assert resolve_reference(reference, "/home/alice/runs/cache/k") == "/home/bob/runs/cache/k"


@pytest.mark.parametrize("form", ["relative", "of an earlier version"])
@pytest.mark.parametrize("old_place", ["gone", "there"])
def test_a_moved_folder_of_runs_leads_to_its_data(tmp_path, form, old_place):
    old, new = tmp_path / "old", tmp_path / "new"
    write_jets(tmp_path / "a.root", synthetic_jets(50, 1))
    config = DataConfig.load("data/jec_pfn_open.yaml")
    dataset = prepare(
        f"{tmp_path}/a.root", config, str(old), for_training=True, report=lambda line: None
    )
    reference = old / "r-1" / "data" / "train.json"
    content = reference_to(dataset.uri, str(reference))
    if form != "relative":
        content = {"dataset": dataset.uri}
    storage.write_json(str(reference), content)
    assert len(Dataset.open(str(reference), config)) == dataset.num_jets

    (shutil.move if old_place == "gone" else shutil.copytree)(old, new)
    reference_of_moved_run = new / "r-1" / "data" / "train.json"
    assert len(Dataset.open(str(reference_of_moved_run), config)) == dataset.num_jets
    place = resolve_reference(
        str(reference_of_moved_run), storage.read_json(str(reference_of_moved_run))["dataset"]
    )
    own = form == "relative" or old_place == "gone"
    assert place == str((new if own else old) / "cache" / dataset.key)


@pytest.mark.parametrize(
    ("before", "now", "is_same"),
    [
        ("/old/r-1/data/train.json", "/new/place/r-1/data/train.json", True),
        ("/old/r-1/data/train.json", "s3://b/r-1/data/train.json", True),
        ("/old/r-1/data/train.json", "/new/r-2/data/train.json", False),
        ("/old/r-1/data/train.json", "/new/r-1/data/val.json", False),
        ("/old/train/*.root", "/new/train/*.root", False),
        ("/old/r-1/data/train.root", "/new/r-1/data/train.root", False),
    ],
)
def test_a_checkpoint_resumes_with_the_data_of_its_moved_run(before, now, is_same):
    settings = {"start_lr": 0.1, "data_val": "/x/val.json"}
    checkpoint_options, current = (
        {**settings, "data_train": before},
        {**settings, "data_train": now},
    )
    if is_same:
        check_same("checkpoint.pt", checkpoint_options, current)
    else:
        with pytest.raises(InputError, match="data_train"):
            check_same("checkpoint.pt", checkpoint_options, current)
    with pytest.raises(InputError, match=r"start_lr 0.1, now 0.2"):
        check_same(
            "checkpoint.pt", checkpoint_options, {**current, "data_train": before, "start_lr": 0.2}
        )
