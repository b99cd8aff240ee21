"""Parquet files as data files, with the checks and steps of ROOT files (weaver/read/files.py).

A column is a branch: a number, or a list of numbers, for each jet. Missing values are refused where
there are any.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from common import storage
from common.errors import InputError
from weaver.read.jagged import Columns

SUFFIX = ".parquet"


@contextlib.contextmanager
def open_file(uri: str) -> Iterator[Any]:
    """The file as a pyarrow ParquetFile.

    Raises whatever pyarrow raises, and InputError without pyarrow.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError(f"reading {uri} takes pyarrow; type: pip install pyarrow") from None
    with contextlib.ExitStack() as stack:
        source = uri
        if storage.is_s3(uri):
            import s3fs

            source = stack.enter_context(s3fs.S3FileSystem(**storage.s3_options()).open(uri, "rb"))
        yield stack.enter_context(pyarrow.parquet.ParquetFile(source))


def names(file: Any) -> list[str]:
    """Names of the file's columns."""
    return file.schema_arrow.names


def unreadable_type(file: Any, name: str) -> str | None:
    """The type of a column that is neither a number nor a list of numbers."""
    import pyarrow.types as kinds

    kind = file.schema_arrow.field(name).type
    inner = kind
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        inner = kind.value_type
    readable = kinds.is_integer(inner) or kinds.is_floating(inner) or kinds.is_boolean(inner)
    return None if readable else str(kind)


def number_type(file: Any, name: str) -> Any:
    """The numpy type of a column's numbers, also of those in lists; None for other forms."""
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
    """Of these columns in the whole file."""
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


def steps(file: Any, columns: Iterable[str], rows: int, stop: int | None) -> Iterator[Columns]:
    """Columns as awkward arrays, `rows` jets at a time, up to jet `stop`.

    Raises InputError where a value is missing.
    """
    import awkward as ak

    left = file.metadata.num_rows if stop is None else stop
    columns = sorted(columns)
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        part = batch.slice(0, left)
        if part.num_rows:
            step = {}
            for name in columns:
                values = ak.from_arrow(part.column(name))
                entry_missing = ak.any(ak.is_none(values, axis=-1), axis=None)
                if entry_missing or ak.any(ak.is_none(values, axis=0)):
                    raise InputError(
                        f"column '{name}' has missing values; fill them when the file is written"
                    )
                # parquet gives every column the type of one that may have missing values
                step[name] = ak.drop_none(ak.drop_none(values, axis=0), axis=-1)
            yield step
        left -= part.num_rows
        if not left:
            return
