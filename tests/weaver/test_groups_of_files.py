"""The groups of test data that `name:` and `name%N:` make, also of distant files."""

from __future__ import annotations

import pytest

from common import storage
from common.errors import InputError
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset, prepared_folder
from weaver.predict import test_groups as groups_of

NAMES = ["a b.root", "c, d.root", "e [1].root"]


def put_files(base, tmp_path):
    for seed, name in enumerate(NAMES):
        write_jets(tmp_path / "local" / name, synthetic_jets(50 + seed, seed), basket=50)
        storage.upload(tmp_path / "local" / name, f"{base}/{name}")


@pytest.mark.parametrize("where", ["disk", "s3", "xrootd"])
def test_split_names_group_files_with_blanks_from_disk_s3_and_xrootd(where, request, tmp_path):
    if where == "disk":
        base = str(tmp_path / "data")
    elif where == "s3":
        base = f"{request.getfixturevalue('s3_bucket')}/jets"
    else:
        base = f"{request.getfixturevalue('xrootd_server').uri}/{tmp_path.name}"
    put_files(base, tmp_path)
    groups = groups_of([f"two%2:{base}/*.root", f"all:{base}/*.root"])
    assert list(groups) == ["all", "two_0", "two_1"]
    assert groups["all"] == [f"{base}/*.root"]
    file_names = [
        [storage.name(entry.uri) for entry in groups[name]] for name in ("two_0", "two_1")
    ]
    assert file_names == [NAMES[:2], NAMES[2:]]
    config = DataConfig.load(str(DATA / "jec_pfn_open.yaml"))
    sizes = []
    for name in ("two_0", "two_1"):
        assert prepared_folder(groups[name]) == ""
        dataset = Dataset.open(
            groups[name], config, for_training=False, cache_dir=str(tmp_path / "cache")
        )
        sizes.append(dataset.description["num_read"])
    assert sizes == [101, 52]


def test_a_split_name_without_files_is_refused(tmp_path):
    with pytest.raises(InputError, match="no ROOT file matches"):
        groups_of([f"x%1:{tmp_path}/*.root"])
