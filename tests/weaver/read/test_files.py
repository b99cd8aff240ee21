"""Which tree, branch and path of a file are used, with both readers.

The first of two branches of one name, and paths as they were written, are what weaver-core 0.5.3
takes.
"""

from __future__ import annotations

import errno
import os
import struct

import awkward as ak
import numpy as np
import pytest
import uproot

from common.errors import AccessError, InputError, JecError, StorageError
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.prepared.prepare import prepare
from weaver.read import files as data_files
from weaver.read.opening import DamagedFile, choose_tree, unreadable


@pytest.fixture(params=["own", "uproot"])
def reader(request, monkeypatch) -> str:
    """With the reader of simple trees, and with uproot alone, as from S3."""
    if request.param == "uproot":
        monkeypatch.setattr(data_files, "_simple_tree", lambda *_: None)
    return request.param


def observer_values(patterns, folder, name: str = "x", **options) -> np.ndarray:
    """An observer of all jets of the files."""
    config = DataConfig.from_options(
        {
            "treename": "jets",
            "inputs": {"g": {"length": None, "vars": [["y", None], ["y_", None]]}},
            "new_variables": {"y_": "y + 0"},
            "labels": {"type": "custom", "value": {"t": "y"}},
            "observers": [name],
            **options,
        },
        "files.yaml",
    )
    ref = prepare(
        patterns, config, str(folder / "out"), for_training=False, report=lambda line: None
    )
    return np.asarray(Dataset.open(ref.uri, config).observers()[name])


def notes_of_preparing(patterns, folder) -> list[str]:
    """The lines that begin with note: when the files are prepared."""
    config = DataConfig.from_options(
        {
            "treename": "jets",
            "inputs": {"g": {"length": None, "vars": [["y", None]]}},
            "labels": {"type": "custom", "value": {"t": "y"}},
        },
        "files.yaml",
    )
    lines: list[str] = []
    prepare(patterns, config, str(folder / "out"), for_training=False, report=lines.append)
    return [line for line in lines if line.startswith("note:")]


def write_tree(path, **columns) -> None:
    """An uncompressed file, so that names can be changed in it."""
    count = len(next(iter(columns.values())))
    columns = {"y": np.zeros(count, "f4"), **columns}
    types = {}
    for name, values in columns.items():
        types[name] = values.type.content if isinstance(values, ak.Array) else values.dtype
    with uproot.recreate(path, compression=None) as file:
        file.mktree("jets", types).extend(columns)


def rename(path, old: bytes, new: bytes) -> None:
    """Give a branch another name of the same length."""
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize("kind", ["i4", "f8", "u8"], ids=["same type", "wider", "unsigned"])
def test_of_two_branches_with_one_name_the_first_is_read(tmp_path, reader, kind):
    path = tmp_path / "a.root"
    write_tree(path, x_first=np.full(6, 1, "i4"), x_other=np.full(6, 2, kind))
    rename(path, b"x_other", b"x_first")
    x = observer_values(str(path), tmp_path, "x_first")
    assert (x.tolist(), x.dtype) == ([1] * 6, np.int32)


def test_of_two_lists_with_one_name_the_first_is_read(tmp_path, reader):
    path = tmp_path / "a.root"
    lists = ak.Array([[1, 2], [], [3]])
    write_tree(path, x_first=lists, x_other=10 * lists)
    rename(path, b"x_other", b"x_first")
    total = observer_values(
        str(path), tmp_path, "total", new_variables={"y_": "y", "total": "ak.sum(x_first, axis=1)"}
    )
    assert total.tolist() == [3, 0, 3]


