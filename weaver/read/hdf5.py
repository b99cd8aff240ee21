"""HDF5 files in weaver-core's layout: one array for each branch at the root of the file.

An array is (N,) or (N, k), with the jets along the first axis. Of (N, k) all k entries count as
particles, also zeros, as in weaver-core. The files are read with PyTables, which supports its own
compressions.
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
    """Open a file with PyTables.

    Raises errors of PyTables, and InputError if PyTables is not installed.
    """
    try:
        import tables
    except ImportError:
        raise InputError(
            f"to read {uri}, install PyTables; type: pip install '.[hdf5]' (outside of the project:"
            " pip install tables)"
        ) from None
    options: dict[str, Any] = {}
    if not storage.is_local(uri):
        # HDF5's library cannot read from file objects, so the whole file is read into memory.
        options = {
            "driver": "H5FD_CORE",
            "driver_core_image": storage.read_bytes(uri),
            "driver_core_backing_store": 0,
        }
    with tables.open_file(uri, **options) as file:
        yield file


def names(file: Any) -> list[str]:
    """Return the names of the arrays at the root of the file."""
    return [node._v_name for node in file.root if hasattr(node, "shape")]


def unreadable_type(file: Any, name: str) -> str | None:
    """Return the type of an array that cannot be read, for an error; None for numeric arrays."""
    node = getattr(file.root, name)
    is_numeric = node.dtype.kind in "biuf" and len(node.shape) in (1, 2)
    return None if is_numeric else f"{node.dtype}{list(node.shape)}"


def num_jets(uri: str, file: Any, columns: Iterable[str]) -> int:
    """Return the number of jets. Raises InputError if the arrays have different lengths."""
    lengths = {name: int(getattr(file.root, name).shape[0]) for name in columns}
    if len(set(lengths.values())) > 1:
        raise InputError(
            f"{uri}: the arrays have different lengths: {lengths}; write one value for each jet"
            " into every array"
        )
    return next(iter(lengths.values()), 0)


def uncompressed_bytes(file: Any, columns: Iterable[str]) -> int:
    """Return the number of bytes of these arrays in the whole file."""
    size = 0
    for name in columns:
        node = getattr(file.root, name)
        size += int(np.prod(node.shape)) * node.dtype.itemsize
    return size


def steps(
    file: Any, columns: Iterable[str], rows: int, first: int, stop: int, *, as_lists: bool
) -> Iterator[Columns]:
    """Yield the jets first:stop, `rows` at a time, as numpy (N,) or awkward arrays.

    as_lists: turn arrays (N, k) into lists of k entries, which are standardised in float32.
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
