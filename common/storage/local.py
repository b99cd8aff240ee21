"""Files on this machine's disks."""

from __future__ import annotations

import contextlib
import errno
import glob as python_glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import InputError
from common.storage.entry import Entry
from common.storage.source import Source

PARTIAL = ".partial-"  # begins the name of a file that is being written


class LocalSource(Source):
    """A file on disk."""

    def __init__(self, path: str) -> None:
        self.uri = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"there is no file {path}") from None
        except PermissionError:
            raise InputError(f"{path} may not be read by this user") from None
        self.size = os.fstat(self._file).st_size

    def read(self, start: int, stop: int) -> bytes:
        return self.check(os.pread(self._file, stop - start, start), start, stop)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def open_source(path: str, _entry: Entry | None = None) -> Source:
    return LocalSource(path)


def exists(path: str) -> bool:
    return os.path.exists(path)


def read_bytes(path: str) -> bytes:
    """The content of one file. Raises InputError where there is none."""
    try:
        return Path(path).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"there is no file {path}") from None


def write_bytes(path: str, content: bytes) -> None:
    with replacing(path) as temporary:
        Path(temporary).write_bytes(content)


def entries(path: str) -> list[Entry]:
    """The files below a folder, or the one file of that path.

    Links to folders are followed, a loop of them once; a link without a target is no file.
    """
    if os.path.isfile(path):
        return _entries_of([path])
    files: list[str] = []
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [os.path.join(folder, name) for name in names]
    return _entries_of(files)


def glob(pattern: str) -> list[Entry]:
    """The files that match, by the rules of Python's glob: only folders that match are listed.

    The pattern may be relative: what the working directory is called does not matter.
    """
    if pattern.startswith("~"):
        home, slash, rest = pattern.partition("/")
        pattern = python_glob.escape(os.path.expanduser(home)) + slash + rest
    return _entries_of([os.path.abspath(path) for path in python_glob.iglob(pattern)])


def _entries_of(paths: list[str]) -> list[Entry]:
    """The files among these paths: no folder, no link without a target, nothing half-written."""
    files = []
    for path in paths:
        if os.path.basename(path).startswith(PARTIAL):
            continue
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):  # a link without a target
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link to itself
                continue
            raise
        if stat.S_ISREG(status.st_mode):
            files.append(Entry(uri=path, size=status.st_size, tag=str(status.st_mtime_ns)))
    return files


def upload(source: str, path: str) -> None:
    """Copy one local file to a path, atomically."""
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)


def download(path: str, target: str) -> None:
    """Copy one file to a local path that exists already."""
    try:
        shutil.copyfile(path, target)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"there is no file {path}") from None


def delete(path: str) -> int:
    """Remove a file or a folder with everything in it; returns how many files went."""
    files = entries(path)
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif files:
        os.remove(path)
    return len(files)


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, which becomes `path` if the block ends well.

    If it does not, the temporary file is removed.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=PARTIAL)
    os.close(handle)
    try:
        yield temporary
        # mkstemp's 0600 would hide results from colleagues on a shared disk
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
