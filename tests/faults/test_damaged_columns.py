"""Prepared data with a wrong byte is prepared again; a file that changes meanwhile is refused."""

import json
import random

import numpy as np
import pytest

from common import storage
from common.errors import InputError, StorageError
from components.prepare import is_whole
from weaver.prepared import columns, prepare
from weaver.prepared.decoding import Decoding

pytestmark = pytest.mark.faults

YAML = """\
treename: t
selection: null
inputs:
  scalars:
    length: null
    vars:
      - [a, null]
      - [b, null]
labels:
  type: custom
  value:
    target: a + b
observers:
  - b
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    from weaver.config.data_config import DataConfig

    path = tmp_path_factory.mktemp("config") / "d.yaml"
    path.write_text(YAML)
    return DataConfig.load(str(path))


def write(path, start):
    import uproot

    values = np.arange(start, start + 500, dtype=np.float32)
    with uproot.recreate(path) as file:
        file["t"] = {"a": values, "b": values / 3}


@pytest.fixture
def root_file(tmp_path):
    path = tmp_path / "jets.root"
    write(path, 0)
    return path


@pytest.fixture
def run_prepare(root_file, config, tmp_path):
    """Prepares the file, or finds it prepared; gives the reference and the lines."""

    def run():
        lines = []
        reference = prepare.prepare(
            str(root_file), config, str(tmp_path), for_training=True, report=lines.append
        )
        return reference, lines

    return run


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x20
    path.write_bytes(content)


def content_of(uri):
    return {entry.uri: storage.read_bytes(entry.uri) for entry in storage.entries(uri)}


def test_each_wrong_byte_of_a_column_has_the_set_prepared_again(run_prepare):
    reference, _ = run_prepare()
    whole = content_of(reference.uri)
    draw = random.Random(3)
    for path in sorted(uri for uri in whole if uri.endswith(".npy")):
        flip(columns.Path(path), draw.randrange(columns.HEADER, len(whole[path])))
        assert not is_whole(reference.uri)
        again, lines = run_prepare()
        assert not again.reused
        assert any(storage.name(path) in line for line in lines)
        assert content_of(reference.uri) == whole
    assert is_whole(reference.uri)
    assert run_prepare()[0].reused


@pytest.mark.parametrize("wrong", ["", "garbage", "[]", "{}", '{"columns": 3}'])
def test_a_garbage_description_has_the_set_prepared_again(run_prepare, wrong):
    reference, _ = run_prepare()
    path = columns.Path(reference.uri, "dataset.json")
    whole = path.read_text()
    path.write_text(wrong)
    assert not is_whole(reference.uri)
    assert not run_prepare()[0].reused
    assert path.read_text() == whole


def test_a_wrong_number_in_the_description_is_noticed(run_prepare):
    reference, _ = run_prepare()
    path = columns.Path(reference.uri, "dataset.json")
    content = json.loads(path.read_text())
    content["num_jets"] -= 1
    path.write_text(json.dumps(content))
    assert not run_prepare()[0].reused


def test_a_short_and_a_missing_column_are_noticed(run_prepare):
    reference, _ = run_prepare()
    path = columns.Path(reference.uri, "label.target.npy")
    path.write_bytes(path.read_bytes()[:-4])
    assert "label.target.npy" in columns.damage(path.parent)
    path.unlink()
    assert "label.target.npy" in columns.damage(path.parent)


def test_data_of_an_earlier_version_without_checksums_is_used(run_prepare):
    reference, _ = run_prepare()
    path = columns.Path(reference.uri, "dataset.json")
    content = json.loads(path.read_text())
    del content["sha256"]
    for entry in columns._entries(content):
        entry.pop("crc32", None)
    path.write_text(json.dumps(content))
    assert run_prepare()[0].reused


def test_a_copy_of_damaged_data_is_refused_and_not_kept(run_prepare, tmp_path):
    reference, _ = run_prepare()
    flip(columns.Path(reference.uri, "scalars.npy"), 500)
    cache = tmp_path / "node"
    with pytest.raises(StorageError, match=r"scalars\.npy"):
        columns.local_copy(reference.uri, cache, always=True)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_a_file_that_is_replaced_while_it_is_prepared_is_refused(
    run_prepare, root_file, tmp_path, monkeypatch
):
    decode = Decoding.run

    def replaced_meanwhile(self, folder):
        description = decode(self, folder)
        write(root_file, 7)
        return description

    monkeypatch.setattr(Decoding, "run", replaced_meanwhile)
    with pytest.raises(InputError, match=r"jets\.root changed"):
        run_prepare()
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert run_prepare()[0].num_jets == 500


def test_a_file_that_vanishes_while_it_is_prepared_is_refused(run_prepare, root_file, monkeypatch):
    decode = Decoding.run

    def removed_meanwhile(self, folder):
        description = decode(self, folder)
        root_file.unlink()
        return description

    monkeypatch.setattr(Decoding, "run", removed_meanwhile)
    with pytest.raises(InputError, match=r"jets\.root"):
        run_prepare()
