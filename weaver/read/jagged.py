"""Columns of lists as plain numpy arrays, and expressions over them.

    Lists      where each jet's entries lie in a flat array; columns of the same lists share one
    Jagged     a flat array with its lists; selecting jets and cutting lists move no number before
               the content is needed
    evaluate   an expression over such columns: elementwise ones in numpy on the flat content, which
               changes no bit and is faster, all others in awkward

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
"""A column of N jets: a numpy array (N,), a Jagged, or an awkward array.

awkward's type is not named because awkward is imported late.
"""
Columns = dict[str, Column]
"""Name -> column, all of the same jets."""


class Lists:
    """Jet i owns the entries starts[i] : starts[i] + counts[i] of a flat array; both (N,) int64."""

    def __init__(self, starts: np.ndarray, counts: np.ndarray) -> None:
        """`starts` and `counts` (N,) say where each jet's particles lie."""
        self.starts = starts
        self.counts = counts
        self._positions: np.ndarray | slice | None = None
        self._narrowed: tuple[Any, Lists] | None = None
        self._compact: Lists | None = None

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.counts)

    def positions(self) -> np.ndarray | slice:
        """The entries of all jets, one jet after the other.

        A slice where they lie in the flat array in this way, without gaps.
        """
        if self._positions is None:
            # from a jet's place among the entries of all jets to its place in the flat array, (N,)
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
        """Lists of the same lengths in a flat array that holds nothing else.

        Such an array is computed from columns of these lists.
        """
        if self._compact is None:
            self._compact = Lists(np.cumsum(self.counts) - self.counts, self.counts)
        return self._compact

    def select(self, jets: np.ndarray | slice) -> Lists:
        """Those of some jets (a mask, indices or a slice).

        The same object where it is called again with the same jets: columns go on sharing it.
        """
        if self._narrowed is None or self._narrowed[0] is not jets:
            self._narrowed = jets, Lists(self.starts[jets], self.counts[jets])
        return self._narrowed[1]

    def head(self, most: int) -> Lists:
        """The first `most` entries of each jet."""
        if self._narrowed is None or self._narrowed[0] is not most:
            self._narrowed = most, Lists(self.starts, np.minimum(self.counts, most))
        return self._narrowed[1]


class Jagged:
    """A list of numbers for each jet.

    `source`: flat numbers in any byte order, in which `lists` lie.
    """

    ndim = 2

    def __init__(self, source: np.ndarray, lists: Lists, *, optional: bool = False) -> None:
        """`source` holds the particles that `lists` points to."""
        self._source = source
        self.lists = lists
        self.optional = optional
        """True for numbers of an option type (parquet's), none of which is missing.

        weaver-core standardises them in their own type, all others in float32.
        """
        self._content: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self.lists)

    def __getitem__(self, jets: np.ndarray | slice) -> Jagged:
        """Return the same column of some jets."""
        return Jagged(self._source, self.lists.select(jets), optional=self.optional)

    def head(self, most: int) -> Jagged:
        """Return the column with at most the first `most` particles of each jet."""
        return Jagged(self._source, self.lists.head(most), optional=self.optional)

    @property
    def counts(self) -> np.ndarray:
        """Number of particles of each jet; (N,)."""
        return self.lists.counts

    @property
    def content(self) -> np.ndarray:
        """The entries of all jets, one jet after the other, in this machine's byte order."""
        if self._content is None:
            positions = self.lists.positions()
            if isinstance(positions, slice):
                entries = self._source[positions]
            else:
                # gathered as whole numbers: numpy is slow with the other byte order
                numbers = self._source.view(f"u{self._source.itemsize}")
                entries = np.take(numbers, positions).view(self._source.dtype)
            native = self._source.dtype.newbyteorder("=")
            self._content = entries.astype(native, copy=False)
        return self._content

    def to_awkward(self) -> Any:
        """The same as awkward array."""
        import awkward as ak

        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(self.counts, out=offsets[1:])
        content = ak.contents.NumpyArray(self.content)
        if self.optional:
            content = ak.contents.UnmaskedArray(content)
        return ak.Array(ak.contents.ListOffsetArray(ak.index.Index64(offsets), content))


