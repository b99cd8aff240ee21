"""The format of prepared data: a folder of .npy columns, and `dataset.json`.

dataset.json is written last, so that a folder with it is complete. It contains a checksum of each
column and of itself. They are verified when a run reuses prepared data, and when a copy for this
node has been made; a trial that maps the columns only checks their sizes.

    <storage>/cache/<key>/
      dataset.json              counts, parameters, statistics, and the files of the columns
                                (Description)
      <group>.npy               sequence group: values (particles, C) float32; single values: (N, C)
                                or (N,) float32
      <group>.offsets.npy       jet i has the particles offsets[i]:offsets[i + 1], int64; groups
                                with equal offsets share a file
      label.<name>.npy          (N,) or (N, k), in the type that the label's expression gave
      observer.<name>.npy       (N,) or (N, k); for an observer with lists, the entries of all jets
      observer.<name>.offsets.npy   of these jet i has the entries offsets[i]:offsets[i + 1], int64
      weight.npy                (N,) float32, where the data config has weights
      data.auto.yaml            the data config with the numbers derived from the training set, in
                                weaver-core's form

All arrays are in C order and little-endian, so that they can be mapped into memory. A sequence
group with the same values for all particles (a mask) has no file; dataset.json contains the values.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import posixpath
import secrets
import shutil
import sys
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict
from urllib.parse import quote

import numpy as np

from common import private_folder, storage
from common.errors import AccessError, InputError, StorageError
from common.storage import durable, space
from weaver.config.sections import Parameters
from weaver.prepared.node_cache import CACHE_VARIABLE, node_cache
from weaver.prepared.transform import Rows
from weaver.read.jagged import JaggedColumn, cast_exactly, common_type

# raise it if the format changes; data in an older format are then prepared again
FORMAT = 2
DESCRIPTION = "dataset.json"
AUTO_YAML = "data.auto.yaml"
WEIGHT = "weight"
BLOCK = 65_536  # rows written at a time
# bytes written at a time; for larger writes Linux allocates large pages, which takes several times
# as long
PIECE = 2**18
# bytes of our .npy headers, with room for the number of rows, which is known only at the end
HEADER = 128
CHECKSUM_BYTES = 2**22  # bytes read at a time for a checksum
PARTIAL = ".partial-"  # prefix of temporary folders
STALE_SECONDS = 24 * 3600  # an older temporary folder is from a process that was killed
FETCH_SECONDS = 3600  # longest wait for another process on this node that copies the same data


class ColumnEntry(TypedDict):
    """One .npy file in dataset.json."""

    file: str
    dtype: str
    """In numpy's notation, such as "<f4"."""
    shape: list[int]
    crc32: NotRequired[int]
    """CRC-32 of the bytes after the header; earlier versions did not write it."""


class SequenceEntry(TypedDict, total=False):
    """One sequence group in dataset.json: offsets, and either values or constant."""

    offsets: ColumnEntry
    values: ColumnEntry
    constant: list[float]
    """The variables' values, if they are the same for all particles."""


class Contents(TypedDict):
    """The part of dataset.json about the columns."""

    num_jets: int
    empty_jets: int
    """Jets without particles in any group."""
    dropped_jets: int
    non_finite: dict[str, list[int]]
    """Variable -> [number of NaN values, number of infinite values]."""
    sequences: dict[str, SequenceEntry]
    columns: dict[str, ColumnEntry]
    list_observers: NotRequired[dict[str, SequenceEntry]]
    """Observers with a list for each jet: offsets, and the entries as values."""


class FileEntry(TypedDict):
    """One data file in dataset.json."""

    uri: str
    written: str
    """The path as the user gave it."""
    size: int
    tag: str
    tree: str
    jets: int


class Description(Contents):
    """dataset.json."""

    format: int
    role: str
    """training, validation or test."""
    num_read: int
    """Number of jets in the files."""
    config: str
    """Digest of the data config."""
    skipped: list[dict]
    """Damaged files (weaver.read.files.SkippedFile)."""
    preprocess_params: dict[str, Parameters]
    reweight_hists: dict[str, list] | None
    non_finite_policy: str
    files: list[FileEntry]
    types: dict[str, str]
    """Branch -> common type of its numbers in all files, if it is known before decoding."""
    sha256: NotRequired[str]
    """Digest of all fields above (`digest_of`); earlier versions did not write it."""