def set_cycle(path, number: int, cycle: int) -> None:
    """Give the tree of one cycle another one, stored in 16 bits, wherever a key has it."""
    content = bytearray(path.read_bytes())
    word = b"\x05TTree\x04jets"
    at = content.find(word)
    while at >= 0:
        for address in (4, 8):  # bytes of the two addresses in front of the class
            start = at - 2 * address - 18
            version, _, _, _, old_cycle = struct.unpack_from(">hiIhh", content, start + 4)
            if (version > 1000) == (address == 8) and old_cycle == number:
                struct.pack_into(">H", content, start + 16, cycle)
        at = content.find(word, at + 1)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("cycles", "newest"),
    [
        ((32767, 32768), 2),
        ((32768, 32767), 1),
        ((40000, 65535), 2),
        ((1, 32768), 2),
        ((1, 2), 2),
        ((32768,), 1),
        ((65535,), 1),
    ],
    ids=str,
)
def test_the_newest_cycle_is_read_also_beyond_32767(tmp_path, reader, cycles, newest):
    path = tmp_path / "a.root"
    write_tree(path, x=np.full(3, 1, "i4"))
    if len(cycles) > 1:
        with uproot.update(path) as file:
            columns = {"y": np.zeros(4, "f4"), "x": np.full(4, 2, "i4")}
            file.mktree("jets", {name: v.dtype for name, v in columns.items()}).extend(columns)
    for number in range(len(cycles), 0, -1):
        set_cycle(path, number, cycles[number - 1])
    assert observer_values(str(path), tmp_path).tolist() == [newest] * {1: 3, 2: 4}[newest]


def test_a_cycle_may_be_given_unsigned_or_as_stored():
    keys = ["jets;32767", "jets;-32768", "dir/jets;1"]
    assert choose_tree("a.root", keys, "jets") == "jets;-32768"
    assert choose_tree("a.root", keys, "jets;32768") == "jets;-32768"
    assert choose_tree("a.root", keys, "jets;-32768") == "jets;-32768"
    assert choose_tree("a.root", keys, "jets;32767") == "jets;32767"
    with pytest.raises(InputError, match=r"jets;5"):
        choose_tree("a.root", keys, "jets;5")


MAGIC = {"proc": {"QCD": 1, "TT": 2}}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.root", [1, 2]),
        ("./*.root", [1, 2]),
        ("QCD_1.root TT_1.root", [1, 2]),
        ("sample:*.root", [1, 2]),
        ("../QCD_study/*.root", [1, 1]),
        ("{here}/*.root", [1, 1]),
        ("{here}", [1, 1]),
        ("../QCD_*/TT*.root", [1]),
        (".", [1, 2]),
    ],
)
def test_file_magic_matches_the_path_as_the_user_wrote_it(tmp_path, monkeypatch, pattern, expected):
    here = tmp_path / "QCD_study"
    here.mkdir()
    for name in ("QCD_1.root", "TT_1.root"):
        write_tree(here / name, x=np.zeros(3, "i4"))
    monkeypatch.chdir(here)
    values = observer_values(
        pattern.format(here=here), tmp_path / "elsewhere", "proc", file_magic=MAGIC
    )
    assert values.tolist() == np.repeat(expected, 3).tolist()


def test_data_are_prepared_again_if_file_magic_matches_another_path(tmp_path, monkeypatch):
    here = tmp_path / "QCD_study"
    here.mkdir()
    write_tree(here / "TT_1.root", x=np.zeros(3, "i4"))
    monkeypatch.chdir(here)
    out = tmp_path / "elsewhere"
    assert set(observer_values("*.root", out, "proc", file_magic=MAGIC)) == {2}
    assert set(observer_values(f"{here}/*.root", out, "proc", file_magic=MAGIC)) == {1}
    assert set(observer_values("*.root", out, "proc", file_magic=MAGIC)) == {2}
    assert len(os.listdir(out / "out" / "cache")) == 2


