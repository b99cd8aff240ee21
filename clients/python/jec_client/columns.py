"""Convert columns in the forms that users have to flat arrays of numbers.

    table = table_of(jets, ["jetPt", "PF_pT"])
    column = column_of("PF_pT", table.columns["PF_pT"])     # values (2,), counts [2, 0]

A column has one number a jet, a list of numbers for each jet, or an array of one shape for each. It
comes as a NumPy array of any numbers and byte order (object arrays of uproot's `library="np"` as
well), an awkward array, a list, or a column of a pandas or polars frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np

from jec_client.errors import InputError

NUMBERS = "biuf"
"""NumPy's kinds of bool, whole and floating-point numbers."""

KINDS = {
    "M": "dates",
    "m": "time differences",
    "U": "text",
    "S": "text",
    "T": "text",
    "c": "complex numbers",
    "V": "records",
    "O": "objects",
}
"""NumPy's kinds of values that are no numbers, in words."""

ACCEPTED = "an array or a list with one number, or one list of numbers, for each jet"
"""What a column may be, in words."""

AWKWARD_ERRORS = (TypeError, ValueError, OverflowError, RuntimeError)
"""Errors of ak.from_iter for unsuitable values; RuntimeError is for integers beyond 64 bits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """Numbers of all jets."""

    name: str
    values: np.ndarray
    """(N, ...): of each jet the same shape; with `counts`, (sum of counts,)."""
    counts: np.ndarray | None = None
    """(N,) int64: how many of the values each jet has, where they are lists."""

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.values if self.counts is None else self.counts)

    def jet_of(self, index: int) -> int:
        """Return the jet to which the value at this place of the flattened values belongs."""
        if self.counts is not None:
            return int(np.searchsorted(np.cumsum(self.counts), index, side="right"))
        return index // max(1, self.values[:1].size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Columns by name, not yet converted."""

    columns: Mapping[str, Any]
    """The requested columns that exist."""
    names: Sequence[str]
    """Names of all columns."""
    strict: bool = False
    """Whether a column that the model does not take is an error. It is one in a dict; files and
    frames usually have more columns than a model takes."""
    jets_of_events: np.ndarray | None = None
    """(events,): how many jets each event has, where the jets came as lists."""


def table_of(jets: Any, column_names: Iterable[str]) -> Table:
    """Return these columns of a record array, a dict, or a frame of pandas, polars or pyarrow.

    Raises InputError for anything else.
    """
    if isinstance(jets, (list, tuple)) and jets and isinstance(jets[0], Mapping):
        try:
            jets = ak.from_iter(jets)
        except AWKWARD_ERRORS as error:
            raise InputError(
                f"the jets are not records of numbers: {error}; give a dict of numbers, or of lists"
                " of numbers, for each jet"
            ) from None
    if isinstance(jets, ak.Record):
        at = jets.layout.at
        jets = ak.Array(jets.layout.array[at : at + 1])
    if isinstance(jets, ak.Array):
        return _of_records(jets, column_names)
    if isinstance(jets, Mapping):
        columns = {name: jets[name] for name in column_names if name in jets}
        return Table(columns=columns, names=[str(name) for name in jets], strict=True)
    if isinstance(jets, (np.ndarray, np.void)) and jets.dtype.names:
        records = np.atleast_1d(np.asarray(jets))
        columns = {name: records[name] for name in column_names if name in jets.dtype.names}
        return Table(columns=columns, names=jets.dtype.names)
    for method, what in (("compute", "not computed yet"), ("collect", "a lazy frame")):
        if callable(getattr(jets, method, None)):
            raise InputError(f"the jets are of type {_type(jets)}, {what}; give its {method}()")
    if hasattr(jets, "column_names") and hasattr(jets, "column"):  # of pyarrow
        columns = {name: jets.column(name) for name in column_names if name in jets.column_names}
        return Table(columns=columns, names=jets.column_names)
    if hasattr(jets, "columns") and hasattr(jets, "shape"):  # of pandas or polars
        names = [str(name) for name in jets.columns]
        return Table(
            columns={name: jets[name] for name in column_names if name in names}, names=names
        )
    raise InputError(
        f"the jets are of type {_type(jets)}; give a record array, a dict of columns, a frame of"
        " pandas or polars, or the path of a ROOT or parquet file"
    )


