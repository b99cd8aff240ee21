"""Columns as users have them become a model's inputs, or are refused by column, jet and value."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jec_client.columns import table_of
from jec_client.errors import InputError
from jec_client.model_inputs import Jets, Tensor, prepare

F4, I4 = np.dtype("f4"), np.dtype("i4")
INPUTS = [
    Tensor(name="jetPt", dtype=F4, shape=(-1, 1)),
    Tensor(name="PF_pT", dtype=F4, shape=(-1, -1)),
    Tensor(name="PF_id", dtype=I4, shape=(-1, -1)),
    Tensor(name="nPF", dtype=I4, shape=(-1, 1)),
    Tensor(name="nPV", dtype=I4, shape=(-1, 1)),
]
LISTS = {
    "jetPt": [10.0, 20.0, 30.0],
    "PF_pT": [[1.0, 2.0], [], [3.0]],
    "PF_id": [[1, 2], [], [3]],
    "nPF": [2, 0, 1],
    "nPV": [5, 6, 7],
}
RIGHT = {
    "jetPt": np.array([[10], [20], [30]], F4),
    "PF_pT": np.array([[1, 2], [0, 0], [3, 0]], F4),
    "PF_id": np.array([[1, 2], [0, 0], [3, 0]], I4),
    "nPF": np.array([[2], [0], [1]], I4),
    "nPV": np.array([[5], [6], [7]], I4),
}
AWKWARD = {name: ak.Array(values) for name, values in LISTS.items()}
RECORDS = ak.zip(AWKWARD, depth_limit=1)
PADDED = np.array([[1.0, 2], [0, 0], [3, 0]])
COUNTERLESS = {name: values for name, values in AWKWARD.items() if name != "nPF"}


def prepare_inputs(jets, inputs=INPUTS, counters=None) -> Jets:
    return prepare(table_of(jets, [tensor.name for tensor in inputs]), inputs, counters)


def objects(values) -> np.ndarray:
    """An object array, as uproot's library="np" gives for lists."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def structured_array() -> np.ndarray:
    jets = np.zeros(
        3,
        [("jetPt", ">f8"), ("nPV", "i8"), ("nPF", "u2"), ("PF_pT", "f4", 2), ("PF_id", "i1", 2)],
    )
    for name in ("jetPt", "nPV", "nPF"):
        jets[name] = LISTS[name]
    jets["PF_pT"], jets["PF_id"] = PADDED, PADDED
    return jets


def read_only(values) -> np.ndarray:
    array = np.array(values)
    array.flags.writeable = False
    return array


def categorical(values) -> ak.Array:
    index = ak.index.Index64(np.arange(len(values)))
    content = ak.contents.NumpyArray(np.array(values))
    parameters = {"__array__": "categorical"}
    return ak.Array(ak.contents.IndexedArray(index, content, parameters=parameters))


ARRAYS_OF_LISTS = {
    name: objects([np.array(jet, ">f4" if name == "PF_pT" else "i8") for jet in LISTS[name]])
    for name in ("PF_pT", "PF_id")
}
FRAME = {name: LISTS[name] for name in ("jetPt", "PF_pT", "PF_id")}