def plain(values: Column) -> Column:
    """A column as numpy array or Jagged, where it is one number or one list of numbers a jet.

    Any other column is returned as it is.
    """
    if isinstance(values, Jagged | np.ndarray):
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
    return Jagged(np.asarray(content.data), lists, optional=optional)


def without_options(values: Column) -> Column:
    """A column without option types and indexed forms, as far as nothing is missing in it.

    Those of lists' entries become `UnmaskedArray`, which `plain` notes.
    """
    if isinstance(values, Jagged | np.ndarray):
        return values
    import awkward as ak

    layout = _dense(ak.to_layout(values).to_packed())
    return plain(ak.Array(layout, behavior=ak.behavior))


def _dense(layout: Any, *, in_lists: bool = False) -> Any:
    """The packed layout without option types and indexed forms where nothing is missing."""
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
    """The type that holds the numbers of all these types, as numpy promotes them.

    Signed and unsigned numbers of 64 bits have none in numpy but float64, which rounds; they get
    int64, and `exactly` refuses what is beyond it.
    """
    listed = list(types)
    common = np.result_type(*listed)
    if common.kind == "f" and all(dtype.kind in "biu" for dtype in listed):
        return np.dtype(np.int64)
    return common


def exactly(numbers: np.ndarray, dtype: np.dtype, name: str, where: str) -> np.ndarray:
    """Numbers in the common type of their column. `where`: the file, for the error.

    Raises InputError for whole numbers of 64 bits that the type cannot hold.
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


def converted(values: Column, dtype: np.dtype, name: str, where: str) -> Column:
    """A column with its numbers in another type, exactly. `where`: the file, for the error."""
    values = plain(values)
    if isinstance(values, np.ndarray):
        return exactly(values, dtype, name, where)
    if isinstance(values, Jagged):
        content = exactly(values.content, dtype, name, where)
        return Jagged(content, values.lists.compact(), optional=values.optional)
    import awkward as ak

    # only to see that it can hold them
    exactly(np.asarray(ak.drop_none(ak.flatten(values, axis=None))), dtype, name, where)
    return ak.values_astype(values, dtype)


def to_awkward(values: Column) -> Any:
    """A column as awkward array."""
    import awkward as ak

    return values.to_awkward() if isinstance(values, Jagged) else ak.Array(values)


def same_lists(columns: Iterable[Jagged]) -> bool:
    """True if all columns have as many entries in each jet."""
    first, *others = (column.counts for column in columns)
    return all(other is first or np.array_equal(other, first) for other in others)


def evaluate(expression: Expression, columns: Mapping[str, Column]) -> Any:
    """The value of an expression: Jagged, an array (N,), or what awkward makes of these columns.

    Raises InputError as Expression.evaluate does.
    """
    operands = {name: columns[name] for name in expression.names if name in columns}
    if expression.is_elementwise and len(operands) == len(expression.names):
        # awkward may do what numpy does not, and otherwise words the refusal
        with contextlib.suppress(InputError):
            values = _evaluate_flat(expression, operands)
            if values is not None:
                return values
    in_awkward = {name: to_awkward(values) for name, values in operands.items()}
    return expression.evaluate({**columns, **in_awkward})


def _evaluate_flat(
    expression: Expression, columns: Mapping[str, Column]
) -> Jagged | np.ndarray | None:
    """The value on flat content, a number of a jet repeated for each of its entries.

    None where the columns are of other forms, or their lists differ.
    """
    lists: list[Jagged] = []
    for column in columns.values():
        if isinstance(column, Jagged):
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
        is_list = isinstance(column, Jagged)
        flat[name] = column.content if is_list else np.repeat(column, counts)
    values = expression.evaluate(flat)
    if hasattr(values, "layout"):  # of one of awkward's own functions
        values = plain(values)
    if not isinstance(values, np.ndarray):
        return None
    optional = any(column.optional for column in lists)
    return Jagged(values, lists[0].lists.compact(), optional=optional)