def _of_records(jets: ak.Array, column_names: Iterable[str]) -> Table:
    names = ak.fields(jets)
    if not names:
        raise InputError(
            f"the jets are an awkward array without columns ({_ellipsis(str(jets.type))}); give a"
            " record array, such as tree.arrays() of uproot, or a dict of columns"
        )
    columns = {name: jets[name] for name in column_names if name in names}
    if jets.ndim == 1:
        return Table(columns=columns, names=names)
    if jets.ndim != 2:
        raise InputError(
            f"the jets are lists in lists ({_ellipsis(str(jets.type))}); give one list of jets, or"
            " one for each event: ak.flatten(jets, axis=1)"
        )
    # All jets one after the other; calibrate gives the lists of events back.
    jets_of_events = ak.num(jets, axis=1)
    if ak.any(ak.is_none(jets_of_events)):
        raise InputError(
            "the jets are lists of events, some of which are missing (None); take these out first:"
            " ak.drop_none(jets, axis=0)"
        )
    jets_of_events = np.ma.getdata(ak.to_numpy(jets_of_events))
    flat = {name: ak.flatten(column, axis=1) for name, column in columns.items()}
    return Table(columns=flat, names=names, jets_of_events=jets_of_events)


def is_one_number(raw: Any) -> bool:
    """Return whether a column is the number of a single jet."""
    return isinstance(raw, (bool, int, float, np.number, np.bool_)) or (
        isinstance(raw, np.ndarray) and raw.ndim == 0
    )


