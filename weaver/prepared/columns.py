"""The form of prepared data: a folder of .npy columns, and `dataset.json`.

dataset.json is written last, so that a folder that has one is complete. It holds a checksum of each
column and of itself. They are compared when a run finds the data prepared before, and when a copy
for this node has been made; a trial that maps the columns compares their sizes only.

    <storage>/cache/<key>/
      dataset.json              what this is: counts, parameters, statistics, and which file holds
                                what (Description)
      <group>.npy               sequence group: values (particles, C) float32; single values: (N, C)
                                or (N,) float32
      <group>.offsets.npy       jet i owns the particles offsets[i]:offsets[i + 1], int64; groups
                                with equal ones share a file
      label.<name>.npy          (N,) or (N, k), in the type that the label's expression gave
      observer.<name>.npy       (N,) or (N, k); of an observer with a list for each jet all entries
      observer.<name>.offsets.npy   and of these jet i has offsets[i]:offsets[i + 1], int64
      weight.npy                (N,) float32, where the data config has weights
      data.auto.yaml            the data config with the numbers derived from the training set, in
                                weaver-core's form

Everything is in C order and little-endian, so that it can be mapped into memory as it is. A
sequence group whose values are all equal (a mask) is stored as these values in dataset.json,
without a file of its own.
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
from common.errors import InputError, StorageError
from common.storage import durable, space
from weaver.config.sections import Parameters
from weaver.prepared.node_cache import CACHE_VARIABLE, node_cache
from weaver.prepared.transform import Ready
from weaver.read.jagged import Jagged, common_type, exactly

# raise it when prepared data changes its meaning: folders of an older form are then made anew
FORMAT = 2
DESCRIPTION = "dataset.json"
AUTO_YAML = "data.auto.yaml"
WEIGHT = "weight"
BLOCK = 65_536  # rows written at a time where they are all the same
# bytes written at a time: for larger writes Linux looks for large pages, which take several times
# as long to get
PIECE = 2**18
# bytes of a .npy header here; room for the final number of rows, which is known only at the end
HEADER = 128
CHECKED = 2**22  # bytes read at a time for a checksum
PARTIAL = ".partial-"  # how the name of a temporary folder begins
STALE_SECONDS = 24 * 3600  # a temporary folder this old was left by a process that was killed
FETCH_SECONDS = 3600  # the longest wait for another process on this node that fetches the same data


class ColumnEntry(TypedDict):
    """One .npy file in dataset.json."""

    file: str
    dtype: str
    """numpy's own text, such as "<f4"."""
    shape: list[int]
    crc32: NotRequired[int]
    """Of the bytes behind the header; earlier versions did not write it."""


class SequenceEntry(TypedDict, total=False):
    """One sequence group in dataset.json: offsets, and either values or constant."""

    offsets: ColumnEntry
    values: ColumnEntry
    constant: list[float]
    """The variables' values, where they are the same for all particles."""


class Contents(TypedDict):
    """The part of dataset.json that says what the columns hold."""

    num_jets: int
    empty_jets: int
    """Jets without particles in any group."""
    dropped_jets: int
    non_finite: dict[str, list[int]]
    """Variable -> how many values are NaN, and how many infinite."""
    sequences: dict[str, SequenceEntry]
    columns: dict[str, ColumnEntry]
    list_observers: NotRequired[dict[str, SequenceEntry]]
    """Observers with a list for each jet: offsets, and the entries as values."""


class FileEntry(TypedDict):
    """One data file in dataset.json."""

    uri: str
    written: str
    """The path as the user wrote it."""
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
    """Jets in the files."""
    config: str
    """Digest of the data config."""
    skipped: list[dict]
    """Damaged files (weaver.read.files.Skipped)."""
    preprocess_params: dict[str, Parameters]
    reweight_hists: dict[str, list] | None
    non_finite_policy: str
    files: list[FileEntry]
    types: dict[str, str]
    """Branch -> the common type of its numbers in all files, where the files state it."""
    sha256: NotRequired[str]
    """Of all the above (`digest_of`); earlier versions did not write it."""


