"""Columns of lists as numpy arrays, and expressions on such columns.

    Lists          positions of each jet's entries in a flat array; columns with the same lists
                   share one object
    JaggedColumn   a flat array with its lists; selecting jets and truncating lists copies nothing
                   until the content is needed
    evaluate       evaluate an expression: an elementwise one in numpy on the flat content, which
                   gives the same bits and is faster, any other in awkward

A column of one number a jet is a numpy array (N,).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from common.errors import InputError
from weaver.config.expressions import Expression

Column = Any
"""A column of N jets: a numpy array (N,), a JaggedColumn, or an awkward array.

awkward's type is not named because awkward is imported late.
"""
Columns = dict[str, Column]
"""Name -> column, all of the same jets."""


class Lists:
    """Positions of lists: jet i has the entries starts[i] : starts[i] + counts[i] of an array."""

    def __init__(self, starts: np.ndarray, counts: np.ndarray) -> None:
        """Take `starts` and `counts`, both (N,) int64."""
        self.starts = starts
        self.counts = counts
        self._positions: np.ndarray | slice | None = None
        self._last_subset: tuple[Any, Lists] | None = None
        self._compact: Lists | None = None

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.counts)

    def positions(self) -> np.ndarray | slice:
        """Return the positions of the entries of all jets, one jet after the other.

        A slice if they are in this order in the flat array, without gaps.
        """
        if self._positions is None:
            # from a jet's position among all entries to its position in the flat array, (N,)
            shift = self.starts - (np.cumsum(self.counts) - self.counts)
            number = int(self.counts.sum())
            if not len(shift) or (shift == shift[0]).all():
                start = int(shift[0]) if len(shift) else 0
                self._positions = slice(start, start + number)
            else:
                self._positions = np.arange(number)
                self._positions += np.repeat(shift, self.counts)
        return self._positions

    def compact(self) -> Lists:
        """Return the lists with the same lengths, in a flat array without gaps.

        Results of expressions on columns with these lists have this form.
        """
        if self._compact is None:
            self._compact = Lists(np.cumsum(self.counts) - self.counts, self.counts)
        return self._compact

    def select(self, jets: np.ndarray | slice) -> Lists:
        """Select jets by a mask (N,), indices (n,) or a slice.

        A second call with the same object returns the same Lists, so that columns still share them.
        """
        if self._last_subset is None or self._last_subset[0] is not jets:
            self._last_subset = jets, Lists(self.starts[jets], self.counts[jets])
        return self._last_subset[1]

    def head(self, most: int) -> Lists:
        """Keep the first `most` entries of each jet."""
        if self._last_subset is None or self._last_subset[0] is not most:
            self._last_subset = most, Lists(self.starts, np.minimum(self.counts, most))
        return self._last_subset[1]


class JaggedColumn:
    """A column with a list of numbers for each jet."""

    ndim = 2

    def __init__(self, source: np.ndarray, lists: Lists, *, optional: bool = False) -> None:
        """Take a flat array, in any byte order, and the lists in it."""
        self._source = source
        self.lists = lists
        self.optional = optional
        """True for numbers of an option type (from parquet), of which none is missing.

        weaver-core standardises these in their own type, other lists in float32.
        """
        self._content: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.lists)

    def __getitem__(self, jets: np.ndarray | slice) -> JaggedColumn:
        """Return the same column of some jets."""
        return JaggedColumn(self._source, self.lists.select(jets), optional=self.optional)

    def head(self, most: int) -> JaggedColumn:
        """Return the column with at most the first `most` particles of each jet."""
        return JaggedColumn(self._source, self.lists.head(most), optional=self.optional)

    @property
    def counts(self) -> np.ndarray:
        """Number of particles of each jet; (N,)."""
        return self.lists.counts

    @property
    def content(self) -> np.ndarray:
        """The entries of all jets, one jet after the other, in native byte order."""
        if self._content is None:
            positions = self.lists.positions()
            if isinstance(positions, slice):
                entries = self._source[positions]
            else:
                # gather them as unsigned integers, because numpy is slow with foreign byte order
                numbers = self._source.view(f"u{self._source.itemsize}")
                entries = np.take(numbers, positions).view(self._source.dtype)
            native = self._source.dtype.newbyteorder("=")
            self._content = entries.astype(native, copy=False)
        return self._content

    def to_awkward(self) -> Any:
        """Convert to an awkward array."""
        import awkward as ak

        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.counts, out=offsets[1:])
        content = ak.contents.NumpyArray(self.content)
        if self.optional:
            content = ak.contents.UnmaskedArray(content)
        return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), content))


def plain(values: Column) -> Column:
    """Convert a column to a numpy array or a JaggedColumn if it is numbers or lists of numbers.

    Other columns are returned unchanged.
    """
    if isinstance(values, JaggedColumn | np.ndarray):
        return values
    import awkward as ak

    layout = ak.to_layout(values)
    if isinstance(layout, ak.contents.NumpyArray) and layout.data.ndim == 1:
        return np.asarray(layout.data)
    # a list of letters is a text, which has the parameter __array__
    if not isinstance(layout, ak.contents.ListOffsetArray) or layout.parameter("__array__"):
        return values
    content = layout.content
    optional = isinstance(content, ak.contents.UnmaskedArray)
    if optional:
        content = content.content
    if not isinstance(content, ak.contents.NumpyArray) or content.data.ndim != 1:
        return values
    offsets = np.asarray(layout.offsets.data).astype(np.int64, copy=False)
    lists = Lists(offsets[:-1], np.diff(offsets))
    return JaggedColumn(np.asarray(content.data), lists, optional=optional)


def without_options(values: Column) -> Column:
    """Remove option types and indexed forms from a column, if no value is missing.

    An option type of lists' entries becomes `UnmaskedArray`, which `plain` recognises.
    """
    if isinstance(values, JaggedColumn | np.ndarray):
        return values
    import awkward as ak

    layout = _dense(ak.to_layout(values).to_packed())
    return plain(ak.Array(layout, behavior=ak.behavior))


def _dense(layout: Any, *, in_lists: bool = False) -> Any:
    """Remove option types and indexed forms from a packed layout, if no value is missing."""
    import awkward as ak

    was_option = layout.is_option
    if was_option and np.asarray(layout.mask_as_bool(valid_when=False)).any():
        return layout
    if was_option or layout.is_indexed:
        layout = layout.project()
    if layout.parameter("__array__"):  # a text
        return layout
    if layout.is_list:
        inner = _dense(layout.content, in_lists=True)
        if layout.is_regular:
            return ak.contents.RegularArray(inner, layout.size, zeros_length=len(layout))
        return ak.contents.ListOffsetArray(layout.to_ListOffsetArray64(True).offsets, inner)
    if layout.is_record:
        contents = [_dense(content, in_lists=in_lists) for content in layout.contents]
        return ak.contents.RecordArray(
            contents, layout.fields, len(layout), parameters=layout.parameters
        )
    if was_option and in_lists and isinstance(layout, ak.contents.NumpyArray):
        return ak.contents.UnmaskedArray(layout)
    return layout


def common_type(types: Iterable[np.dtype]) -> np.dtype:
    """Return the common type of numbers of all these types, by numpy's rules.

    For signed with unsigned 64-bit integers numpy's is float64, which rounds. Here it is int64, and
    `cast_exactly` raises an error for larger numbers.
    """
    dtypes = list(types)
    common = np.result_type(*dtypes)
    if common.kind == "f" and all(dtype.kind in "biu" for dtype in dtypes):
        return np.dtype(np.int64)
    return common


def cast_exactly(numbers: np.ndarray, dtype: np.dtype, name: str, where: str) -> np.ndarray:
    """Cast numbers to a type.

    Args:
        numbers: (N,).
        dtype: the type of the result.
        name: of the column, for the error.
        where: the file, for the error.

    Returns:
        (N,) of the type.

    Raises:
        InputError: a 64-bit integer that the type cannot represent.
    """
    is_large = numbers.dtype.kind in "iu" and numbers.dtype.itemsize == 8
    if is_large and dtype != numbers.dtype and len(numbers):
        most = 2**53 if dtype.kind == "f" else int(np.iinfo(dtype).max)
        least, largest = int(numbers.min()), int(numbers.max())
        if largest > most or least < -most:
            raise InputError(
                f"{where}: '{name}' is {numbers.dtype} and holds {max(largest, -least):,}, which"
                f" {dtype}, the common type of all files, cannot hold; write '{name}' with one"
                " type into all files"
            )
    return numbers.astype(dtype, copy=False)


def convert_column(values: Column, dtype: np.dtype, name: str, where: str) -> Column:
    """Cast a column to another type; `where` names the file in the error.

    Raises InputError for 64-bit integers that the type cannot represent.
    """
    values = plain(values)
    if isinstance(values, np.ndarray):
        return cast_exactly(values, dtype, name, where)
    if isinstance(values, JaggedColumn):
        content = cast_exactly(values.content, dtype, name, where)
        return JaggedColumn(content, values.lists.compact(), optional=values.optional)
    import awkward as ak

    # only to check that the type can represent them
    cast_exactly(np.asarray(ak.drop_none(ak.flatten(values, axis=None))), dtype, name, where)
    return ak.values_astype(values, dtype)


def to_awkward(values: Column) -> Any:
    """Convert a column to an awkward array."""
    import awkward as ak

    return values.to_awkward() if isinstance(values, JaggedColumn) else ak.Array(values)


def same_lists(columns: Iterable[JaggedColumn]) -> bool:
    """Return True if all columns have the same number of entries in each jet."""
    first, *others = (column.counts for column in columns)
    return all(other is first or np.array_equal(other, first) for other in others)


def evaluate(expression: Expression, columns: Mapping[str, Column]) -> Any:
    """Evaluate an expression; returns a JaggedColumn, an array (N,), or awkward's result.

    Raises InputError as Expression.evaluate does.
    """
    operands = {name: columns[name] for name in expression.names if name in columns}
    if expression.is_elementwise and len(operands) == len(expression.names):
        # after an error awkward is tried: it may succeed, or raise the error that users see
        with contextlib.suppress(InputError):
            values = _evaluate_flat(expression, operands)
            if values is not None:
                return values
    in_awkward = {name: to_awkward(values) for name, values in operands.items()}
    return expression.evaluate({**columns, **in_awkward})


def _evaluate_flat(
    expression: Expression, columns: Mapping[str, Column]
) -> JaggedColumn | np.ndarray | None:
    """Evaluate on the flat content; the number of a jet is repeated for each of its entries.

    Returns None if the columns have other forms, or their lists differ.
    """
    lists: list[JaggedColumn] = []
    for column in columns.values():
        if isinstance(column, JaggedColumn):
            lists.append(column)
        elif not isinstance(column, np.ndarray) or column.ndim != 1:
            return None
    if not columns or (lists and not same_lists(lists)):
        return None
    if not lists:
        return expression.evaluate(columns)

    counts = lists[0].counts
    flat = {}
    for name, column in columns.items():
        is_list = isinstance(column, JaggedColumn)
        flat[name] = column.content if is_list else np.repeat(column, counts)
    values = expression.evaluate(flat)
    if hasattr(values, "layout"):  # the result of a function of awkward
        values = plain(values)
    if not isinstance(values, np.ndarray):
        return None
    optional = any(column.optional for column in lists)
    return JaggedColumn(values, lists[0].lists.compact(), optional=optional)