class NpyWriter:
    """Write one .npy file row by row; the header is completed at the end."""

    def __init__(self, path: Path) -> None:
        """Open the file; the first rows decide its type."""
        self.path = path
        self.rows = 0
        self.dtype: np.dtype | None = None
        self.row_shape: tuple[int, ...] = ()
        self._open()

    def _open(self) -> None:
        self._crc = 0
        self._file = open(self.path, "wb")  # noqa: SIM115 (open for as long as data arrives)
        self._file.write(b"\0" * HEADER)
        # an interrupted preparation does not call close()
        weakref.finalize(self, self._file.close)

    def append(self, array: np.ndarray) -> None:
        """Append rows; the column gets the common type of all rows.

        Raises InputError for rows of another shape, and for integers that do not fit in the type.
        """
        if self.dtype is None:
            self.dtype = array.dtype.newbyteorder("<")
            self.row_shape = array.shape[1:]
        if array.shape[1:] != self.row_shape:
            raise InputError(
                f"'{self._name}' has {_describe_shape(self.row_shape)} for each jet in the first"
                f" files and {_describe_shape(array.shape[1:])} in later ones; give it one shape in"
                " all files"
            )
        if array.dtype != self.dtype:
            common = common_type([self.dtype, array.dtype]).newbyteorder("<")
            if common != self.dtype:
                self._widen(common)
        self._write(array)
        self.rows += len(array)

    def _write(self, array: np.ndarray) -> None:
        """Write rows at the end of the file, in the type of the column."""
        if not array.size:  # numpy cannot cast an empty view
            return
        assert self.dtype is not None
        rows = cast_exactly(array, self.dtype, self._name, "the data")
        content = np.ascontiguousarray(rows).data.cast("B")
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            self._crc = zlib.crc32(piece, self._crc)
            self._file.write(piece)

    def _widen(self, dtype: np.dtype) -> None:
        """Write all rows again in a wider type, which is rare: most types are known before."""
        narrow = self.path.with_suffix(".narrow")
        os.rename(self.path, narrow)  # the open file moves too
        self._file.close()
        shape = (self.rows, *self.row_shape)
        narrow_rows = np.empty(shape, self.dtype)
        if narrow_rows.size:  # no file of no bytes can be mapped
            narrow_rows = np.memmap(narrow, narrow_rows.dtype, "r", HEADER, shape)
        self.dtype = dtype
        self._open()
        for start in range(0, self.rows, BLOCK):
            self._write(narrow_rows[start : start + BLOCK])
        narrow.unlink()

    @property
    def _name(self) -> str:
        """Name of the column, for errors."""
        return self.path.stem.partition(".")[2] or self.path.stem

    def close(self) -> ColumnEntry:
        """Complete the file; returns its entry for dataset.json.

        Raises ValueError if nothing, not even an empty array, was appended.
        """
        if self.dtype is None:
            raise ValueError(f"{self.path.name} has no type, because nothing was appended")
        shape = (self.rows, *self.row_shape)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )
        # numpy's header starts with 10 bytes (magic, version, length); it is padded to HEADER
        # bytes, which were reserved at the start of the file.
        text = header.getvalue()[10:].rstrip()
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00")
        self._file.write((HEADER - 10).to_bytes(2, "little"))
        self._file.write(text.ljust(HEADER - 11) + b"\n")
        self._file.close()
        return {
            "file": self.path.name,
            "dtype": self.dtype.str,
            "shape": list(shape),
            "crc32": self._crc,
        }


def _describe_shape(shape: tuple[int, ...]) -> str:
    """Describe the shape of a row in words."""
    return f"{' x '.join(map(str, shape))} numbers" if shape else "one number"


