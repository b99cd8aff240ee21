"""A column has the common type of all files, in any order: numbers neither wrap nor round.

The expected values are those of weaver-core 0.5.3, which joins the files before it computes; where
it rounds (64-bit numbers beside others), ours are exact or refused.
"""

from __future__ import annotations

import itertools

import awkward as ak
import numpy as np
import pytest
import uproot

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.prepared import columns as columns_module
from weaver.prepared.columns import HEADER, NpyWriter
from weaver.prepared.prepare import prepare
from weaver.read import files as data_files

JETS = 5
LARGE = 2**33 + np.arange(JETS)  # beyond 32 bits
FRACTIONS = np.arange(JETS) + 0.5


def write(path, suffix: str = ".root", **columns) -> None:
    """A file of one tree or table with x, y and these columns."""
    columns = {"x": np.arange(JETS, dtype="f4"), "y": np.arange(JETS, dtype="f4"), **columns}
    path = path.with_suffix(suffix)
    if suffix == ".parquet":
        ak.to_parquet(ak.Array(columns), path)
        return
    types = {}
    for name, values in columns.items():
        is_list = isinstance(values, ak.Array)
        types[name] = values.type.content if is_list else values.dtype
    with uproot.recreate(path) as file:
        file.mktree("jets", types).extend(columns)


def open_prepared(folder, *, test: bool = True, **options) -> Dataset:
    """All files of a folder, prepared as options say."""
    config = DataConfig.from_options(
        {
            "treename": "jets",
            "inputs": {"g": {"length": None, "vars": [["x", None], ["y", None]]}},
            "labels": {"type": "custom", "value": {"t": "y"}},
            **options,
        },
        "types.yaml",
    )
    ref = prepare(
        f"{folder}/*.*",
        config,
        str(folder / "out"),
        for_training=not test,
        report=lambda line: None,
    )
    return Dataset.open(ref.uri, ref.data_config)


ORDERS = pytest.mark.parametrize("order", [("1", "2"), ("2", "1")], ids=["first", "last"])


@ORDERS
@pytest.mark.parametrize("suffix", [".root", ".parquet"])
@pytest.mark.parametrize("reader", ["own", "uproot"])
@pytest.mark.parametrize(
    ("narrow", "wide", "dtype"),
    [
        (np.arange(JETS, dtype="i4"), LARGE, "i8"),
        (np.arange(JETS, dtype="i4"), FRACTIONS.astype("f4"), "f8"),
        (np.arange(JETS, dtype="i8"), FRACTIONS.astype("f4"), "f8"),
        (np.arange(JETS, dtype="u4"), -LARGE, "i8"),
        (np.arange(JETS, dtype="u8"), -LARGE, "i8"),
        (FRACTIONS.astype("f4"), FRACTIONS / 3, "f8"),
        (np.arange(JETS) % 2 == 0, np.arange(JETS, dtype="i4"), "i4"),
    ],
    ids=["int", "float", "long", "unsigned", "long unsigned", "double", "bool"],
)
def test_an_observer_has_the_common_type(
    tmp_path, monkeypatch, order, suffix, reader, narrow, wide, dtype
):
    if reader == "uproot":
        monkeypatch.setattr(data_files, "_simple_tree", lambda *_: None)
    for name, values in zip(order, (narrow, wide), strict=True):
        write(tmp_path / name, suffix, z=values)
    z = open_prepared(tmp_path, observers=["z"]).observers()["z"]
    assert z.dtype == dtype
    joined = np.concatenate([narrow.astype(dtype), wide.astype(dtype)])
    np.testing.assert_array_equal(np.sort(z), np.sort(joined))


@ORDERS
def test_labels_weights_and_selections_are_computed_in_the_common_type(tmp_path, order):
    """In 32 bits the products wrap."""
    for name, values in zip(order, (np.full(JETS, 2**20, "i4"), LARGE), strict=True):
        write(tmp_path / name, event=values)
    dataset = open_prepared(
        tmp_path,
        test=False,
        selection="event * 4096 > 0",
        labels={"type": "custom", "value": {"t": "event * 4096"}},
        weights={"use_precomputed_weights": True, "weight_branches": ["event"], "use_as": "loss"},
    )
    labels = np.asarray(dataset.label("t"))
    assert labels.dtype == np.int64
    expected = np.sort(np.concatenate([np.full(JETS, 2**32), LARGE * 4096]))
    np.testing.assert_array_equal(np.sort(labels), expected)
    batch = dataset.batch(np.arange(2 * JETS))
    np.testing.assert_array_equal(np.sort(batch.labels["t"].numpy()), expected)
    np.testing.assert_array_equal(np.sort(dataset.weights()), np.float32(expected / 4096))