class NpyWriter:
    """Writes one .npy file row by row; the header gets its number of rows at the end."""

    def __init__(self, path: Path) -> None:
        """Open the file; the type follows from the first rows."""
        self.path = path
        self.rows = 0
        self.dtype: np.dtype | None = None
        self.row_shape: tuple[int, ...] = ()
        self._open()

    def _open(self) -> None:
        self._crc = 0
        self._file = open(self.path, "wb")  # noqa: SIM115 (open for as long as data arrives)
        self._file.write(b"\0" * HEADER)
        # an interrupted preparation drops its writers without close()
        weakref.finalize(self, self._file.close)

    def append(self, array: np.ndarray) -> None:
        """Add rows. The column gets the common type of all of them.

        Raises InputError for whole numbers that this type cannot hold.
        """
        if self.dtype is None:
            self.dtype = array.dtype.newbyteorder("<")
            self.row_shape = array.shape[1:]
        if array.shape[1:] != self.row_shape:
            raise InputError(
                f"'{self._name}' has {_shown(self.row_shape)} for each jet in the first files and"
                f" {_shown(array.shape[1:])} in later ones; give it one shape in all files"
            )
        if array.dtype != self.dtype:
            common = common_type([self.dtype, array.dtype]).newbyteorder("<")
            if common != self.dtype:
                self._widen(common)
        self._write(array)
        self.rows += len(array)

    def _write(self, array: np.ndarray) -> None:
        """Write rows in the type of the column at the end of the file."""
        if not array.size:  # a view of no bytes cannot be cast
            return
        assert self.dtype is not None
        rows = exactly(array, self.dtype, self._name, "the data")
        content = np.ascontiguousarray(rows).data.cast("B")
        for start in range(0, len(content), PIECE):
            piece = content[start : start + PIECE]
            self._crc = zlib.crc32(piece, self._crc)
            self._file.write(piece)

    def _widen(self, dtype: np.dtype) -> None:
        """Write what is there again in a wider type. That is rare: files state their types."""
        narrow = self.path.with_suffix(".narrow")
        os.rename(self.path, narrow)  # the open file goes with it
        self._file.close()
        shape = (self.rows, *self.row_shape)
        former = np.empty(shape, self.dtype)
        if former.size:  # no file of no bytes can be mapped
            former = np.memmap(narrow, former.dtype, "r", HEADER, shape)
        self.dtype = dtype
        self._open()
        for start in range(0, self.rows, BLOCK):
            self._write(former[start : start + BLOCK])
        narrow.unlink()

    @property
    def _name(self) -> str:
        """The column, for errors."""
        return self.path.stem.partition(".")[2] or self.path.stem

    def close(self) -> ColumnEntry:
        """Finish the file; returns its entry for dataset.json.

        Raises ValueError where nothing, not even an empty array, was ever appended.
        """
        if self.dtype is None:
            raise ValueError(f"{self.path.name} has no type: nothing was appended")
        shape = (self.rows, *self.row_shape)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )
        # numpy's header begins with 10 bytes (magic, version, length); padded, it fills the room
        # that was left at the beginning of the file.
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


def _shown(shape: tuple[int, ...]) -> str:
    """The shape of a row, in words."""
    return f"{' x '.join(map(str, shape))} numbers" if shape else "one number"