class SequenceWriter:
    """Write the values and offsets of one sequence group.

    As long as all particles have the same values, they are only counted, not written.
    """

    def __init__(self, folder: Path, group: str) -> None:
        """Open the files of a group of particle inputs."""
        self.values = NpyWriter(_path(folder, group))
        self.offsets = NpyWriter(_path(folder, f"{group}.offsets"))
        self.offsets.append(np.zeros(1, np.int64))
        # digest of the counts; groups with equal digests share one file of offsets
        self.digest = hashlib.sha256()
        self.end = 0
        """Number of particles so far."""
        self.constant: np.ndarray | None = None
        """The first particle's values, (C,)."""
        self.varies = False

    def append(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Append the particles (particles, C) of some jets, and each jet's number of them (N,)."""
        self.values.append(values[:0])  # sets the type
        if not self.varies and len(values):
            if self.constant is None:
                self.constant = values[0].copy()
            if not (values == self.constant).all():  # NaN equals nothing
                self._write_constant()
        if self.varies:
            self.values.append(values)
        ends = self.end + np.cumsum(counts)
        self.offsets.append(ends)
        self.digest.update(counts.tobytes())
        self.end = int(ends[-1])

    def _write_constant(self) -> None:
        """Write the particles that were only counted so far."""
        self.varies = True
        if self.constant is None:  # no particle so far
            return
        for start in range(0, self.end, BLOCK):
            self.values.append(np.tile(self.constant, (min(BLOCK, self.end - start), 1)))

    def close(self) -> SequenceEntry:
        """Complete the files; returns the group's entry for dataset.json."""
        # JSON has neither NaN nor infinity, so such constants are written to the file
        is_json = self.constant is not None and np.isfinite(self.constant).all()
        if not self.varies and not is_json:
            self._write_constant()
        values = self.values.close()
        offsets = self.offsets.close()
        if self.varies or self.constant is None:
            return {"values": values, "offsets": offsets}
        self.values.path.unlink()
        return {"constant": [float(value) for value in self.constant], "offsets": offsets}


class ListWriter:
    """Write the entries and offsets of an observer with a list for each jet."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the files of a column of lists."""
        self.values = NpyWriter(_path(folder, name))
        self.offsets = NpyWriter(_path(folder, f"{name}.offsets"))
        self.offsets.append(np.zeros(1, np.int64))
        self.end = 0
        """Number of entries so far."""

    def append(self, lists: JaggedColumn) -> None:
        """Append the lists of some jets."""
        self.values.append(lists.content)
        self.offsets.append(self.end + np.cumsum(lists.counts))
        self.end += len(lists.content)

    def close(self) -> SequenceEntry:
        """Complete the files; returns the observer's entry for dataset.json."""
        return {"values": self.values.close(), "offsets": self.offsets.close()}


def reweight_column(name: str) -> str:
    """Return the name of a temporary column, from which the weights will be computed."""
    return f"reweight.{name}"


def _path(folder: Path, name: str) -> Path:
    """Return the file of a column.

    Its name is quoted, because names of branches may contain a slash.
    """
    return folder / f"{quote(name, safe='')}.npy"


class DatasetWriter:
    """Write the rows of chunks of jets into a local folder."""

    def __init__(self, folder: Path) -> None:
        """Start without jets; the first ones open the files."""
        self.folder = folder
        self.num_jets = 0
        self.empty_jets = 0
        self.dropped_jets = 0
        self.sequences: dict[str, SequenceWriter] = {}
        self.columns: dict[str, NpyWriter] = {}
        self.lists: dict[str, ListWriter] = {}
        self.non_finite: dict[str, list[int]] = {}

    def append(self, rows: Rows) -> None:
        """Append the rows of one chunk of jets."""
        for name, (nan, infinite) in rows.non_finite.items():
            before = self.non_finite.get(name, [0, 0])
            self.non_finite[name] = [before[0] + nan, before[1] + infinite]
        self.dropped_jets += rows.num_dropped
        if not rows.num_jets:
            return
        self.num_jets += rows.num_jets

        particles = np.zeros(rows.num_jets, np.int64)  # largest number of all groups
        for group, (values, counts) in rows.sequences.items():
            if group not in self.sequences:
                self.sequences[group] = SequenceWriter(self.folder, group)
            self.sequences[group].append(values, counts)
            np.maximum(particles, counts, out=particles)
        if rows.sequences:
            self.empty_jets += int((particles == 0).sum())

        for name, values in rows.flats.items():
            self._append_column(name, values)
        for name, values in rows.labels.items():
            self._append_column(f"label.{name}", values)
        for name, column in rows.observers.items():
            if isinstance(column, JaggedColumn):
                if name not in self.lists:
                    self.lists[name] = ListWriter(self.folder, f"observer.{name}")
                self.lists[name].append(column)
            else:
                self._append_column(f"observer.{name}", column)
        for name, values in rows.reweight.items():
            self._append_column(reweight_column(name), values)
        if rows.weight is not None:
            self._append_column(WEIGHT, rows.weight)

    def _append_column(self, name: str, values: np.ndarray) -> None:
        if name not in self.columns:
            self.columns[name] = NpyWriter(_path(self.folder, name))
        self.columns[name].append(values)

    def close(self) -> Contents:
        """Complete all files; returns the part of dataset.json about the columns."""
        sequences = {group: writer.close() for group, writer in self.sequences.items()}

        # Groups with the same counts share one file of offsets.
        offsets_by_digest: dict[bytes, ColumnEntry] = {}
        for group, writer in self.sequences.items():
            own = sequences[group]["offsets"]
            first = offsets_by_digest.setdefault(writer.digest.digest(), own)
            if first is not own:
                sequences[group]["offsets"] = first
                writer.offsets.path.unlink()

        contents: Contents = {
            "num_jets": self.num_jets,
            "empty_jets": self.empty_jets,
            "dropped_jets": self.dropped_jets,
            "non_finite": self.non_finite,
            "sequences": sequences,
            "columns": {name: writer.close() for name, writer in self.columns.items()},
        }
        if self.lists:
            contents["list_observers"] = {
                name: writer.close() for name, writer in self.lists.items()
            }
        return contents


# -------------------------------------------------------------------------- folders, local and S3


def reference_to(uri: str, reference: str) -> dict[str, str]:
    """Return content of the reference file at `reference`, which refers to prepared data at `uri`.

    Data in the same storage get an address relative to the file's folder, so that a folder of runs
    may be moved.

    >>> reference_to("/runs/cache/0a1b", "/runs/pfn-1/data/train.json")
    {'dataset': '../../cache/0a1b'}
    """
    if not (storage.is_local(reference) or storage.is_s3(reference)):
        return {"dataset": uri}
    start, top = _split(storage.absolute(reference).rpartition("/")[0])
    other, path = _split(uri)
    common = posixpath.commonpath([top, path]) if start == other else "/"
    # data outside the folder of runs do not move with it
    if common == "/" or posixpath.relpath(top, common).count("/") > 1:
        return {"dataset": uri}
    return {"dataset": posixpath.relpath(path, top)}


def resolve_reference(reference: str, dataset: str) -> str:
    """Return the address of the prepared data to which a reference file refers.

    reference: the file's address. dataset: its content. If the folder of runs has been moved since,
    it is the data in the folder's new place.
    """
    folder = storage.absolute(reference).rpartition("/")[0]
    start, top = _split(folder)
    if dataset.startswith(".."):
        return start + posixpath.normpath(posixpath.join(top, dataset))
    if is_prepared(dataset):
        return dataset
    runs = posixpath.dirname(posixpath.dirname(top))
    beside = f"{start}{posixpath.join(runs, 'cache', storage.name(dataset))}"
    return beside if is_prepared(beside) else dataset


def _split(uri: str) -> tuple[str, str]:
    """Split an address into scheme with server (empty for a local path) and path."""
    if storage.is_local(uri):
        return "", uri
    scheme, _, rest = uri.partition("://")
    server, _, path = rest.partition("/")
    return f"{scheme}://{server}", f"/{path}"


def is_prepared(uri: str) -> bool:
    """Return True if there is a complete prepared folder at this address that may be read."""
    try:
        return storage.exists(storage.join(uri, DESCRIPTION))
    except AccessError:
        return False


def digest_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content of dataset.json without the checksum itself."""
    content = {name: value for name, value in description.items() if name != "sha256"}
    return storage.digest(json.dumps(content, sort_keys=True).encode())


def damage(folder: Path) -> str:
    """Describe the damage to a prepared folder, by its checksums; empty without any.

    This reads all files (about a second for each GB), so it is called once for each run and each
    copy, not by each trial. For data of an earlier version without checksums only the sizes are
    compared. Raises StorageError if the disk cannot read a file.
    """
    try:
        description = storage.read_json(str(folder / DESCRIPTION))
        if description.get("sha256", digest_of(description)) != digest_of(description):
            return f"the checksum of {DESCRIPTION} does not fit"
        for entry in _entries(description):
            if problem := _damage_of(folder / entry["file"], entry):
                return problem
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        return f"{DESCRIPTION} cannot be read ({error})"
    return ""


def _entries(description: Mapping[str, Any]) -> list[ColumnEntry]:
    """Return the entries of all files of a prepared folder."""
    entries: list[ColumnEntry] = list(description["columns"].values())
    lists = description.get("list_observers", {})
    for sequence in [*description["sequences"].values(), *lists.values()]:
        for part in ("values", "offsets"):
            if part in sequence:
                entries.append(sequence[part])
    return entries


def _damage_of(path: Path, entry: ColumnEntry) -> str:
    """Describe the damage to one file; empty without any."""
    size = HEADER + int(np.prod(entry["shape"], dtype=np.int64)) * np.dtype(entry["dtype"]).itemsize
    if not path.exists():
        return f"{path.name} is missing"
    try:
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size:,} bytes in place of {size:,}"
        if "crc32" not in entry:
            return ""
        crc = 0
        with path.open("rb") as file:
            file.seek(HEADER)
            while piece := file.read(CHECKSUM_BYTES):
                crc = zlib.crc32(piece, crc)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return "" if crc == entry["crc32"] else f"the checksum of {path.name} does not fit"


@contextlib.contextmanager
def building(
    target: Path, final: Callable[[], Path] | None = None, *, num_bytes: int | None = None
) -> Iterator[Path]:
    """Yield a temporary folder, which is renamed to `target` if the block ends without an error.

    After an error it is removed. If another process has made `target` meanwhile, that folder stays,
    because both have the same content. final: called after the block, returns the final target in
    the same parent folder, if its name depends on the content. num_bytes: size that the folder may
    have, for the error of a full disk. Raises StorageError if the disk cannot be written to.
    """
    folder = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        # mkdir follows the user's umask; mkdtemp's mode 0700 would hide the data from colleagues.
        place = target.parent / f"{PARTIAL}{target.name}-{secrets.token_hex(8)}"
        place.mkdir()
        folder = place
        yield folder
        if final is not None:
            target = final()
        try:
            if not is_prepared(str(target)):
                durable.rename(folder, target)
        except OSError:
            if not is_prepared(str(target)):  # else another process made it a moment before
                raise
    except OSError as error:
        if full := space.full_error(error, target, num_bytes):
            raise full from error
        raise StorageError(
            f"cannot write prepared data to {target}: {error.strerror or error}"
        ) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Remove old temporary folders of processes that were killed."""
    for path in parent.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path)


