"""The form of prepared data: a folder of .npy columns and `dataset.json`, which is written last and
so says that it is whole.

    <storage>/cache/<key>/
      dataset.json              what this is: counts, parameters, statistics, and which file holds
          what
      <group>.npy               sequence group: values (particles, C) float32; single values: (N, C)
          or (N,) float32
      <group>.offsets.npy       jet i owns the particles offsets[i]:offsets[i + 1], int64; groups
          with equal ones share a file
      label.<name>.npy          (N,), in the type that the label's expression gave
      observer.<name>.npy       (N,)
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
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from common import storage
from common.errors import InputError, StorageError
from weaver.prepared.transform import Ready

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
STALE_SECONDS = 24 * 3600  # a temporary folder this old was left by a process that was killed
FETCH_SECONDS = 3600  # the longest wait for another process on this node that fetches the same data


class NpyWriter:
    """Writes one .npy file row by row; the header gets its number of rows when the file
    is closed.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, 0
        self.dtype: np.dtype | None = None
        self.row_shape: tuple[int, ...] = ()
        self._file = open(path, "wb")  # noqa: SIM115 (open for as long as data arrives)
        self._file.write(b"\0" * HEADER)
        # an interrupted preparation drops its writers without close()
        weakref.finalize(self, self._file.close)

    def append(self, array: np.ndarray) -> None:
        """Add rows. The first call fixes the type;

        InputError where a later one is of another kind (whole numbers, then floats).
        """
        if self.dtype is None:
            self.dtype, self.row_shape = array.dtype.newbyteorder("<"), array.shape[1:]
        if not np.can_cast(array.dtype, self.dtype, casting="same_kind"):
            name = self.path.stem.partition(".")[2] or self.path.stem
            raise InputError(
                f"'{name}' is {self.dtype} in the first files and {array.dtype} in later ones"
            )
        content = (
            np.ascontiguousarray(array.astype(self.dtype, copy=False)).data.cast("B")
            if array.size
            else b""
        )
        for start in range(0, len(content), PIECE):
            self._file.write(content[start : start + PIECE])
        self.rows += len(array)

    def close(self) -> dict[str, Any]:
        """Finish the file; returns its entry for dataset.json."""
        shape = (self.rows, *self.row_shape)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        )
        text = header.getvalue()[10:].rstrip()
        self._file.seek(0)
        self._file.write(
            b"\x93NUMPY\x01\x00"
            + (HEADER - 10).to_bytes(2, "little")
            + text.ljust(HEADER - 11)
            + b"\n"
        )
        self._file.close()
        return {"file": self.path.name, "dtype": self.dtype.str, "shape": list(shape)}


class SequenceWriter:
    """Values and offsets of one sequence group.

    Values that are all equal are counted until one differs, and so perhaps never written.
    """

    def __init__(self, folder: Path, group: str) -> None:
        self.values, self.offsets = (
            NpyWriter(_path(folder, group)),
            NpyWriter(_path(folder, f"{group}.offsets")),
        )
        self.offsets.append(np.zeros(1, np.int64))
        # of the counts: groups with equal digests share one file of offsets
        self.digest = hashlib.sha256()
        self.end, self.constant, self.varies = 0, None, False

    def append(self, values: np.ndarray, counts: np.ndarray) -> None:
        self.values.append(values[:0])  # fixes the type
        if not self.varies and not self._is_constant(values):
            self._write_constant()
        if self.varies:
            self.values.append(values)
        ends = self.end + np.cumsum(counts)
        self.offsets.append(ends)
        self.digest.update(counts.tobytes())
        self.end = int(ends[-1])

    def _is_constant(self, values: np.ndarray) -> bool:
        if len(values) and self.constant is None:
            self.constant = values[0].copy()
        return not len(values) or bool((values == self.constant).all())  # NaN equals nothing

    def _write_constant(self) -> None:
        """Write what was only counted so far."""
        self.varies = True
        for start in range(0, self.end, BLOCK):
            self.values.append(np.tile(self.constant, (min(BLOCK, self.end - start), 1)))

    def close(self) -> dict[str, Any]:
        if not self.varies and (self.constant is None or not np.isfinite(self.constant).all()):
            self._write_constant()
        values, offsets = self.values.close(), self.offsets.close()
        if self.varies:
            return {"values": values, "offsets": offsets}
        self.values.path.unlink()
        return {"constant": [float(value) for value in self.constant], "offsets": offsets}


def reweight_column(name: str) -> str:
    """A column that is there only until the weights have been made of it."""
    return f"reweight.{name}"


def _path(folder: Path, name: str) -> Path:
    """The file of a column; names of branches may hold a slash."""
    return folder / f"{quote(name, safe='')}.npy"


