"""Make a model's inputs from columns of jets: cast without loss, cut into requests, and padded.

jets = prepare(table, model)
jets.arrays(0, 1024)      # {"jetPt": (1024, 1), "PF_pT": (1024, P), "nPF": (1024, 1)}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jec_client.columns import Column, Table, column_of, is_one_number
from jec_client.errors import InputError, nearest

MOST_NUMBERS = 1 << 24
"""Most numbers of a request, so that one jet with very many particles does not pad thousands."""

MANTISSA = {2: 11, 4: 24, 8: 53}
"""Bytes of a floating-point number -> bits of the whole numbers that it holds without a gap."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a model."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    """The first axis is that of the jets; -1 is any size."""

    @property
    def takes_lists(self) -> bool:
        """Whether it takes several numbers of each jet, such as those of its particles."""
        return len(self.shape) == 2 and self.shape[1] != 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jets:
    """The inputs of all jets, before they are padded."""

    inputs: Sequence[Tensor]
    columns: Mapping[str, Column]
    """By input, in the input's type."""
    groups: Mapping[str, str]
    """Input of particles -> its counter; those of one counter are padded to one length."""
    starts: Mapping[str, np.ndarray]
    """Of lists: where the values of each jet begin, (N + 1,)."""
    count: int
    jets_of_events: np.ndarray | None = None

    def stop(self, start: int, most: int) -> int:
        """Return the end of a request that begins at a jet and has at most so many."""
        stop = min(start + most, self.count)
        while stop - start > 1:
            numbers = sum(self._width(name, start, stop) for name in self.columns)
            if numbers * (stop - start) <= MOST_NUMBERS:
                break
            stop = start + (stop - start + 1) // 2
        return stop

    def arrays(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the inputs of these jets, padded with zeros."""
        arrays = {}
        for tensor in self.inputs:
            column = self.columns[tensor.name]
            if not tensor.takes_lists:
                arrays[tensor.name] = column.values[start:stop]
                continue
            width = self._width(tensor.name, start, stop)
            padded = np.zeros((stop - start, width), column.values.dtype)
            if column.counts is None:
                padded[:, : column.values.shape[1]] = column.values[start:stop]
            else:
                places = np.arange(width) < column.counts[start:stop, None]
                starts = self.starts[tensor.name]
                padded[places] = column.values[starts[start] : starts[stop]]
            arrays[tensor.name] = padded
        return arrays

    def _width(self, name: str, start: int, stop: int) -> int:
        """Return numbers a jet of an input in a request of these jets."""
        group = [name]
        if counter := self.groups.get(name):
            group = [other for other, its in self.groups.items() if its == counter]
        widths = [1]
        for tensor in self.inputs:
            if tensor.name in group:
                widths.append(max(tensor.shape[1:], default=1))  # -1 where it is free
        for member in group:
            column = self.columns[member]
            if column.counts is None:
                widths.append(int(np.prod(column.values.shape[1:])))
            else:
                widths.append(int(column.counts[start:stop].max(initial=0)))
        return max(widths)


def prepare(
    table: Table, inputs: Sequence[Tensor], counters: Mapping[str, Sequence[str]] | None = None
) -> Jets:
    """Return the model's inputs of a table of jets.

    counters: counter input -> the inputs of the particles that it counts, where the model has them;
    otherwise they follow from the names. Raises InputError for columns that are missing or that the
    model does not take, values that an input cannot hold, and columns of different lengths.
    """
    by_name = {tensor.name: tensor for tensor in inputs}
    groups = _by_names(inputs)
    if counters:
        groups = {name: counter for counter, names in counters.items() for name in names}
        groups = {name: its for name, its in groups.items() if {name, its} <= set(by_name)}
    _check_names(table, list(by_name), groups)
    jet_columns = _of_one_jet(table.columns, by_name)
    numbers = {name: column_of(name, raw) for name, raw in jet_columns.items()}
    count = _number_of_jets(numbers)
    columns = {}
    for name, column in numbers.items():
        columns[name] = _fitting(column, by_name[name], count, name in groups)
    for counter in sorted(set(groups.values())):
        particles = [columns[name] for name, its in groups.items() if its == counter]
        places = max(by_name[name].shape[1] for name, its in groups.items() if its == counter)
        counts = _counts(counter, columns.get(counter), particles, places)
        if counter not in columns:
            column = Column(name=counter, values=counts)
            columns[counter] = _fitting(column, by_name[counter], count, False)
    starts = {}
    for name, column in columns.items():
        if column.counts is not None:
            starts[name] = np.concatenate([[0], np.cumsum(column.counts)])
    return Jets(
        inputs=inputs,
        columns=columns,
        groups=groups,
        starts=starts,
        count=count,
        jets_of_events=table.jets_of_events,
    )


def _by_names(inputs: Sequence[Tensor]) -> dict[str, str]:
    """Return the input of particles -> its counter, by their names: nPF counts PF_pT.

    A model with one whole number a jet has no other counter.
    """
    whole = []
    for tensor in inputs:
        if tensor.shape[1:] == (1,) and tensor.dtype.kind in "iu":
            whole.append(tensor.name)
    groups = {}
    for tensor in inputs:
        if not tensor.takes_lists:
            continue
        fitting = [name for name in whole if name[:1] == "n" and tensor.name.startswith(name[1:])]
        if not fitting and len(whole) == 1 and tensor.shape[1] == -1:
            fitting = whole
        if fitting:
            groups[tensor.name] = max(fitting, key=len)
    return groups


def _check_names(table: Table, names: Sequence[str], groups: Mapping[str, str]) -> None:
    """Raise InputError for missing columns, and for those of a dict that the model does not take.

    The counter of particles may be missing, because the lengths of their lists give it.
    """
    counters = {groups[name] for name in table.columns if name in groups}
    missing = [name for name in names if name not in table.columns and name not in counters]
    unexpected = [name for name in table.names if name not in names]
    if not missing and not (unexpected and table.strict):
        return
    parts = []
    if missing:
        parts.append(f"the jets lack what the model takes: {_name_list(missing, unexpected)}")
    if unexpected:
        parts.append(f"the model does not take: {_name_list(unexpected, missing or names)}")
    if not missing:
        parts.append(f"it takes: {_name_list(names, [])}")
    raise InputError("; ".join(parts))


def _name_list(names: Sequence[str], others: Sequence[str], most: int = 30) -> str:
    """Return the names, each with the nearest of the others."""
    words = []
    for name in names[:most]:
        near = nearest(name, others, 1)
        words.append(f"'{name}' (nearest: '{near[0]}')" if near else f"'{name}'")
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(words) + more


def _of_one_jet(columns: Mapping[str, object], inputs: Mapping[str, Tensor]) -> dict[str, object]:
    """Return the columns of jets, where they may be the numbers of one jet."""
    single = [name for name, raw in columns.items() if is_one_number(raw)]
    if not single:
        return dict(columns)
    for name in columns:
        if name not in single and not inputs[name].takes_lists:
            raise InputError(
                f"column '{single[0]}' is one number and '{name}' is not; give a number for each"
                " jet in every column"
            )
    return {name: [raw] for name, raw in columns.items()}


def _number_of_jets(columns: Mapping[str, Column]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(lengths))
    for name, length in lengths.items():
        if length != lengths[first]:
            raise InputError(
                f"column '{first}' has {lengths[first]} jets and column '{name}' has {length};"
                " give one entry for each jet in every column"
            )
    return lengths[first]


def _fitting(column: Column, tensor: Tensor, count: int, has_counter: bool) -> Column:
    """Return the column in the type and shape of its input; lists of particles stay lists.

    has_counter: whether a counter gives the number of its real values. Raises InputError for
    another shape, and for values that the type cannot hold.
    """
    if count == 0:
        shape = [max(1, size) for size in tensor.shape[1:]]
        return Column(name=column.name, values=np.zeros((0, *shape), tensor.dtype))
    values, counts = cast(column, tensor.dtype), column.counts
    size = tensor.shape[1] if tensor.takes_lists else 1
    if counts is not None and tensor.takes_lists and (size == -1 or has_counter):
        too_long = np.flatnonzero((counts > size) & (size != -1))
        if len(too_long):
            jet = too_long[0]
            raise InputError(
                f"column '{column.name}' has length {counts[jet]} in jet {jet}, the model has"
                f" places for {size}; give at most {size} for each jet"
            )
        return Column(name=column.name, values=values, counts=counts)
    if counts is not None:
        other = np.flatnonzero(counts != counts[0])
        jet = int(other[0]) if len(other) else 0
        if len(other) or counts[0] == 0:
            raise InputError(
                f"column '{column.name}' has length {counts[jet]} in jet {jet};"
                f" {_shape_words(tensor)}"
            )
        values = values.reshape(count, -1)
    if tensor.shape[1:] == (1,) and values.ndim == 1:
        values = values[:, None]
    if tensor.shape[1:] == () and values.shape[1:] == (1,):
        values = values[:, 0]
    own, its = values.shape[1:], tensor.shape[1:]
    same = len(own) == len(its) and all(b in (-1, a) for a, b in zip(own, its, strict=True))
    narrow = has_counter and len(own) == 1 and 0 < own[0] <= size  # padded to fewer places
    if not same and not narrow:
        content = f"an array of shape {own} for each jet" if own else "one number for each jet"
        raise InputError(f"column '{column.name}' has {content}; {_shape_words(tensor)}")
    return Column(name=column.name, values=values)


def _shape_words(tensor: Tensor) -> str:
    if tensor.shape[1:] in ((), (1,)):
        return "the model takes one number a jet"
    if tensor.shape[1:] == (-1,):
        return "the model takes a list of numbers for each jet"
    return f"the model takes the shape {tensor.shape[1:]} for each jet (-1: any size)"


def _counts(
    counter: str, counter_column: Column | None, particles: Sequence[Column], places: int
) -> np.ndarray:
    """Return how many particles each jet has, (N,).

    places: how many the model has for each jet; -1 for any number. Raises InputError if columns
    disagree, or if none gives the number. A number beyond all columns is no error here: the model
    says that such a jet is not valid.
    """
    lists = [column for column in particles if column.counts is not None]
    counts = None
    where = counter
    if counter_column is not None:
        counts = counter_column.values.reshape(-1)
    elif lists:
        where, counts = lists[0].name, lists[0].counts
    if counts is None:
        if len(particles[0]) == 0:
            return np.zeros(0, np.int64)
        names = ", ".join(f"'{column.name}'" for column in particles)
        raise InputError(
            f"the jets lack '{counter}', the number of particles of each jet: {names} have equally"
            " many places for all jets, so that particles cannot be told from padding; add the"
            f" column '{counter}', or give lists without padding"
        )
    most_places = max([places, *(c.values.shape[1] for c in particles if c.counts is None)])
    for column in particles:
        if column.counts is not None:
            differ = np.flatnonzero(counts != column.counts)
            if len(differ):
                jet = differ[0]
                raise InputError(
                    f"column '{column.name}' has length {column.counts[jet]} in jet {jet},"
                    f" '{where}' says {counts[jet]}; correct one of them"
                )
        else:
            # Padding to the places of other columns would make particles of zeros.
            are_padded = (counts <= most_places) | bool(lists)
            beyond = np.flatnonzero((counts > column.values.shape[1]) & are_padded)
            if len(beyond):
                jet = beyond[0]
                raise InputError(
                    f"column '{column.name}' has {column.values.shape[1]} places a jet, '{where}'"
                    f" says {counts[jet]} for jet {jet}; correct one of them"
                )
    return counts


def cast(column: Column, dtype: np.dtype) -> np.ndarray:
    """Return the values in another type. Raises InputError, which names jet and value, for a loss.

    Floating-point numbers are rounded to the type's precision, which is no loss; whole numbers that
    it does not have, and numbers beyond its range, are.
    """
    values = column.values
    native = values.dtype.newbyteorder("=")
    to_float = native.kind in "iu" and dtype.kind == "f"  # NumPy calls int64 to float64 safe
    if native == dtype or (np.can_cast(native, dtype, "safe") and not to_float):
        return values.astype(dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        result: np.ndarray = values.astype(dtype)
        is_changed = _is_changed(values, result)
    places = np.flatnonzero(is_changed)
    if len(places):
        place = int(places[0])
        raise InputError(
            f"column '{column.name}' has {values.ravel()[place]} in jet {column.jet_of(place)},"
            f" which {dtype}, the model's type, cannot hold; correct it, or leave the jet out"
        )
    return result


def _is_changed(values: np.ndarray, result: np.ndarray) -> np.ndarray:
    """Return where the result of a cast differs from the value: a mask of the values' shape."""
    kind, target = values.dtype.kind, result.dtype
    is_changed: np.ndarray
    if target.kind == "b":
        is_changed = (values != 0) & (values != 1)
    elif target.kind == "f" and kind == "f":
        is_changed = np.isinf(result) & np.isfinite(values)
    elif target.kind == "f":
        # Up to there all whole numbers are held; beyond, those whose last bits are zero.
        is_changed = np.abs(values.astype(np.float64)) > 2 ** MANTISSA[target.itemsize]
        pairs = zip(values[is_changed].tolist(), result[is_changed].tolist(), strict=True)
        is_changed[is_changed] = [
            not np.isfinite(after) or int(after) != before for before, after in pairs
        ]
    elif kind == "f":
        least, most = float(np.iinfo(target).min), float(np.iinfo(target).max) + 1
        is_changed = ~((values >= least) & (values < most) & (values == np.trunc(values)))
    else:
        is_changed = (values < np.iinfo(target).min) | (values > np.iinfo(target).max)
    return is_changed