@pytest.mark.parametrize("suffix", [".root", ".parquet"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, AccessError),
        (errno.EPERM, AccessError),
        (errno.ENOENT, InputError),
        (errno.EIO, StorageError),
        (errno.ESTALE, StorageError),
        (errno.ENOTCONN, StorageError),
        (errno.EMFILE, StorageError),
    ],
)
def test_an_error_of_the_disk_is_not_reported_as_a_damaged_file(suffix, number, kind):
    os_error = OSError(number, os.strerror(number))
    wrapped = ValueError("cannot read")
    wrapped.__cause__ = os_error
    connection_error = ValueError("cannot read")
    connection_error.__cause__ = StorageError("the server is gone")
    for error in (os_error, wrapped):
        result = unreadable(f"/data/a{suffix}", error)
        assert type(result) is kind
        assert f"/data/a{suffix}" in str(result)
    assert unreadable(f"/data/a{suffix}", connection_error) is connection_error.__cause__
    # pyarrow's error for what it cannot decode
    assert type(unreadable("/data/a.parquet", OSError("no thrift"))) is DamagedFile


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_skip_bad_files_does_not_skip_files_on_a_failing_disk(
    tmp_path, monkeypatch, reader, number
):
    write_tree(tmp_path / "a.root", x=np.array([1.0, 2.0]))
    write_tree(tmp_path / "b.root", x=np.array([3.0]))
    config = DataConfig.from_options(
        {
            "treename": "jets",
            "inputs": {"g": {"length": None, "vars": [["x", None]]}},
            "labels": {"type": "custom", "value": {"t": "x"}},
        },
        "files.yaml",
    )
    really_open = os.open

    def refuse(path, *rest, **options):
        if os.fspath(path).endswith("b.root"):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return really_open(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JecError) as error:
        prepare(
            str(tmp_path / "*.root"),
            config,
            str(tmp_path / "out"),
            for_training=False,
            skip_bad_files=True,
            report=lambda line: None,
        )
    assert not isinstance(error.value, InputError)
    assert error.value.retryable
    assert "b.root" in str(error.value)
    assert os.strerror(number) in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_that_match_twice_and_links_are_counted(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.root").write_bytes(b"root")
    (tmp_path / "d.root").symlink_to("a.root")
    messages = []

    entries = data_files.find(
        [f"{tmp_path}/a.root", f"{tmp_path}/*.root", f"{tmp_path}/b.root"], messages.append
    )
    assert [os.path.basename(entry.uri) for entry in entries] == [
        "a.root",
        "b.root",
        "c.root",
        "d.root",
    ]
    (text,) = messages
    assert "2 of 4 files match more than one pattern" in text
    assert "1 of 4 files are links" in text
    assert f"{tmp_path}/d.root" in text

    messages.clear()
    data_files.find([f"{tmp_path}/a.root", f"{tmp_path}/b.root"], messages.append)
    assert messages == []


def test_files_that_only_uproot_reads_are_one_line(tmp_path):
    for name in ("a", "b"):
        with uproot.recreate(tmp_path / f"{name}.root") as file:
            file.mkrntuple("jets", {"y": np.arange(5.0, dtype="f4")})
    write_tree(tmp_path / "simple.root", y=np.zeros(5, "f4"))
    (note,) = notes_of_preparing(str(tmp_path / "*.root"), tmp_path)
    assert "2 of 3 ROOT files" in note
    assert f"{tmp_path}/a.root, {tmp_path}/b.root" in note
    assert "simple.root" not in note


def test_a_failure_of_our_decoder_is_one_line_with_its_reason(tmp_path, monkeypatch):
    for name in ("a", "b"):
        write_tree(tmp_path / f"{name}.root", y=np.arange(5, dtype="f4"))

    def fail(*_):
        raise ValueError("a basket of another kind")

    monkeypatch.setattr(data_files.baskets, "columns", fail)
    (note,) = notes_of_preparing(str(tmp_path / "*.root"), tmp_path)
    assert "a basket of another kind" in note
    assert f"{tmp_path}/a.root, {tmp_path}/b.root" in note


def test_simple_files_need_no_note(tmp_path):
    write_tree(tmp_path / "a.root", y=np.zeros(5, "f4"))
    assert notes_of_preparing(str(tmp_path / "a.root"), tmp_path) == []