TAKEN = {
    "lists": LISTS,
    "awkward": AWKWARD,
    "a record array": RECORDS,
    "records without the counter": ak.zip(COUNTERLESS, depth_limit=1),
    "records with more columns": ak.zip({**AWKWARD, "rho": [1, 2, 3]}, depth_limit=1),
    "a slice": ak.concatenate([RECORDS] * 3)[3:6],
    "a selection": ak.concatenate([RECORDS] * 2)[[True] * 3 + [False] * 3],
    "another order twice": RECORDS[[2, 1, 0]][[2, 1, 0]],
    "a type with None, and none": {
        **AWKWARD,
        "jetPt": ak.mask(AWKWARD["jetPt"], [True] * 3),
        "PF_pT": ak.mask(AWKWARD["PF_pT"], [True] * 3),
    },
    "a mask that masks nothing": {**AWKWARD, "jetPt": np.ma.array([10.0, 20, 30], mask=False)},
    'library="np"': {**AWKWARD, **ARRAYS_OF_LISTS},
    "objects of several types": {
        **AWKWARD,
        "PF_pT": objects([np.array([1, 2], ">f8"), np.zeros(0, "i2"), [3.0]]),
    },
    "objects that are numbers": {**AWKWARD, "jetPt": objects([10, 20.0, np.float32(30)])},
    "float64": {**AWKWARD, "jetPt": np.array([10.0, 20, 30])},
    "float16": {**AWKWARD, "jetPt": np.array([10.0, 20, 30], "f2")},
    "long double": {**AWKWARD, "jetPt": np.array([10.0, 20, 30], "g")},
    "int64": {**AWKWARD, "jetPt": np.array([10, 20, 30])},
    "uint64": {**AWKWARD, "nPV": np.array([5, 6, 7], "u8")},
    "whole floats": {**AWKWARD, "nPF": np.array([2.0, 0, 1])},
    "big-endian": {
        **AWKWARD,
        "jetPt": np.array([10, 20, 30], ">f8"),
        "nPV": np.array([5, 6, 7], ">i2"),
    },
    "read-only": {**AWKWARD, "jetPt": read_only([10.0, 20, 30])},
    "every second": {**AWKWARD, "jetPt": np.array([10.0, 0, 20, 0, 30, 0])[::2]},
    "backwards": {**AWKWARD, "jetPt": np.array([30.0, 20, 10])[::-1]},
    "Fortran's order": {**AWKWARD, "PF_pT": np.asfortranarray(PADDED), "PF_id": PADDED.astype(int)},
    "padded and lists": {**AWKWARD, "PF_pT": PADDED},
    "(N, 1)": {**AWKWARD, "jetPt": np.array([[10.0], [20], [30]])},
    "lists of one": {**AWKWARD, "jetPt": [[10.0], [20], [30]]},
    "awkward of one shape": {**AWKWARD, "PF_pT": ak.Array(PADDED), "PF_id": ak.Array(PADDED)},
    "categories": {**AWKWARD, "jetPt": categorical([10.0, 20, 30])},
    "a structured array": structured_array(),
    "numpy's record array": structured_array().view(np.recarray),
    "pandas": pd.DataFrame({**FRAME, "nPV": pd.array([5, 6, 7], dtype="Int64")}, index=[7, 3, 9]),
    "pandas' categories": pd.DataFrame({**FRAME, "nPV": pd.Categorical([5, 6, 7])}),
    "polars": pl.DataFrame(LISTS),
    "polars' arrays": pl.DataFrame(
        {**LISTS, "PF_pT": PADDED, "PF_id": PADDED},
        schema_overrides={"PF_pT": pl.Array(pl.Float64, 2), "PF_id": pl.Array(pl.Float64, 2)},
    ),
    "series": {name: pl.Series(values) for name, values in LISTS.items()},
    "pyarrow": pa.table(LISTS),
    "a batch of pyarrow": pa.table(LISTS).to_batches()[0],
    "dicts": [dict(zip(LISTS, jet, strict=True)) for jet in zip(*LISTS.values(), strict=True)],
}


@pytest.mark.parametrize("what", TAKEN)
def test_accepted_columns_become_inputs(what):
    jets = prepare_inputs(TAKEN[what])
    arrays = jets.arrays(0, jets.count)
    assert list(arrays) == list(RIGHT)
    for name, array in arrays.items():
        assert array.dtype == RIGHT[name].dtype
        np.testing.assert_array_equal(array, RIGHT[name])


