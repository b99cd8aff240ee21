"""Open one data file: check its header, find its tree, and make errors for unreadable files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import storage
from common.errors import InputError, JecError, unknown
from common.storage import Entry
from common.storage.addresses import local_path
from common.storage.local import explain
from weaver.read import hdf5, parquet
from weaver.read.remote import Ends, Fetch

HEADER = 100  # bytes of a ROOT file's header that contain its version and its end
LARGE_FILE = 1_000_000  # ROOT adds it to the version of a file whose end is a 64-bit number
REMEDY = "copy it again, or leave damaged files out with --skip-bad-files"
TREE_REMEDY = (
    "name another as 'treename' in the data config, or leave such files out with --skip-bad-files"
)


class DamagedFile(InputError):
    """A file that is truncated or cannot be read; the message names it."""

    whole_size: int | None = None
    """The number of bytes that it should have, if known."""


def unreadable(uri: str, error: Exception) -> JecError:
    """Convert an exception of a reader to an error about the file; a JecError is returned as it is.

    Failures of the storage or the disk become StorageErrors, because the file may be good.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, JecError):
            return cause
        # Libraries raise OSErrors without errno for faults in the file. A damaged file may also
        # contain a position before its start, which gives EINVAL.
        if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
            return explain(cause, uri)
        cause = cause.__cause__
    lines = str(error).strip().splitlines()
    if _is_unknown_form(error):
        return InputError(
            f"{uri} is not readable: {lines[0] if lines else type(error).__name__}; write the jets"
            " as a TTree of numbers and lists of numbers, or as parquet"
        )
    kind = "parquet" if uri.endswith(parquet.SUFFIX) else "ROOT"
    if uri.endswith(hdf5.SUFFIXES):
        kind = "HDF5"
    return DamagedFile(
        f"cannot read {uri} as a {kind} file: {lines[0] if lines else type(error).__name__};"
        f" {REMEDY}"
    )


def _is_unknown_form(error: Exception) -> bool:
    """Return whether a reader does not support the content of a file that is not damaged."""
    names = {kind.__name__ for kind in type(error).__mro__}
    unknown_forms = {"NotImplementedError", "CannotBeAwkward", "UnknownInterpretation"}
    return isinstance(error, ImportError) or bool(names & unknown_forms)


def check_header(entry: Entry, fetch: Fetch) -> None:
    """Check that a file starts as ROOT files do, and is as long as its header says.

    Raises DamagedFile.
    """
    header = bytes(fetch(0, HEADER))
    if len(header) < 20 or header[:4] != b"root":
        begins = f"it begins with {header[:8]!r}" if header else "it is empty"
        raise DamagedFile(
            f"{entry.uri} is not a ROOT file: {begins}; replace the file, or leave it out with"
            " --skip-bad-files"
        )
    # big-endian: "root", version, place of the first record, end
    (version,) = struct.unpack_from(">i", header, 4)
    (end,) = struct.unpack_from(">q" if version >= LARGE_FILE else ">i", header, 12)
    if entry.size < end:
        error = DamagedFile(
            f"{entry.uri} is truncated: it should have {end:,} bytes and has {entry.size:,};"
            f" {REMEDY}"
        )
        error.whole_size = end
        raise error


@contextlib.contextmanager
def open_bytes(uri: str, entry: Entry | None = None) -> Iterator[Fetch]:
    """Open a file; yields a function (first byte, number of bytes) -> bytes.

    entry: that of the file, from a listing. Raises InputError or StorageError if the file cannot be
    opened or read.
    """
    if storage.is_local(uri):
        path = local_path(uri)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise unreadable(uri, error) from error
        try:
            yield lambda start, size: os.pread(file, size, start)
        finally:
            os.close(file)
        return
    with storage.open_source(uri, entry) as source:
        yield Ends(source)


@contextlib.contextmanager
def open_file(uri: str) -> Iterator[Any]:
    """Open a file with uproot. Raises InputError or StorageError."""
    import uproot

    try:
        # A Path or a dict, because in a string uproot treats text after a colon as the name of an
        # object.
        if storage.is_local(uri):
            root_file = uproot.open(Path(uri))
        else:
            from weaver.read.uproot_source import StorageSource

            root_file = uproot.open({uri: None}, handler=StorageSource)
    # uproot raises many kinds for a damaged file (struct, zlib, key and value errors)
    except Exception as error:
        raise unreadable(uri, error) from error
    with root_file as file:
        yield file


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[Any]:
    """Open a file with pyarrow. Raises InputError or StorageError."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(parquet.open_file(uri))
        except Exception as error:  # pyarrow has many types of its own
            raise unreadable(uri, error) from error
        yield file


@contextlib.contextmanager
def open_hdf5(uri: str) -> Iterator[Any]:
    """Open a file with PyTables. Raises InputError or StorageError."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(hdf5.open_file(uri))
        except Exception as error:  # PyTables has many types of its own
            raise unreadable(uri, error) from error
        yield file


def find_tree(uri: str, file: Any, treename: str | None) -> str:
    """Find the path, with cycle, of the tree or RNTuple to read in an open file.

    Without a treename, RNTuples count only in a file without trees, as in weaver-core. Raises
    DamagedFile if the file does not have the tree, InputError if it has several and none is named.
    """
    try:
        keys = file.keys(recursive=True, cycle=True, filter_classname="TTree")
        ntuples = file.keys(recursive=True, cycle=True, filter_classname="ROOT::RNTuple")
    except Exception as error:
        raise unreadable(uri, error) from error
    if not keys and not ntuples and not getattr(file, "_fSeekKeys", 1):
        raise DamagedFile(
            f"{uri} was never closed by the program that wrote it, so its index is missing;"
            f" {REMEDY}"
        )
    if treename is not None:
        keys = [*keys, *ntuples]
    return choose_tree(uri, keys or ntuples, treename)


def choose_tree(uri: str, keys: Sequence[str], treename: str | None) -> str:
    """Choose from the paths, with cycles, of all trees: the named tree's newest, or the only tree.

    A file stores cycles as signed 16-bit integers: 32768 is stored as -32768. `keys` have the
    stored numbers; a treename may have either. Raises DamagedFile if there is no such tree,
    InputError if there are several and none is named.
    """
    newest: dict[str, int] = {}  # path -> its newest cycle as ROOT counts them
    keys_by_cycle: dict[tuple[str, int], str] = {}
    for key in keys:
        path, cycle = _cycle(key)
        newest[path] = max(newest.get(path, 0), cycle)
        keys_by_cycle[path, cycle] = key
    if treename is not None and re.search(r";-?\d+$", treename):
        with_cycle = _cycle(treename)
        if with_cycle in keys_by_cycle:
            return keys_by_cycle[with_cycle]
    if not newest:
        raise DamagedFile(f"{uri} contains no tree; {REMEDY}")
    if treename is None:
        if len(newest) != 1:
            raise InputError(
                f"{uri} contains {len(newest)} trees ({', '.join(sorted(newest)) or 'none'}); name"
                " one as 'treename' in the data config"
            )
        treename = next(iter(newest))
    if treename not in newest:
        raise DamagedFile(f"{uri}: {unknown('tree', treename, newest)}; {TREE_REMEDY}")
    return keys_by_cycle[treename, newest[treename]]


def _cycle(key: str) -> tuple[str, int]:
    """Split a path with the stored cycle into the path and ROOT's (unsigned) cycle."""
    path, _, cycle = key.rpartition(";")
    return path, int(cycle) % 2**16
