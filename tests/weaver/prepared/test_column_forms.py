"""Columns in every form that weaver-core 0.5.3 reads: as pandas, pyarrow and polars write parquet,
option types without a missing value, several numbers for each jet, and lists as observers.

The expected numbers are those in the files; weaver-core 0.5.3 gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import awkward as ak
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import uproot

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Batch, Dataset
from weaver.prepared.prepare import prepare

ENERGIES = [[1.1, 2.2], [], [3.3]] * 4
FLOAT32 = pa.list_(pa.float32())


def config(groups: Mapping[str, Any], **sections: Any) -> DataConfig:
    inputs = {name: {"length": length, "vars": names} for name, (length, names) in groups.items()}
    labels = {"type": "custom", "value": {"t": "y"}}
    return DataConfig.from_options({"inputs": inputs, "labels": labels, **sections}, "c.yaml")


def all_jets(path, ours: DataConfig, *, for_training: bool = True, step_bytes: int = 100) -> Batch:
    """The tensors of a file, decoded in small steps."""
    ref = prepare(
        str(path),
        ours,
        str(path.parent),
        for_training=for_training,
        step_bytes=step_bytes,
        report=lambda line: None,
    )
    dataset = Dataset.open(ref.uri, ref.data_config)
    return dataset.batch(np.arange(len(dataset)))


def parquet(path, rows: int = 5, **columns):
    columns.setdefault("y", pa.array(np.arange(12, dtype="f4")))
    pyarrow.parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def root(path, **columns):
    columns.setdefault("y", np.arange(12, dtype="f4"))
    with uproot.recreate(path) as file:
        types = {}
        for name, values in columns.items():
            numpy = isinstance(values, np.ndarray)
            types[name] = (
                np.dtype((values.dtype, values.shape[1:])) if numpy else values.type.content
            )
        file.mktree("jets", types).extend(columns)
    return path


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize(
    "values",
    {
        "list": pa.array(ENERGIES, FLOAT32),
        "large list, as polars": pa.array(ENERGIES, pa.large_list(pa.float32())),
        "entries declared not null": pa.array(
            ENERGIES, pa.list_(pa.field("item", pa.float32(), nullable=False))
        ),
    }.values(),
    ids=lambda values: str(values.type) if isinstance(values, pa.Array) else "",
)
def test_lists_of_parquet_become_padded_inputs(tmp_path, values, rows):
    path = parquet(tmp_path / "a.parquet", rows, x=values)
    batch = all_jets(path, config({"g": (3, ["x"])}))
    expected = np.array([[1.1, 2.2, 0], [0, 0, 0], [3.3, 0, 0]] * 4, "f4")
    np.testing.assert_array_equal(batch.inputs["g"][:, 0], expected)
    np.testing.assert_array_equal(batch.labels["t"], np.arange(12))


def test_fixed_size_lists_records_and_dictionaries_of_parquet_are_read(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        fixed=pa.array([[1.5, 2.5]] * 12, pa.list_(pa.float32(), 2)),
        part=pa.array([[{"pt": 3.0, "q": 1}], [], [{"pt": 4.0, "q": -1}]] * 4),
        jet=pa.array([{"m": 7.0}] * 12),
        number=pa.array([3, 4, 3] * 4).dictionary_encode(),
        name=pa.array(["QCD", "H", "QCD"] * 4).dictionary_encode(),
    )
    ours = config(
        {"fixed": (3, ["fixed"]), "part": (2, ["pt", "q"]), "flat": (None, ["m", "number", "isH"])},
        new_variables={
            "pt": "part.pt",
            "q": 'part["q"]',
            "m": "jet.m",
            "isH": "name == 'H'",
        },
    )
    batch = all_jets(path, ours)
    np.testing.assert_array_equal(batch.inputs["fixed"][0], [[1.5, 2.5, 0]])
    np.testing.assert_array_equal(batch.inputs["part"][:3, :, 0], [[3, 1], [0, 0], [4, -1]])
    np.testing.assert_array_equal(batch.inputs["flat"][:2], [[7, 3, 0], [7, 4, 1]])


def test_numbers_of_an_option_type_are_standardised_in_their_own_type(tmp_path):
    """weaver-core does not use its float32 kernel for them, which the last bit shows."""
    values = np.random.default_rng(3).uniform(0, 4, 2000)
    lists = pa.array(values.reshape(1000, 2).tolist(), pa.list_(pa.float64()))
    path = parquet(tmp_path / "a.parquet", 300, x=lists, y=pa.array(np.zeros(1000)))
    ours = config({"g": (2, [["x", 0.3, 1.7, -5, 5]])})
    result = all_jets(path, ours, step_bytes=2000).inputs["g"][:, 0].numpy()
    in_double = ((values - 0.3) * 1.7).clip(-5, 5).astype("f4")
    in_float32 = (values.astype("f4") - np.float32(0.3)) * np.float32(1.7)
    np.testing.assert_array_equal(result.ravel(), in_double)
    assert (in_double != in_float32).any()


def test_missing_values_of_parquet_must_be_filled(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        x=pa.array([1.0, None, 3.0] * 4),
        part=pa.array([[1.0, None], [], [2.0]] * 4),
    )
    for names in (["x"], ["part"]):
        length = None if names == ["x"] else 2
        with pytest.raises(InputError, match=r"'\w+' .*ak\.fill_none"):
            all_jets(path, config({"g": (length, names)}))
    new_variables = {"x2": "ak.fill_none(x, -1)", "part2": "ak.fill_none(part, 9)"}
    batch = all_jets(
        path, config({"g": (None, ["x2"]), "p": (2, ["part2"])}, new_variables=new_variables)
    )
    np.testing.assert_array_equal(batch.inputs["g"][:3], [1, -1, 3])
    np.testing.assert_array_equal(batch.inputs["p"][:3, 0], [[1, 9], [0, 0], [2, 0]])


def test_types_of_parquet_that_a_network_cannot_take_are_refused_by_name(tmp_path):
    path = parquet(
        tmp_path / "a.parquet",
        when=pa.array([0] * 12, pa.timestamp("s")),
        name=pa.array(["QCD"] * 12),
    )
    with pytest.raises(InputError, match=r"a\.parquet: column 'when' is not readable: timestamp"):
        all_jets(path, config({"g": (None, ["when"])}))
    with pytest.raises(InputError, match=r"a\.parquet: column 'name' is not readable: text"):
        all_jets(path, config({"g": (None, ["name"])}))


def test_option_types_without_a_missing_value_are_accepted(tmp_path):
    path = root(
        tmp_path / "a.root",
        x=ak.values_astype(ak.Array([[1, 3], [2], [5, 4]] * 4), "float32"),
        a=np.array([1, 0, 0] * 4, "i4"),
    )
    ours = config(
        {"flat": (None, ["most", "which"]), "seq": (2, ["first"])},
        new_variables={
            "most": "ak.max(x, axis=1)",
            "which": "np.argmax(np.stack([a, 1 - a], -1), -1)",
            "first": "ak.mask(x, x > 0)",
        },
        observers=["most"],
    )
    for for_training in (True, False):
        batch = all_jets(path, ours, for_training=for_training)
        np.testing.assert_array_equal(batch.inputs["flat"][:3], [[3, 0], [2, 1], [5, 1]])
        np.testing.assert_array_equal(batch.inputs["seq"][:3, 0], [[1, 3], [2, 0], [5, 4]])
    np.testing.assert_array_equal(batch.observers["most"][:3], [3, 2, 5])


def test_a_branch_with_several_numbers_a_jet_is_accepted(tmp_path):
    """A branch x[3] is a flat input, an observer, a label (N, 3), or three particles."""
    three = np.arange(36, dtype="f4").reshape(12, 3) / 8
    vector = ak.Array(ak.from_regular(ak.Array(three[:, :2])))  # a vector that always has 2 entries
    path = root(tmp_path / "a.root", x=three, z=2 * three, v=vector)
    labels = {"type": "custom", "value": {"t": "x", "v2": "v"}}
    batch = all_jets(path, config({"one": (None, ["x"])}, labels=labels, observers=["z"]))
    np.testing.assert_array_equal(batch.inputs["one"], three)
    np.testing.assert_array_equal(batch.labels["t"], three)
    np.testing.assert_array_equal(batch.labels["v2"], three[:, :2])
    np.testing.assert_array_equal(batch.observers["z"], 2 * three)
    batch = all_jets(path, config({"two": (None, ["x", "z"])}))
    np.testing.assert_array_equal(batch.inputs["two"], np.stack([three, 2 * three], 1))
    batch = all_jets(path, config({"seq": (4, ["z"])}))
    np.testing.assert_array_equal(batch.inputs["seq"][:, 0, :3], 2 * three)
    with pytest.raises(InputError, match=r"inputs:g: .* different shapes .*'x': \[3\], 'v': \[2\]"):
        all_jets(path, config({"g": (None, ["x", "v"])}))


def test_lists_may_be_observers_and_monitor_variables(tmp_path):
    lists = ak.values_astype(ak.Array([[1, 3], [], [2.5]] * 4), "float32")
    path = root(tmp_path / "a.root", x=np.arange(12.0), lists=lists)
    for section in ("observers", "monitor_variables"):
        ours = config({"g": (None, ["x"])}, selection="x > 0", **{section: ["lists"]})
        batch = all_jets(path, ours, for_training=False)
        assert batch.observers["lists"].to_list() == lists.to_list()[1:]
        assert batch[2:5].observers["lists"].to_list() == lists.to_list()[3:6]
    # several types of observers in one data set, and in any order
    ref = prepare(str(path), ours, str(tmp_path), for_training=False, report=lambda line: None)
    dataset = Dataset.open(ref.uri, ref.data_config, for_training=False)
    observer = dataset.batch(np.array([4, 0, 0])).observers["lists"]
    assert observer.to_list() == [lists.to_list()[5], lists.to_list()[1], lists.to_list()[1]]


def test_predictions_with_lists_are_written_to_a_tree(tmp_path):
    from weaver.predict import write_columns

    lists = ak.values_astype(ak.Array([[1, 3], [], [2.5]]), "float32")
    columns = {
        "output": np.arange(6, dtype="f4").reshape(3, 2),
        "isQ": np.array([True, False, True]),
        "lists": lists,
    }
    write_columns(str(tmp_path / "p.root"), columns)
    with uproot.open(tmp_path / "p.root") as file:
        assert file.classnames()["Events;1"] == "TTree"
        arrays = file["Events"].arrays()
    assert [name for name in arrays.fields if not name.startswith("n")] == list(columns)
    assert arrays["lists"].to_list() == lists.to_list()
    np.testing.assert_array_equal(arrays["output"], columns["output"])
    write_columns(str(tmp_path / "p.parquet"), columns)
    assert ak.from_parquet(tmp_path / "p.parquet")["lists"].to_list() == lists.to_list()
    with pytest.raises(InputError, match=r"'lists' is a list for each jet, which \.npz"):
        write_columns(str(tmp_path / "p.npz"), columns)
    # the project's own reader takes the file
    ours = config({"g": (2, ["lists"])}, labels={"type": "custom", "value": {"t": "isQ"}})
    batch = all_jets(tmp_path / "p.root", ours)
    np.testing.assert_array_equal(batch.inputs["g"][:, 0], [[1, 3], [0, 0], [2.5, 0]])