REFUSED = {
    "None": ({"jetPt": [10.0, None, 30]}, "'jetPt'.*jet 1"),
    "None for a list": ({"PF_pT": [[1.0, 2], None, [3.0]]}, "'PF_pT'.*jet 1"),
    "None in a list": ({"PF_pT": ak.Array([[1.0, 2], [], [None]])}, "'PF_pT'.*jet 2"),
    "None in an array": ({"PF_pT": objects([[1.0, 2.0], None, [3.0]])}, "'PF_pT'.*jet 1"),
    "masked": ({"jetPt": np.ma.array([1, 2, 3], mask=[0, 0, 1])}, "'jetPt'.*jet 2"),
    "NA of pandas": ({"jetPt": pd.Series([1, None, 3], dtype="Int64")}, "'jetPt'.*jet 1"),
    "null of polars": ({"jetPt": pl.Series([1, None, 3])}, "'jetPt'.*jet 1"),
    "null in a list of polars": ({"PF_pT": pl.Series([[1.0, 2], [], [None]])}, "'PF_pT'.*jet 2"),
    "text": ({"jetPt": np.array(["a", "b", "c"])}, "'jetPt'.*text.*'a'"),
    "numbers as text": ({"jetPt": ["1", "2", "3"]}, "'jetPt'.*text.*'1'"),
    "lists of text": ({"PF_pT": [["a"], [], ["b"]]}, "'PF_pT'.*text"),
    "categories of text": ({"jetPt": pd.Series(pd.Categorical(["a"] * 3))}, "'jetPt'.*text"),
    "dates": ({"jetPt": np.array(["2020-01-01"] * 3, "M8[s]")}, "'jetPt'.*dates"),
    "complex": ({"jetPt": np.array([1, 2, 3j])}, "'jetPt'.*complex"),
    "records": ({"jetPt": ak.zip({"a": [1, 2, 3]})}, "'jetPt'.*records.*a"),
    "mixed": ({"jetPt": ak.Array([1, "a", 2])}, "'jetPt'.*union"),
    "numbers and lists": ({"PF_pT": [[1.0, 2], 3.0, []]}, "'PF_pT'"),
    "lists of lists of lists": ({"PF_pT": [[[1.0], [2.0]], [], [[3.0]]]}, "'PF_pT'.*var"),
    "a whole number beyond float32": ({"jetPt": [1, 2, 2**24 + 1]}, "'jetPt'.*16777217.*jet 2"),
    "beyond int32": ({"nPV": np.array([1, 2**40, 3])}, "'nPV'.*1099511627776.*jet 1"),
    "beyond int32, unsigned": ({"nPV": np.array([1, 2, 2**64 - 1], "u8")}, "'nPV'.*jet 2"),
    "beyond 64 bits": ({"jetPt": [1, 10**30, 3]}, "'jetPt'.*jet 1"),
    "beyond float32": ({"jetPt": [1, 2, 1e300]}, r"'jetPt'.*1e\+300.*jet 2"),
    "half a particle": ({"nPF": [2, 0.5, 1]}, r"'nPF'.*0\.5.*jet 1"),
    "NaN particles": ({"nPF": [2, 0, np.nan]}, "'nPF'.*nan.*jet 2"),
    "a value in the third jet's list": ({"PF_id": [[1, 2], [], [3.5]]}, r"'PF_id'.*3\.5.*jet 2"),
    "lists of other lengths": ({"PF_id": [[1, 2], [4], [3]]}, "'PF_id'.*jet 1"),
    "another counter": ({"nPF": [2, 0, 2]}, "'PF_pT'.*length 1.*jet 2.*'nPF'.*2"),
    "fewer places": ({"PF_pT": PADDED[:, :1]}, "'PF_pT'.*1 places.*2.*jet 0"),
    "fewer places than others": (
        {"PF_pT": PADDED[:, :1], "PF_id": PADDED.astype(int)},
        "'PF_pT'.*1 places.*2.*jet 0",
    ),
    "two numbers": ({"jetPt": np.zeros((3, 2))}, "'jetPt'.*one number"),
    "two numbers of one jet": ({"jetPt": [[1.0], [2, 3], [4]]}, "'jetPt'.*jet 1"),
    "no lists": ({"PF_pT": [1.0, 2, 3]}, "'PF_pT'.*list"),
    "fewer jets": ({"nPV": [1, 2]}, "'jetPt'.*3.*'nPV'.*2"),
    "one number among columns": ({"nPV": 5}, "'nPV'.*'jetPt'"),
    "a set": ({"jetPt": {1.0, 2.0, 3.0}}, "'jetPt'.*set"),
    "a generator": ({"jetPt": iter([1.0])}, "'jetPt'.*iterator"),
    "text for a column": ({"jetPt": "abc"}, "'jetPt'.*str"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_wrong_columns_are_refused(what):
    changes, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as error:
        prepare_inputs({**AWKWARD, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "jets",
    [None, 5, [], [1, 2], (AWKWARD["jetPt"],), AWKWARD["jetPt"], np.zeros(3), pl.LazyFrame(LISTS)],
    ids=["None", "number", "no list", "list", "tuple", "one column", "array", "LazyFrame"],
)
def test_an_object_without_columns_is_refused(jets):
    with pytest.raises(InputError, match="the jets are"):
        prepare_inputs(jets)


def test_fewer_places_than_the_model_has_are_enough_for_fewer_particles_only():
    fixed = [
        Tensor(name=t.name, dtype=t.dtype, shape=(-1, 5)) if t.takes_lists else t for t in INPUTS
    ]
    arrays = {"PF_pT": PADDED, "PF_id": PADDED.astype(int)}
    jets = prepare_inputs({**AWKWARD, **arrays}, fixed)
    assert jets.arrays(0, 3)["PF_pT"].tolist() == [[1, 2, 0, 0, 0], [0] * 5, [3, 0, 0, 0, 0]]
    with pytest.raises(InputError, match=r"'PF_pT' has 2 places a jet, 'nPF' says 3 for jet 1"):
        prepare_inputs({**AWKWARD, **arrays, "nPF": [2, 3, 1]}, fixed)


def test_a_counter_beyond_all_columns_is_left_to_the_model():
    arrays = {"PF_pT": PADDED, "PF_id": PADDED.astype(int), "nPF": [2, 1_000_000, 1]}
    jets = prepare_inputs({**AWKWARD, **arrays}).arrays(0, 3)
    assert jets["PF_pT"].shape == (3, 2)
    assert jets["nPF"][:, 0].tolist() == [2, 1_000_000, 1]


def test_integers_that_float32_represents_exactly_are_taken():
    jets = prepare_inputs({**AWKWARD, "jetPt": np.array([2**30, -(2**62), 2**24])})
    assert jets.arrays(0, 3)["jetPt"][:, 0].tolist() == [2**30, -(2**62), 2**24]


def test_values_that_are_not_finite_go_to_the_model():
    jets = prepare_inputs({**AWKWARD, "jetPt": [np.nan, np.inf, 1.0]})
    np.testing.assert_array_equal(jets.arrays(0, 3)["jetPt"][:, 0], [np.nan, np.inf, 1])


def test_missing_and_unexpected_columns_are_listed_with_the_nearest_names():
    columns = {"jet_pt": [1.0], "nPV": [2], "PF_pT": [[1.0]], "pfid": [[1]], "mass": [3]}
    with pytest.raises(InputError) as error:
        prepare_inputs(columns)
    missing, unexpected = str(error.value).split("; ")
    assert "'jetPt' (nearest: 'jet_pt')" in missing
    assert "'PF_id' (nearest: 'pfid')" in missing
    assert "nPF" not in missing  # PF_pT gives the number
    assert "'jet_pt' (nearest: 'jetPt')" in unexpected
    assert "'mass'" in unexpected
    assert "nPV" not in str(error.value)


def test_a_dict_with_other_columns_is_refused():
    with pytest.raises(InputError, match="does not take: 'rho'"):
        prepare_inputs({**AWKWARD, "rho": [1, 2, 3]})


@pytest.mark.parametrize(
    "jets",
    [
        {"jetPt": 10.0, "PF_pT": [1.0, 2], "PF_id": [1, 2], "nPF": 2, "nPV": 5},
        {"jetPt": np.float64(10), "PF_pT": np.array([1, 2]), "PF_id": [1, 2], "nPV": np.array(5)},
        RECORDS[0],
        structured_array()[0],
    ],
    ids=["numbers", "numpy's numbers", "a record", "a structured number"],
)
def test_one_jet_by_itself(jets):
    arrays = prepare_inputs(jets).arrays(0, 1)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, RIGHT[name][:1])


@pytest.mark.parametrize(
    "jets",
    [
        {name: [] for name in LISTS},
        {name: np.zeros(0) for name in LISTS},
        RECORDS[:0],
        pl.DataFrame(LISTS)[:0],
    ],
    ids=["lists", "arrays", "records", "a frame"],
)
def test_no_jets(jets):
    assert prepare_inputs(jets).count == 0


def test_jets_without_particles():
    empty = {"PF_pT": [[], [], []], "PF_id": [[], [], []], "nPF": [0, 0, 0]}
    arrays = prepare_inputs({**AWKWARD, **empty}).arrays(0, 3)
    np.testing.assert_array_equal(arrays["PF_pT"], np.zeros((3, 1)))


def test_particles_are_padded_to_the_longest_of_their_request():
    jets = prepare_inputs(RECORDS)
    assert jets.arrays(0, 1)["PF_pT"].shape == (1, 2)
    assert jets.arrays(1, 2)["PF_pT"].shape == (1, 1)
    np.testing.assert_array_equal(jets.arrays(2, 3)["PF_pT"], [[3.0]])


def test_arrays_of_one_shape_need_their_counter():
    with pytest.raises(InputError, match="lack 'nPF'"):
        prepare_inputs({**COUNTERLESS, "PF_pT": PADDED, "PF_id": PADDED})


def test_the_model_says_which_columns_a_counter_counts():
    inputs = [
        Tensor(name="cand_pt", dtype=F4, shape=(-1, -1)),
        Tensor(name="sv_mass", dtype=F4, shape=(-1, -1)),
        Tensor(name="numCand", dtype=I4, shape=(-1, 1)),
        Tensor(name="numSV", dtype=I4, shape=(-1, 1)),
    ]
    columns = {"cand_pt": [[1.0, 2.0]], "sv_mass": [[3.0]]}
    with pytest.raises(InputError, match="numCand"):
        prepare_inputs(columns, inputs)
    counters = {"numCand": ["cand_pt"], "numSV": ["sv_mass"]}
    arrays = prepare_inputs(columns, inputs, counters).arrays(0, 1)
    assert arrays["numCand"].tolist() == [[2]]
    assert arrays["numSV"].tolist() == [[1]]


def test_lists_of_events():
    events = ak.unflatten(RECORDS, [1, 0, 2])
    jets = prepare_inputs(events)
    np.testing.assert_array_equal(jets.arrays(0, 3)["PF_pT"], RIGHT["PF_pT"])
    assert jets.jets_of_events.tolist() == [1, 0, 2]
    with pytest.raises(InputError, match="missing"):
        prepare_inputs(ak.mask(events, [True, False, True]))
    with pytest.raises(InputError, match="lists in lists"):
        prepare_inputs(ak.unflatten(events, [1, 2]))


def test_features_of_a_fixed_shape():
    inputs = [
        Tensor(name="pf_features", dtype=F4, shape=(-1, 4, 20)),
        Tensor(name="jet_features", dtype=F4, shape=(-1, 3)),
    ]
    features = {"pf_features": np.ones((2, 4, 20)), "jet_features": np.ones((2, 3)).tolist()}
    arrays = prepare_inputs(features, inputs).arrays(0, 2)
    assert {name: array.shape for name, array in arrays.items()} == {
        "pf_features": (2, 4, 20),
        "jet_features": (2, 3),
    }
    with pytest.raises(InputError, match="'jet_features'"):
        prepare_inputs({**features, "jet_features": np.ones((2, 4))}, inputs)
    with pytest.raises(InputError, match="'pf_features'"):
        prepare_inputs({**features, "pf_features": np.ones((2, 4, 19))}, inputs)


def test_a_model_with_a_fixed_number_of_particles():
    inputs = [
        Tensor(name="PF_pT", dtype=F4, shape=(-1, 3)),
        Tensor(name="nPF", dtype=I4, shape=(-1, 1)),
    ]
    arrays = prepare_inputs({"PF_pT": [[1.0], [2.0, 3.0]]}, inputs).arrays(0, 2)
    np.testing.assert_array_equal(arrays["PF_pT"], [[1, 0, 0], [2, 3, 0]])
    with pytest.raises(InputError, match=r"'PF_pT'.*length 4.*jet 1"):
        prepare_inputs({"PF_pT": [[1.0], [2.0, 3.0, 4.0, 5.0]]}, inputs)


def test_a_jet_of_very_many_particles_goes_in_a_smaller_request(monkeypatch):
    monkeypatch.setattr("jec_client.model_inputs.MOST_NUMBERS", 1000)
    particles = [np.ones(100), *([np.ones(1)] * 99)]
    jets = prepare_inputs({"PF_pT": particles}, [INPUTS[1]])
    first = jets.stop(0, 100)
    assert first < 100
    assert jets.arrays(0, first)["PF_pT"].size <= 1000
    assert jets.stop(first, 100) == 100