def publish(folder: Path, uri: str) -> None:
    """Upload a folder, dataset.json last."""
    for file in sorted(folder.iterdir(), key=lambda path: path.name == DESCRIPTION):
        storage.upload(file, storage.join(uri, file.name))


def local_copy(uri: str, cache: Path | None = None, *, always: bool = False) -> Path:
    """Return prepared data as a local folder: the folder itself, or its copy on this node.

    The first process makes the copy, and the others wait for it. It has the name of the original, a
    digest of the data's origin.

    cache: folder for the copy (default: `node_cache`). always: copy local data too, from a shared
    disk with slow random reads. Raises StorageError if the data are damaged, or if the wait takes
    longer than FETCH_SECONDS.
    """
    if storage.is_local(uri) and not always:
        _note_use(Path(uri))
        return Path(uri)
    cache = node_cache() if cache is None else private_folder.make(cache, CACHE_VARIABLE)
    target = cache / storage.name(uri)
    with _lock(cache / f"{target.name}.lock", uri):
        if not is_prepared(str(target)):
            size = sum(entry.size for entry in storage.entries(uri))
            space.require_free(cache, size, f"a copy of {uri}")
            with building(target, num_bytes=size) as folder:
                storage.download(uri, folder)
                if problem := damage(folder):
                    raise StorageError(
                        f"prepared data {uri} is damaged: {problem}; delete it, and prepare it"
                        " again (python pipeline.py --resume RUN does)"
                    )
            print(
                f"copied {uri} to this machine: {where(target)}; python pipeline.py --prune-cache"
                " removes copies",
                file=sys.stderr,
                flush=True,
            )
    _note_use(target)
    return target


def _note_use(folder: Path) -> None:
    """Set the time of a set to now; `pipeline.py --prune-cache` takes it as the last use."""
    with contextlib.suppress(OSError):  # the set of another user, or a read-only disk
        os.utime(folder / DESCRIPTION)


def where(folder: Path) -> str:
    """Describe prepared data on this machine: path, size, and free space on the disk."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    free = space.size_text(space.free_bytes(folder))
    return f"{folder} ({space.size_text(size)}, {free} free there)"


@contextlib.contextmanager
def _lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock among the processes of this node; it is released if the process dies.

    what: the data that are copied, for the error. Raises StorageError after FETCH_SECONDS.
    """
    deadline = time.monotonic() + FETCH_SECONDS
    with open(private_folder.open_lock(path), "r+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"another process has been copying {what} for {FETCH_SECONDS} s (lock"
                        f" {path}); stop that process, then try again"
                    ) from None
                time.sleep(0.2)
        yield
