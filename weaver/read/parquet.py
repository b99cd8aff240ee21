"""Parquet files as data files, with the same checks and steps as ROOT files.

A column is a branch. It has for each jet a number, a list of numbers (of variable or fixed size),
or a record or list of records of them, whose fields an expression selects (`part.pt` or
`part["pt"]`). Columns may be declared nullable, as pandas, pyarrow and polars do by default. If
values are missing, an expression must fill them (`ak.fill_none`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from common import storage
from common.errors import InputError
from weaver.read.jagged import Columns, without_options

SUFFIX = ".parquet"


@contextlib.contextmanager
def open_file(uri: str) -> Iterator[Any]:
    """Open a file as a pyarrow ParquetFile.

    Raises errors of pyarrow, and InputError if pyarrow is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"{uri} needs pyarrow; type: pip install pyarrow") from None
    with contextlib.ExitStack() as stack:
        source = uri if storage.is_local(uri) else stack.enter_context(storage.open_file(uri))
        yield stack.enter_context(pyarrow.parquet.ParquetFile(source))


def names(file: Any) -> list[str]:
    """Return the names of the file's columns."""
    return file.schema_arrow.names


def unreadable_type(file: Any, name: str) -> str | None:
    """Return the type of a column that cannot be read, for an error; None for numbers and text."""
    kind = file.schema_arrow.field(name).type
    return None if _is_readable(kind) or is_text(file, name) else str(kind)


def is_text(file: Any, name: str) -> bool:
    """Return whether a column has one text for each jet, which only expressions can use."""
    import pyarrow.types as kinds

    kind = file.schema_arrow.field(name).type
    if kinds.is_dictionary(kind):
        kind = kind.value_type
    return kinds.is_string(kind) or kinds.is_large_string(kind)


def _is_readable(kind: Any) -> bool:
    import pyarrow
    import pyarrow.types as kinds

    if isinstance(kind, pyarrow.BaseExtensionType):
        return _is_readable(kind.storage_type)
    if kinds.is_dictionary(kind):
        return _is_readable(kind.value_type)
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return _is_readable(kind.value_type)
    if kinds.is_struct(kind):
        return all(_is_readable(kind.field(i).type) for i in range(kind.num_fields))
    return kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)


def number_type(file: Any, name: str) -> Any:
    """Return the numpy type of a column's numbers, also of those in lists; None for other forms."""
    import numpy as np
    import pyarrow.types as kinds

    place = file.schema_arrow.get_field_index(name)
    if place < 0:  # no column of that name, or several
        return None
    kind = file.schema_arrow.field(place).type
    while hasattr(kind, "value_type"):  # a list, or a dictionary of values
        kind = kind.value_type
    if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)):
        return None
    return np.dtype(kind.to_pandas_dtype())


def uncompressed_bytes(file: Any, columns: Iterable[str]) -> int:
    """Return the number of bytes of these columns in the whole file."""
    names = set(columns)
    meta = file.metadata
    size = 0
    for group in range(meta.num_row_groups):
        for index in range(meta.num_columns):
            part = meta.row_group(group).column(index)
            # a list is stored as <name>.list.element
            if part.path_in_schema.partition(".")[0] in names:
                size += part.total_uncompressed_size
    return size


def steps(
    file: Any, columns: Iterable[str], rows: int, start: int, stop: int | None
) -> Iterator[Columns]:
    """Yield the jets start:stop, `rows` at a time, as columns of weaver/read/jagged.py."""
    import awkward as ak

    end = file.metadata.num_rows if stop is None else stop
    first = 0  # jet of the batch
    columns = sorted(columns)
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        offset = min(max(start - first, 0), batch.num_rows)
        part = batch.slice(offset, max(end - first - offset, 0))
        if part.num_rows:
            # every column of parquet has an option type, even if no value is missing
            yield {name: without_options(ak.from_arrow(part.column(name))) for name in columns}
        first += batch.num_rows
        if first >= end:
            return