def column_of(name: str, raw: Any) -> Column:
    """Return a column's numbers.

    Raises InputError, which names column and jet, for values that are missing or no numbers, and
    for lists in lists of different lengths.
    """
    if hasattr(raw, "to_frame") and hasattr(raw, "dtype"):  # a series of pandas or polars
        raw = _of_series(name, raw)
    elif type(raw).__module__.partition(".")[0] == "pyarrow":
        raw = ak.from_arrow(raw)
    if isinstance(raw, ak.Array):
        return _of_awkward(name, raw)
    if isinstance(raw, np.ma.MaskedArray) and np.ma.is_masked(raw):
        place = int(np.flatnonzero(np.ma.getmaskarray(raw))[0])
        raise _missing(name, place // max(1, raw[:1].size))
    if not isinstance(raw, (np.ndarray, list, tuple)):
        if callable(getattr(raw, "compute", None)):
            raise InputError(f"column '{name}' is not computed yet; give its compute()")
        if isinstance(raw, (str, bytes, Mapping)) or not hasattr(raw, "__getitem__"):
            raise InputError(
                f"column '{name}' is of type {_type(raw)}, not numbers of jets; give {ACCEPTED}"
            )
        try:
            raw = np.asarray(raw) if hasattr(raw, "__array__") else list(raw)
        except (
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:  # such as a tensor of torch's on a GPU
            raise InputError(
                f"column '{name}' cannot become an array of numbers: {error}; give {ACCEPTED}"
            ) from None
    if isinstance(raw, np.ndarray) and raw.dtype.kind != "O":
        return Column(name=name, values=_numbers(name, np.ma.getdata(raw)))
    return _of_objects(name, raw)


def _of_series(name: str, series: Any) -> Any:
    """Convert a series of pandas or polars to a NumPy array; to a list if it has lists or nulls."""
    if hasattr(series, "null_count"):  # of polars, which would turn nulls into NaN
        if series.dtype.is_nested():
            values = series.to_list()
            return np.asarray(values) if type(series.dtype).__name__ == "Array" else values
        return series.to_list() if series.null_count() else series.to_numpy()
    if not isinstance(series.dtype, np.dtype) and series.isna().any():
        raise _missing(name, int(np.flatnonzero(series.isna())[0]))
    return series.to_numpy()


def _of_objects(name: str, raw: Sequence[Any] | np.ndarray) -> Column:
    """Return a column of Python's objects: numbers, or a list or array of numbers for each jet."""
    for jet, value in enumerate(raw):
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            raise _missing(name, jet)
        if np.ma.is_masked(value):
            raise _missing(name, jet)
    if len(raw) and all(_is_flat(value) for value in raw):
        # of library="np": an array for each jet
        counts = np.fromiter(map(len, raw), np.int64, len(raw))
        parts = [np.ma.getdata(value) for value in raw if len(value)]
        values: np.ndarray = np.concatenate(parts) if parts else np.zeros(0)
        return Column(name=name, values=values, counts=counts)
    try:
        return _of_awkward(name, ak.from_iter(raw))
    except AWKWARD_ERRORS:
        raise _no_number(name, raw) from None


def _is_flat(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in NUMBERS


def _no_number(name: str, raw: Iterable[Any]) -> InputError:
    """Return the error that names the first jet whose value awkward cannot hold."""
    for jet, value in enumerate(raw):
        try:
            ak.from_iter([value])
        except AWKWARD_ERRORS:
            example = _ellipsis(repr(value))
            return InputError(
                f"column '{name}' has {example} in jet {jet}, which is not a number of at most 64"
                " bits; correct it, or leave the jet out"
            )
    return InputError(
        f"column '{name}' has values that cannot be one array of numbers; give {ACCEPTED}"
    )


def _of_awkward(name: str, array: ak.Array) -> Column:
    """Return the numbers of an awkward array of any depth."""
    if ak.fields(array):
        fields = ", ".join(ak.fields(array)[:5])
        raise InputError(
            f"column '{name}' is an array of records ({fields}), not of numbers; give one of the"
            f" fields, such as ['{ak.fields(array)[0]}']"
        )
    depth = array.ndim
    if depth < 1:  # of a union
        raise InputError(
            f"column '{name}' mixes types ({_ellipsis(str(array.type))}); give numbers of one kind"
        )
    _refuse_nones(name, array, depth)
    # Lists in lists are read as an array for each jet, which needs them to have one shape.
    if depth != 2 or array.layout.purelist_isregular:
        return Column(name=name, values=_to_numpy(name, array))
    counts = np.ma.getdata(ak.to_numpy(ak.num(array, axis=1))).astype(np.int64)
    return Column(name=name, values=_to_numpy(name, ak.flatten(array, axis=1)), counts=counts)


def _refuse_nones(name: str, array: ak.Array, depth: int) -> None:
    for axis in range(depth):
        missing = ak.is_none(array, axis=axis)
        if ak.any(missing, axis=None):
            while missing.ndim > 1:
                missing = ak.any(missing, axis=-1)
            raise _missing(name, int(np.flatnonzero(ak.fill_none(missing, False))[0]))


def _to_numpy(name: str, array: ak.Array) -> np.ndarray:
    """Return the numbers of an array without missing values, whose type may allow them."""
    try:
        values: np.ndarray = np.ma.getdata(ak.to_numpy(ak.to_backend(array, "cpu")))
    except (TypeError, ValueError):
        raise InputError(
            f"column '{name}' has the type {_ellipsis(str(array.type))}; expected numbers, or a"
            " list of numbers for each jet, with one jet in each entry; ak.flatten(..., axis=1)"
            " turns events into jets"
        ) from None
    return _numbers(name, values)


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    """Return the array itself. Raises InputError where it holds no numbers."""
    if values.dtype.kind in NUMBERS:
        return values
    example = f" ({_ellipsis(repr(values.ravel()[0].item()))})" if values.size else ""
    kind = KINDS.get(values.dtype.kind, str(values.dtype))
    raise InputError(
        f"column '{name}' holds {kind}{example}, not numbers; convert it to numbers first"
    )


def _missing(name: str, jet: int) -> InputError:
    return InputError(
        f"column '{name}' has a missing value (None) in jet {jet}; fill it, or leave the jet out"
    )


def _type(value: Any) -> str:
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package} {kind.__name__}"


def _ellipsis(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]} ..."
