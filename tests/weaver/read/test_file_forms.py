"""Files of every form that weaver-core 0.5.3 reads are read correctly; unusable files are left out
with --skip-bad-files, and are otherwise all listed in one error.
"""

from __future__ import annotations

import struct
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import uproot

from common import storage
from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Batch, Dataset
from weaver.onnx import raw_jets
from weaver.prepared.prepare import prepare
from weaver.read.files import DamagedFile
from weaver.read.opening import unreadable

X = np.linspace(0, 1, 12, dtype="f4")
LISTS = ak.values_astype(ak.Array([[1, 2], [], [3]] * 4), "float32")


def config(treename: str | None = "jets", **sections) -> DataConfig:
    inputs = {
        "seq": {"length": 3, "vars": ["lists"]},
        "flat": {"length": None, "vars": ["x"]},
    }
    labels = {"type": "custom", "value": {"t": "x"}}
    options = {"treename": treename, "inputs": inputs, "labels": labels}
    return DataConfig.from_options({**options, **sections}, "c.yaml")


def all_jets(files, folder, ours: DataConfig | None = None, **options) -> Batch:
    lines = options.setdefault("report", lambda line: None)
    assert callable(lines)
    ref = prepare(files, ours or config(), str(folder), for_training=True, step_bytes=60, **options)
    dataset = Dataset.open(ref.uri, ref.data_config)
    return dataset.batch(np.arange(len(dataset)))


def tree(path: Path, name: str = "jets", **columns) -> Path:
    columns = {"x": X, "lists": LISTS, **columns}
    with uproot.recreate(path) as file:
        types = {}
        for column, values in columns.items():
            types[column] = values.dtype if isinstance(values, np.ndarray) else values.type.content
        file.mktree(name, types).extend(columns)
    return path


def never_closed(path: Path) -> Path:
    """A file whose directory is still empty, as after a kill of the job that wrote it."""
    content = bytearray(tree(path).read_bytes())
    begin, name_length = (
        struct.unpack_from(">i", content, 8)[0],
        struct.unpack_from(">i", content, 28),
    )
    directory = begin + name_length[0] + 10
    struct.pack_into(">i", content, directory, 0)  # bytes of the list of keys
    struct.pack_into(">i", content, directory + 16, 0)  # and where it lies
    path.write_bytes(content)
    return path


def no_tree(path: Path) -> Path:
    with uproot.recreate(path) as file:
        file["note"] = "no jets"
    return path


def is_right(batch: Batch) -> None:
    np.testing.assert_array_equal(batch.inputs["flat"], X)
    expected = np.array([[1, 2, 0], [0, 0, 0], [3, 0, 0]] * 4, "f4")
    np.testing.assert_array_equal(batch.inputs["seq"][:, 0], expected)


@pytest.mark.parametrize("treename", ["jets", None])
def test_an_rntuple_is_read_like_a_tree(tmp_path, treename):
    path = tmp_path / "a.root"
    record = ak.zip({"pt": LISTS, "q": ak.values_astype(LISTS, "int32")})
    with uproot.recreate(path) as file:
        file.mkrntuple("jets", {"x": X, "lists": LISTS, "part": record, "unused": X})
    ours = config(
        treename,
        inputs={
            "seq": {"length": 3, "vars": ["lists"]},
            "flat": {"length": None, "vars": ["x"]},
            "part": {"length": 2, "vars": ["pt", "q"]},
        },
        new_variables={"pt": "part.pt", "q": "part.q"},
    )
    batch = all_jets(str(path), tmp_path, ours)
    is_right(batch)
    np.testing.assert_array_equal(batch.inputs["part"][:3, 0], [[1, 2], [0, 0], [3, 0]])
    with pytest.raises(InputError, match=r"a\.root: unknown branch 'xx'; did you mean 'x'"):
        all_jets(
            str(path), tmp_path, config(treename, labels={"type": "custom", "value": {"t": "xx"}})
        )


def test_without_a_treename_a_tree_is_preferred_to_an_rntuple(tmp_path):
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mkrntuple("other", {"x": -X})
        file.mktree("jets", {"x": "f4", "lists": LISTS.type.content}).extend(
            {"x": X, "lists": LISTS}
        )
    is_right(all_jets(str(path), tmp_path, config(None)))


