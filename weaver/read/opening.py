"""Opening one data file: its header, its tree, and the errors for what cannot be read."""

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

HEADER = 100  # bytes of a ROOT file's header that hold its version and its end
LARGE_FILE = 1_000_000  # ROOT adds it to the version of a file whose end is a 64-bit number
REMEDY = "copy it again, or leave damaged files out with --skip-bad-files"
TREE_REMEDY = (
    "name another as 'treename' in the data config, or leave such files out with --skip-bad-files"
)


class DamagedFile(InputError):
    """A file that is truncated or cannot be read; the text names it."""

    whole_size: int | None = None
    """The bytes that it should have, where that is known."""


def unreadable(uri: str, error: Exception) -> JecError:
    """The error for a file that cannot be read (further); one of ours passes through.

    A storage that does not answer, or a disk that refuses, says nothing of the file.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, JecError):
            return cause
        # Libraries raise OSErrors without a number for what is wrong in the file; a damaged file
        # may also name a place before its beginning.
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
    """Whether a reader says that it cannot decode what is there, although the file is whole."""
    names = {kind.__name__ for kind in type(error).__mro__}
    unknown_forms = {"NotImplementedError", "CannotBeAwkward", "UnknownInterpretation"}
    return isinstance(error, ImportError) or bool(names & unknown_forms)


def check_header(entry: Entry, fetch: Fetch) -> None:
    """Check that the file begins as ROOT files do and is as long as its header says.

    fetch: (first byte, number of bytes) -> bytes of the file. Raises DamagedFile where it does
    not, or is not.
    """
    header = bytes(fetch(0, HEADER))
    if len(header) < 20 or header[:4] != b"root":
        begins = f"it begins with {header[:8]!r}" if header else "it is empty"
        raise DamagedFile(f"{entry.uri} is not a ROOT file: {begins}")
    # big-endian: "root", version, place of the first record, end
    (version,) = struct.unpack_from(">i", header, 4)
    (end,) = struct.unpack_from(">q" if version >= LARGE_FILE else ">i", header, 12)
    if entry.size < end:
        truncated = DamagedFile(
            f"{entry.uri} is truncated: it should have {end:,} bytes and has {entry.size:,};"
            f" {REMEDY}"
        )
        truncated.whole_size = end
        raise truncated


@contextlib.contextmanager
def open_bytes(uri: str, entry: Entry | None = None) -> Iterator[Fetch]:
    """A function (first byte, number of bytes) -> bytes of a file, to open it with.

    entry: the file as it was listed. Raises InputError or StorageError where the file cannot be
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
    """The file opened with uproot; raises InputError where that fails."""
    import uproot

    try:
        # A Path or a dict, because uproot takes what follows a colon in a text for the name of an
        # object.
        if storage.is_local(uri):
            opened = uproot.open(Path(uri))
        else:
            from weaver.read.uproot_source import StorageSource

            opened = uproot.open({uri: None}, handler=StorageSource)
    # uproot raises many kinds for a damaged file (struct, zlib, key and value errors)
    except Exception as error:
        raise unreadable(uri, error) from error
    with opened as file:
        yield file


@contextlib.contextmanager
def open_parquet(uri: str) -> Iterator[Any]:
    """The file opened with pyarrow; raises InputError where that fails."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(parquet.open_file(uri))
        except Exception as error:  # pyarrow's own kinds
            raise unreadable(uri, error) from error
        yield file


@contextlib.contextmanager
def open_hdf5(uri: str) -> Iterator[Any]:
    """The file opened with PyTables; raises InputError where that fails."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(hdf5.open_file(uri))
        except Exception as error:  # PyTables' own kinds
            raise unreadable(uri, error) from error
        yield file


def find_tree(uri: str, file: Any, treename: str | None) -> str:
    """The path, with cycle, of the tree or RNTuple to read in an open file.

    Where none is named, RNTuples count only in a file without trees, as in weaver-core. Raises
    DamagedFile for a file without the tree, InputError for one with several where none is named.
    """
    try:
        keys = file.keys(recursive=True, cycle=True, filter_classname="TTree")
        ntuples = file.keys(recursive=True, cycle=True, filter_classname="ROOT::RNTuple")
    except Exception as error:
        raise unreadable(uri, error) from error
    if not keys and not ntuples and not getattr(file, "_fSeekKeys", 1):
        raise DamagedFile(
            f"{uri} was never closed by the program that wrote it, so that it lists nothing;"
            f" {REMEDY}"
        )
    if treename is not None:
        keys = [*keys, *ntuples]
    return choose_tree(uri, keys or ntuples, treename)


def choose_tree(uri: str, keys: Sequence[str], treename: str | None) -> str:
    """Of the paths with cycles of all trees: the newest cycle of the named tree, or the only one.

    A file holds cycles as signed numbers of 16 bits: 32768 is stored as -32768. The paths have the
    stored numbers, a treename may have either. Raises DamagedFile where there is no
    such tree, InputError where one has to be named.
    """
    newest: dict[str, int] = {}  # path -> its newest cycle as ROOT counts them
    stored: dict[tuple[str, int], str] = {}
    for key in keys:
        path, cycle = _cycle(key)
        newest[path] = max(newest.get(path, 0), cycle)
        stored[path, cycle] = key
    if treename is not None and re.search(r";-?\d+$", treename):
        with_cycle = _cycle(treename)
        if with_cycle in stored:
            return stored[with_cycle]
    if not newest:
        raise DamagedFile(f"{uri} holds no tree; {REMEDY}")
    if treename is None:
        if len(newest) != 1:
            raise InputError(
                f"{uri} holds {len(newest)} trees ({', '.join(sorted(newest)) or 'none'}); name one"
                " as 'treename' in the data config"
            )
        treename = next(iter(newest))
    if treename not in newest:
        raise DamagedFile(f"{uri}: {unknown('tree', treename, newest)}; {TREE_REMEDY}")
    return stored[treename, newest[treename]]


def _cycle(key: str) -> tuple[str, int]:
    """The path and the cycle, as ROOT counts it, of a path with the cycle as it is stored."""
    path, _, cycle = key.rpartition(";")
    return path, int(cycle) % 2**16