@ORDERS
def test_lists_and_expressions_of_them_have_the_common_type(tmp_path, order):
    counts = np.array([2, 0, 1, 3, 1])
    for name, dtype in zip(order, ("i4", "i8"), strict=True):
        large = 2**33 if dtype == "i8" else 0
        content = np.arange(counts.sum(), dtype=dtype) + large
        write(tmp_path / name, ids=ak.unflatten(content, counts))
    dataset = open_prepared(
        tmp_path,
        new_variables={"largest": "ak.fill_none(ak.max(ids * 2, axis=1), 0)"},
        observers=["largest"],
    )
    largest = np.array([1, 0, 2, 5, 6])
    expected = np.concatenate([largest * 2, np.where(counts > 0, largest * 2 + 2**34, 0)])
    np.testing.assert_array_equal(np.sort(dataset.observers()["largest"]), np.sort(expected))


@ORDERS
def test_root_and_parquet_files_together_have_the_common_type(tmp_path, order):
    files = {".root": np.arange(JETS, dtype="i4"), ".parquet": LARGE}
    for name, (suffix, values) in zip(order, files.items(), strict=True):
        write(tmp_path / name, suffix, event=values)
    dataset = open_prepared(tmp_path, observers=["twice"], new_variables={"twice": "event * 2**20"})
    expected = np.concatenate([np.arange(JETS), LARGE]) * 2**20
    np.testing.assert_array_equal(np.sort(dataset.observers()["twice"]), np.sort(expected))


@ORDERS
def test_the_standardisation_uses_the_values_of_all_files(tmp_path, order):
    for name, values in zip(order, (np.arange(JETS, dtype="i4"), LARGE), strict=True):
        write(tmp_path / name, z=values)
    dataset = open_prepared(
        tmp_path,
        test=False,
        preprocess={"method": "auto", "data_fraction": 1},
        inputs={"g": {"length": None, "vars": ["z", "x"]}},
    )
    params = dataset.data_config.preprocess_params["z"]
    joined = np.concatenate([np.arange(JETS), LARGE])
    low, middle, high = np.percentile(joined, [16, 50, 84])
    assert params["center"] == middle
    assert params["scale"] == 1 / max(high - middle, middle - low)


def test_file_magic_has_the_common_type(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / name)
    magic = {"mass": {"a.root": 125, "b.root": 0.5}}
    mass = open_prepared(tmp_path, file_magic=magic, observers=["mass"]).observers()["mass"]
    assert mass.dtype == np.float64
    assert sorted(set(mass.tolist())) == [0, 0.5, 125]


@pytest.mark.parametrize(
    ("values", "other", "number"),
    [
        (np.array([2**53 + 1, 0]), np.array([0.5, 1]), "9,007,199,254,740,993"),
        (np.array([2**63], "u8"), np.array([-1]), "9,223,372,036,854,775,808"),
    ],
    ids=["float64 would round", "int64 would wrap"],
)
def test_values_that_the_common_type_cannot_represent_are_refused(tmp_path, values, other, number):
    size = len(values)
    for name, event in (("a", values), ("b", np.resize(other, size))):
        columns = {"x": np.zeros(size, "f4"), "y": np.zeros(size, "f4"), "event": event}
        with uproot.recreate(tmp_path / f"{name}.root") as file:
            file.mktree("jets", {key: v.dtype for key, v in columns.items()}).extend(columns)
    with pytest.raises(InputError) as error:
        open_prepared(tmp_path, observers=["event"])
    assert all(word in str(error.value) for word in (f"{tmp_path}/a.root", "'event'", number))


def test_a_label_beyond_signed_64_bits_is_refused(tmp_path):
    write(tmp_path / "a", big=np.arange(JETS, dtype="u8") + np.uint64(2**63))
    dataset = open_prepared(tmp_path, labels={"type": "custom", "value": {"t": "big"}})
    with pytest.raises(InputError, match=r"'t'.*9,223,372,036,854,775,8"):
        dataset.batch(np.arange(JETS))


def test_a_column_is_widened_at_any_position_of_a_wider_type(tmp_path, monkeypatch):
    """Expressions may give other types for some jets than the files have."""
    monkeypatch.setattr(columns_module, "BLOCK", 3)
    chunks = [
        np.array([True, False]),
        np.arange(7, dtype="i4"),
        np.empty(0, "f4"),
        LARGE,
        np.array([-1, 5], "i2"),
    ]
    for number, order in enumerate(itertools.permutations(chunks)):
        writer = NpyWriter(tmp_path / f"observer.{number}.npy")
        for chunk in order:
            writer.append(chunk)
        entry = writer.close()
        array = np.load(tmp_path / entry["file"])
        assert (array.dtype, entry["shape"]) == (np.float64, [16])
        np.testing.assert_array_equal(array, np.concatenate([chunk + 0 for chunk in order]))
        assert (tmp_path / entry["file"]).stat().st_size == HEADER + 16 * 8
    assert not list(tmp_path.glob("*.narrow"))