class SequenceWriter:
    """Values and offsets of one sequence group.

    Values that are all equal are counted until one differs, and so perhaps never written.
    """

    def __init__(self, folder: Path, group: str) -> None:
        """Open the files of a group of particle inputs."""
        self.values = NpyWriter(_path(folder, group))
        self.offsets = NpyWriter(_path(folder, f"{group}.offsets"))
        self.offsets.append(np.zeros(1, np.int64))
        # of the counts: groups with equal digests share one file of offsets
        self.digest = hashlib.sha256()
        self.end = 0
        """Particles so far."""
        self.constant: np.ndarray | None = None
        """The first particle's values, (C,)."""
        self.varies = False

    def append(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Add the particles (particles, C) of some jets, and how many each of them has (N,)."""
        self.values.append(values[:0])  # fixes the type
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
        """Write what was only counted so far."""
        self.varies = True
        if self.constant is None:  # no particle so far
            return
        for start in range(0, self.end, BLOCK):
            self.values.append(np.tile(self.constant, (min(BLOCK, self.end - start), 1)))

    def close(self) -> SequenceEntry:
        """Finish the files; returns the group's entry for dataset.json."""
        # JSON has neither NaN nor infinity, so that such constants are written out
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
    """Entries and offsets of an observer with a list for each jet."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open the files of a column of lists."""
        self.values = NpyWriter(_path(folder, name))
        self.offsets = NpyWriter(_path(folder, f"{name}.offsets"))
        self.offsets.append(np.zeros(1, np.int64))
        self.end = 0
        """Entries so far."""

    def append(self, lists: Jagged) -> None:
        """Add the lists of some jets."""
        self.values.append(lists.content)
        self.offsets.append(self.end + np.cumsum(lists.counts))
        self.end += len(lists.content)

    def close(self) -> SequenceEntry:
        """Finish the files; returns the observer's entry for dataset.json."""
        return {"values": self.values.close(), "offsets": self.offsets.close()}


def reweight_column(name: str) -> str:
    """A column that is there only until the weights have been made of it."""
    return f"reweight.{name}"


def _path(folder: Path, name: str) -> Path:
    """The file of a column; names of branches may hold a slash."""
    return folder / f"{quote(name, safe='')}.npy"


class DatasetWriter:
    """Writes ready chunks into a local folder.

    `close` returns what dataset.json says about the columns.
    """

    def __init__(self, folder: Path) -> None:
        """Begin with no jets; files are opened with the first ones."""
        self.folder = folder
        self.num_jets = 0
        self.empty_jets = 0
        self.dropped_jets = 0
        self.sequences: dict[str, SequenceWriter] = {}
        self.columns: dict[str, NpyWriter] = {}
        self.lists: dict[str, ListWriter] = {}
        self.non_finite: dict[str, list[int]] = {}

    def append(self, ready: Ready) -> None:
        """Add the rows of one chunk of jets."""
        for name, (nan, infinite) in ready.non_finite.items():
            before = self.non_finite.get(name, [0, 0])
            self.non_finite[name] = [before[0] + nan, before[1] + infinite]
        self.dropped_jets += ready.dropped
        if not ready.num_jets:
            return
        self.num_jets += ready.num_jets

        particles = np.zeros(ready.num_jets, np.int64)  # the most of any group
        for group, (values, counts) in ready.sequences.items():
            if group not in self.sequences:
                self.sequences[group] = SequenceWriter(self.folder, group)
            self.sequences[group].append(values, counts)
            np.maximum(particles, counts, out=particles)
        if ready.sequences:
            self.empty_jets += int((particles == 0).sum())

        for name, values in ready.flats.items():
            self._append_column(name, values)
        for name, values in ready.labels.items():
            self._append_column(f"label.{name}", values)
        for name, observed in ready.observers.items():
            if isinstance(observed, Jagged):
                if name not in self.lists:
                    self.lists[name] = ListWriter(self.folder, f"observer.{name}")
                self.lists[name].append(observed)
            else:
                self._append_column(f"observer.{name}", observed)
        for name, values in ready.reweight.items():
            self._append_column(reweight_column(name), values)
        if ready.weight is not None:
            self._append_column(WEIGHT, ready.weight)

    def _append_column(self, name: str, values: np.ndarray) -> None:
        if name not in self.columns:
            self.columns[name] = NpyWriter(_path(self.folder, name))
        self.columns[name].append(values)

    def close(self) -> Contents:
        """Finish all files."""
        sequences = {group: writer.close() for group, writer in self.sequences.items()}

        # Groups with the same counts share one file of offsets.
        shared: dict[bytes, ColumnEntry] = {}
        for group, writer in self.sequences.items():
            own = sequences[group]["offsets"]
            first = shared.setdefault(writer.digest.digest(), own)
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
    """The content of the reference file at `reference` to prepared data at `uri`.

    Data in the same storage are named relative to the file's folder, so that a folder of runs may
    be moved.

    >>> reference_to("/runs/cache/0a1b", "/runs/pfn-1/data/train.json")
    {'dataset': '../../cache/0a1b'}
    """
    if not (storage.is_local(reference) or storage.is_s3(reference)):
        return {"dataset": uri}
    start, top = _split(storage.absolute(reference).rpartition("/")[0])
    other, path = _split(uri)
    common = posixpath.commonpath([top, path]) if start == other else "/"
    # above the folder of runs nothing moves with them
    if common == "/" or posixpath.relpath(top, common).count("/") > 1:
        return {"dataset": uri}
    return {"dataset": posixpath.relpath(path, top)}


def referred(reference: str, dataset: str) -> str:
    """The address of the prepared data that a reference file names.

    Of an address from before the folder of runs was moved, the data beside the run is taken.
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
    """The scheme and server of an address, and its path; an empty text and the path on disk."""
    if storage.is_local(uri):
        return "", uri
    scheme, _, rest = uri.partition("://")
    server, _, path = rest.partition("/")
    return f"{scheme}://{server}", f"/{path}"


def is_prepared(uri: str) -> bool:
    """True if a complete prepared folder is there."""
    return storage.exists(storage.join(uri, DESCRIPTION))


def digest_of(description: Mapping[str, Any]) -> str:
    """SHA-256 of what dataset.json says, but for the checksum itself."""
    content = {name: value for name, value in description.items() if name != "sha256"}
    return storage.digest(json.dumps(content, sort_keys=True).encode())


def damage(folder: Path) -> str:
    """What differs in a prepared folder from what was written; empty for nothing.

    Reads all of it (about a second for each GB), which is why it is called once for each run and
    each copy, not by each trial. Of data of an earlier version, which has no checksums, the sizes
    are compared. Raises StorageError where the disk cannot read a file.
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
    """The files of a prepared folder."""
    entries: list[ColumnEntry] = list(description["columns"].values())
    lists = description.get("list_observers", {})
    for sequence in [*description["sequences"].values(), *lists.values()]:
        for part in ("values", "offsets"):
            if part in sequence:
                entries.append(sequence[part])
    return entries


def _damage_of(path: Path, entry: ColumnEntry) -> str:
    """As `damage`, of one file."""
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
            while piece := file.read(CHECKED):
                crc = zlib.crc32(piece, crc)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return "" if crc == entry["crc32"] else f"the checksum of {path.name} does not fit"


@contextlib.contextmanager
def building(
    target: Path, final: Callable[[], Path] | None = None, *, needed: int | None = None
) -> Iterator[Path]:
    """A temporary folder beside `target`, which becomes `target` if the block ends without error.

    final: gives at the end of the block another target in the same folder, where what was built
    decides the name. needed: bytes that the folder may take, for the error of a full disk.
    After an error it is removed. Where another process made `target` meanwhile, its folder stays:
    both hold the same. Raises StorageError where the disk refuses.
    """
    folder = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        # The user's umask decides who may read it; mkdtemp's 0700 would hide it from colleagues.
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
            if not is_prepared(str(target)):  # or else another process was faster by a moment
                raise
    except OSError as error:
        if full := space.full_error(error, target, needed):
            raise full from error
        raise StorageError(
            f"cannot write prepared data to {target}: {error.strerror or error}"
        ) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Remove temporary folders that processes left when they were killed."""
    for path in parent.glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path)


def publish(folder: Path, uri: str) -> None:
    """Upload a folder, dataset.json last."""
    for file in sorted(folder.iterdir(), key=lambda path: path.name == DESCRIPTION):
        storage.upload(file, storage.join(uri, file.name))


def local_copy(uri: str, cache: Path | None = None, *, always: bool = False) -> Path:
    """Prepared data as a local folder: the folder itself, or its copy on this node.

    Whichever process comes first fetches the copy; the others wait for it. Its name is the
    folder's, a digest of what the data was made from.

    cache: where the copy goes (default: `node_cache`). always: copy also what is on a disk (a
    shared disk that is slow to read here and there).
    """
    if storage.is_local(uri) and not always:
        _note_use(Path(uri))
        return Path(uri)
    cache = node_cache() if cache is None else private_folder.make(cache, CACHE_VARIABLE)
    target = cache / storage.name(uri)
    with _locked(cache / f"{target.name}.lock", uri):
        if not is_prepared(str(target)):
            size = sum(entry.size for entry in storage.entries(uri))
            space.require(cache, size, f"a copy of {uri}")
            with building(target, needed=size) as folder:
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
    """Give a set the present time, by which `pipeline.py --prune-cache` knows its last use."""
    with contextlib.suppress(OSError):  # another user's, or a disk that is only read
        os.utime(folder / DESCRIPTION)


def where(folder: Path) -> str:
    """Path and size of prepared data on this machine, and the room beside it, in words."""
    size = sum(file.stat().st_size for file in folder.iterdir())
    return f"{folder} ({space.shown(size)}, {space.shown(space.free_bytes(folder))} free there)"


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock between the processes of this node; a process that dies loses it.

    Raises StorageError, about `what` is fetched, after FETCH_SECONDS.
    """
    deadline = time.monotonic() + FETCH_SECONDS
    with open(private_folder.open_lock(path), "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"another process has been fetching {what} for {FETCH_SECONDS} s (lock"
                        f" {path})"
                    ) from None
                time.sleep(0.2)
        yield
