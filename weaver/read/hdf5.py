"""HDF5 files in weaver-core's layout: one array for each branch at the root of the file.

An array is (N,) or (N, k), the first axis being the jets; of (N, k) all k entries count as
particles, zeros included, as in weaver-core. PyTables reads the files, which knows the compressions
that PyTables wrote them with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from common import storage
from common.errors import InputError
from weaver.read.jagged import Columns

SUFFIXES = (".h5", ".hdf5")


@contextlib.contextmanager
def open_file(uri: str) -> Iterator[Any]:
    """The file opened with PyTables.

    Raises whatever PyTables raises, and InputError without PyTables or for an s3:// address.
    """
    if storage.is_s3(uri):
        raise InputError(
            f"{uri}: HDF5 is read from a disk only; download the file, or write the jets as ROOT or"
            " parquet"
        )
    try:
        import tables
    except ImportError:
        raise InputError(
            f"reading {uri} takes PyTables; type: pip install '.[hdf5]' (where the project is not:"
            " pip install tables)"
        ) from None
    with tables.open_file(uri) as file:
        yield file


def names(file: Any) -> list[str]:
    """Names of the arrays at the root."""
    return [node._v_name for node in file.root if hasattr(node, "shape")]


def unreadable_type(file: Any, name: str) -> str | None:
    """The type of an array that does not hold numbers; None for the others."""
    node = getattr(file.root, name)
    is_numeric = node.dtype.kind in "biuf" and len(node.shape) in (1, 2)
    return None if is_numeric else f"{node.dtype}{list(node.shape)}"


def num_jets(uri: str, file: Any, columns: Iterable[str]) -> int:
    """The jets of the file. Raises InputError where its arrays have different lengths."""
    lengths = {name: int(getattr(file.root, name).shape[0]) for name in columns}
    if len(set(lengths.values())) > 1:
        raise InputError(f"{uri}: the arrays have different lengths: {lengths}")
    return next(iter(lengths.values()), 0)


def uncompressed_bytes(file: Any, columns: Iterable[str]) -> int:
    """Of these arrays in the whole file."""
    size = 0
    for name in columns:
        node = getattr(file.root, name)
        size += int(np.prod(node.shape)) * node.dtype.itemsize
    return size


def steps(
    file: Any, columns: Iterable[str], rows: int, first: int, stop: int, *, as_lists: bool
) -> Iterator[Columns]:
    """Arrays as numpy (N,) or awkward arrays, `rows` jets at a time, of the jets first:stop.

    as_lists: make (N, k) lists of k entries, which are standardised in float32 as lists are.
    """
    import awkward as ak

    columns = sorted(columns)
    for start in range(first, stop, rows):
        step: Columns = {}
        for name in columns:
            values = getattr(file.root, name)[start : min(start + rows, stop)]
            is_flat = values.ndim == 1
            step[name] = values if is_flat else ak.from_numpy(values, regulararray=as_lists)
        yield step