class DatasetWriter:
    """Writes ready chunks into a local folder;

    `close` returns what dataset.json says about the columns.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.num_jets, self.empty_jets, self.dropped_jets = folder, 0, 0, 0
        self.sequences: dict[str, SequenceWriter] = {}
        self.columns: dict[str, NpyWriter] = {}
        self.non_finite: dict[str, list[int]] = {}

    def append(self, ready: Ready) -> None:
        for name, found in ready.non_finite.items():
            self.non_finite[name] = [
                a + b for a, b in zip(self.non_finite.get(name, (0, 0)), found, strict=True)
            ]
        self.dropped_jets += ready.dropped
        if not ready.num_jets:
            return
        self.num_jets += ready.num_jets
        for group, (values, counts) in ready.sequences.items():
            if group not in self.sequences:
                self.sequences[group] = SequenceWriter(self.folder, group)
            self.sequences[group].append(values, counts)
        for name, values in self._named(ready):
            if name not in self.columns:
                self.columns[name] = NpyWriter(_path(self.folder, name))
            self.columns[name].append(values)
        counts = [counts for _, counts in ready.sequences.values()]
        self.empty_jets += int((np.max(counts, axis=0) == 0).sum()) if counts else 0

    @staticmethod
    def _named(ready: Ready) -> Iterator[tuple[str, np.ndarray]]:
        yield from ready.flats.items()
        yield from ((f"label.{name}", values) for name, values in ready.labels.items())
        yield from ((f"observer.{name}", values) for name, values in ready.observers.items())
        yield from ((reweight_column(name), values) for name, values in ready.reweight.items())
        if ready.weight is not None:
            yield WEIGHT, ready.weight

    def close(self) -> dict[str, Any]:
        sequences = {group: writer.close() for group, writer in self.sequences.items()}
        self._share_offsets(sequences)
        return {
            "num_jets": self.num_jets,
            "empty_jets": self.empty_jets,
            "dropped_jets": self.dropped_jets,
            "non_finite": self.non_finite,
            "sequences": sequences,
            "columns": {name: writer.close() for name, writer in self.columns.items()},
        }

    def _share_offsets(self, sequences: dict[str, dict[str, Any]]) -> None:
        kept: dict[bytes, dict[str, Any]] = {}
        for group, writer in self.sequences.items():
            first = kept.setdefault(writer.digest.digest(), sequences[group]["offsets"])
            if first is not sequences[group]["offsets"]:
                sequences[group]["offsets"] = first
                writer.offsets.path.unlink()


# -------------------------------------------------------------------------- folders, local and S3


def is_prepared(uri: str) -> bool:
    """True if a whole prepared folder lies there."""
    return storage.exists(storage.join(uri, DESCRIPTION))


def node_cache() -> Path:
    """The folder of this node for copies of prepared data:

    JEC_CACHE, or one for this user in the temporary directory.
    """
    return Path(
        os.environ.get("JEC_CACHE")
        or os.path.join(tempfile.gettempdir(), f"jec-cache-{os.getuid()}")
    )


@contextlib.contextmanager
def building(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` if the block ends well, and vanishes
    if not.

    Where another process made `target` meanwhile, its folder stays: both hold the same. Raises
    StorageError where the disk refuses.
    """
    folder = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target.parent)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".partial-{target.name}-"))
        yield folder
        folder.chmod(0o755)  # mkdtemp's 0700 would hide the data from colleagues on a shared disk
        if not is_prepared(str(target)):
            _rename(folder, target)
    except OSError as error:
        raise StorageError(
            f"cannot write prepared data to {target}: {error.strerror or error}"
        ) from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: Path, target: Path) -> None:
    try:
        os.rename(folder, target)
    except OSError:
        if not is_prepared(str(target)):  # or else another process was faster by a moment
            raise


def publish(folder: Path, uri: str) -> None:
    """Upload a folder to S3, dataset.json last."""
    for file in sorted(folder.iterdir(), key=lambda path: path.name == DESCRIPTION):
        storage.upload(file, storage.join(uri, file.name))


def local_copy(uri: str, cache: Path, *, always: bool = False) -> Path:
    """Prepared data as a local folder: the folder itself, or its copy on this node, fetched once by
    whichever process comes first.

    always: copy also what is not on S3 (a shared disk that is slow to read here and there). The
    copy's name is the folder's, a digest of what the data was made from.
    """
    if not storage.is_s3(uri) and not always:
        return Path(uri)
    target = cache / storage.name(uri)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{target.name}.lock", uri):
        if not is_prepared(str(target)):
            with building(target) as folder:
                storage.download(uri, folder)
    return target


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock between the processes of this node; it ends with its process, however
    that ends.
    """
    deadline = time.monotonic() + FETCH_SECONDS
    with open(path, "w") as file:
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


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path)