def test_hdf5_in_the_layout_of_weaver_core(tmp_path):
    tables = pytest.importorskip("tables")
    path = tmp_path / "a.h5"
    padded = np.array([[1, 2, 0], [0, 0, 0], [3, 0, 0]] * 4, "f4")
    with tables.open_file(str(path), "w") as file:
        filters = tables.Filters(complevel=4, complib="blosc")
        file.create_carray("/", "x", obj=X, filters=filters)
        file.create_carray("/", "lists", obj=padded, filters=filters)
        file.create_array("/", "text", obj=np.array([b"a"] * 12))
    is_right(all_jets(str(path), tmp_path))
    is_right(all_jets(str(path), tmp_path, config(selection="x >= 0")))
    with pytest.raises(InputError, match=r"array 'text' is not readable: \|S1"):
        all_jets(str(path), tmp_path, config(labels={"type": "custom", "value": {"t": "text"}}))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedFile, match=r"cannot read .*a\.h5 as a HDF5 file"):
        all_jets(str(path), tmp_path)


def test_hdf5_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tables", None)
    (tmp_path / "a.h5").write_bytes(b"\x89HDF")
    advice = r"a\.h5, install PyTables; type: pip install '\.\[hdf5\]'"
    with pytest.raises(InputError, match=advice):
        all_jets(str(tmp_path / "a.h5"), tmp_path)


def test_hdf5_on_s3_is_read_as_from_a_disk(tmp_path, s3_bucket):
    tables = pytest.importorskip("tables")
    path = tmp_path / "a.h5"
    with tables.open_file(str(path), "w") as file:
        file.create_array("/", "x", obj=X)
        file.create_array("/", "lists", obj=np.array([[1, 2, 0], [0, 0, 0], [3, 0, 0]] * 4, "f4"))
    storage.upload(path, f"{s3_bucket}/a.h5")
    is_right(all_jets(f"{s3_bucket}/a.h5", tmp_path))


@pytest.mark.parametrize(
    ("make", "reason"),
    {
        "never closed": (never_closed, "was never closed"),
        "without a tree": (no_tree, "contains no tree"),
        "another tree": (lambda path: tree(path, name="events"), "unknown tree 'jets'"),
    }.values(),
    ids=["never closed", "without a tree", "another tree"],
)
def test_skip_bad_files_leaves_out_files_without_the_tree(tmp_path, make, reason):
    good = tree(tmp_path / "good.root")
    make(tmp_path / "bad.root")
    files = f"{tmp_path}/*.root"
    with pytest.raises(DamagedFile, match=rf"bad\.root.*{reason}.*--skip-bad-files"):
        all_jets(files, tmp_path)
    lines: list[str] = []
    is_right(all_jets(files, tmp_path, skip_bad_files=True, report=lines.append))
    assert any("bad.root" in line and "is left out" in line and reason in line for line in lines)
    good.unlink()
    with pytest.raises(DamagedFile, match=reason):
        all_jets(files, tmp_path, skip_bad_files=True)


def test_all_files_that_cannot_be_used_are_listed_at_once(tmp_path):
    tree(tmp_path / "a.root")
    never_closed(tmp_path / "b.root")
    with uproot.recreate(tmp_path / "c.root") as file:
        file.mktree("jets", {"other": "f4"}).extend({"other": X})
    (tmp_path / "d.root").write_bytes(b"no jets")
    with pytest.raises(InputError) as error:
        all_jets(f"{tmp_path}/*.root", tmp_path)
    text = str(error.value)
    assert text.startswith("3 of 4 files cannot be used:")
    for part in ("b.root was never closed", "c.root: unknown branch", "d.root is not a ROOT file"):
        assert part in text
    # both branches that c.root lacks are named
    assert "'x'" in text
    assert "'lists'" in text


def test_an_unsupported_type_is_not_reported_as_damage(tmp_path):
    error = unreadable("a.root", NotImplementedError("RNTuple column type 99"))
    assert not isinstance(error, DamagedFile)
    assert "a.root is not readable: RNTuple column type 99" in str(error)
    assert "damaged" not in str(error)
    assert isinstance(unreadable("a.root", ValueError("zlib")), DamagedFile)
    path = tmp_path / "a.parquet"
    when = pa.array([0] * 12, pa.timestamp("s"))
    pyarrow.parquet.write_table(pa.table({"x": when, "lists": LISTS.to_list()}), path)
    with pytest.raises(InputError, match="column 'x' is not readable: timestamp") as error_info:
        all_jets(str(path), tmp_path, skip_bad_files=True)
    assert not isinstance(error_info.value, DamagedFile)


def test_each_list_of_an_rntuple_has_its_own_counter(tmp_path):
    """It stores no branch that counts, as a vector of a TTree."""
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mkrntuple("jets", {"x": X, "true": X + 1, "lists": LISTS})
    ours = config(labels={"type": "custom", "value": {"t": "np.log(true / x)"}})
    columns = raw_jets.raw_columns(storage.entries(str(path))[0], ours)
    assert columns["lists"].counter == "nlists"
    assert columns["x"].counter == ""
