"""Files on this machine's disks."""

from __future__ import annotations

import contextlib
import errno
import glob as python_glob
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common.errors import AccessError, InputError, JecError, StorageError
from common.storage import durable, nearby, space
from common.storage.entry import Entry
from common.storage.source import Source

PARTIAL = ".partial-"  # begins the name of a file that is being written
MISSING = (errno.ENOENT, errno.ENOTDIR)
USER_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    errno.ELOOP,
)
"""Errors that another path or other rights would avoid."""
NO_RIGHTS = (errno.EACCES, errno.EPERM)
"""Errors that other rights would avoid; a token of a network disk may have expired."""
LOST_AND_FOUND = "lost+found"
"""Folder of the system at the top of an ext4 disk; only root may read it."""
WILDCARD = re.compile(r"[*?[]")


def explain(
    error: OSError, path: str, verb: str = "read", num_bytes: int | None = None
) -> JecError:
    """Return our error for an error of the system at a path.

    It is an InputError where another path helps, an AccessError for a file that may not be read,
    FullDiskError for a full disk, and a StorageError otherwise. num_bytes: the size to be written,
    if known.
    """
    if error.errno in MISSING and verb == "read":
        return InputError(nearby.missing_file(path))
    if full := space.full_error(error, path, num_bytes):
        return full
    problem = f"cannot {verb} {path}: {error.strerror or error}"
    if error.errno in NO_RIGHTS and verb == "read":
        return AccessError(
            f"{problem}; correct its rights, or renew the ticket or token of the disk (kinit, on"
            " AFS aklog), and repeat the command"
        )
    return (InputError if error.errno in MISSING + USER_ERRORS else StorageError)(problem)


@contextlib.contextmanager
def _translate_errors(
    path: str, verb: str = "read", num_bytes: int | None = None
) -> Iterator[None]:
    """Turn the system's errors into ours."""
    if "\0" in path:
        raise InputError(f"{path!r} is not a path: it holds a null byte")
    try:
        yield
    except OSError as error:
        if error.errno in space.FULL and verb == "read":
            raise  # it is about the target of a copy, which its writer reports
        raise explain(error, path, verb, num_bytes) from error


class LocalSource(Source):
    """A file on disk."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises InputError for a folder, a pipe or a device."""
        self.uri = path
        with _translate_errors(path):
            _refuse_special(path, os.stat(path).st_mode)
            self._file = os.open(path, os.O_RDONLY)
        status = os.fstat(self._file)
        self.size = status.st_size
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise InputError(f"{path} is a folder; name a file in it")

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop."""
        with _translate_errors(self.uri):
            content = os.pread(self._file, stop - start, start)
        return self.check(content, start, stop)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def open_source(path: str, _entry: Entry | None = None) -> Source:
    """Open a file for reading parts of it."""
    return LocalSource(path)


def exists(path: str) -> bool:
    """Return whether there is a file or folder of this path.

    Raises AccessError in a folder that may not be read, where nobody can know.
    """
    with _translate_errors(path):
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in NO_RIGHTS:
                raise
            return False
        except ValueError:  # a name that no disk can have
            return False
    return True


def read_bytes(path: str) -> bytes:
    """Return the content of one file.

    Raises InputError where there is none, or it is a pipe or device.
    """
    with _translate_errors(path):
        _refuse_special(path, os.stat(path).st_mode)
        return Path(path).read_bytes()


def _refuse_special(path: str, mode: int) -> None:
    """Raise InputError for a pipe, a socket or a device: reading it may never end."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is {kind_of(mode)}, and no file; give a file")


def kind_of(mode: int) -> str:
    """Describe the kind of a path by its st_mode."""
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def check_path(path: str) -> None:
    """Raise InputError for a path that no file can have: too long, or a link to itself."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise InputError(
                f"no file can have the path {path}: {error.strerror}; give another path"
            ) from None


def check_writable_folder(path: str) -> None:
    """Raise InputError if a folder cannot be made or written to; no file remains there."""
    path = os.path.abspath(path)
    with _translate_errors(path, "write"):
        folder = _nearest(path)
        mode = os.stat(folder).st_mode
        if not stat.S_ISDIR(mode):
            raise InputError(f"cannot write to {path}: {folder} is {_no_folder(mode)}")
        # os.access is not enough: root may write everywhere, but not to /proc.
        handle, probe = tempfile.mkstemp(dir=folder, prefix=PARTIAL)
        os.close(handle)
        os.remove(probe)


def check_writable_file(path: str) -> None:
    """Raise InputError where a file could not be written; nothing is written."""
    path = os.path.abspath(path)
    with _translate_errors(path, "write"):
        exists = os.path.exists(path)
        if not exists or stat.S_ISREG(os.stat(path).st_mode):
            check_writable_folder(os.path.dirname(path))
            _nearest(path)  # refuses a name that is too long
            return
        mode = os.stat(path).st_mode
        if not stat.S_ISCHR(mode):  # /dev/null and /dev/stdout can be written
            raise InputError(f"cannot write {path}: it is {kind_of(mode)}; name a file")


def _nearest(path: str) -> str:
    """Return the path itself, or the nearest of the folders above it, that exists."""
    while True:
        try:
            os.stat(path)
        except FileNotFoundError:
            # a link without a target exists itself, and no folder can be made there
            if os.path.lexists(path):
                raise InputError(f"cannot write {path}: it is a link to nothing") from None
            path = os.path.dirname(path)
        except NotADirectoryError:
            path = os.path.dirname(path)
        else:
            return path


def _no_folder(mode: int) -> str:
    return "a file, not a folder" if stat.S_ISREG(mode) else f"{kind_of(mode)}, not a folder"


def write_bytes(path: str, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path, len(content)) as temporary:
        Path(temporary).write_bytes(content)


def create(path: str, content: bytes) -> bool:
    """Write a file unless it exists, whole or not at all."""
    with _translate_errors(path, "write"):
        folder = os.path.dirname(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.remove(temporary)
    return True


def entries(path: str) -> list[Entry]:
    """Return the files below a folder, or the one file of that path.

    Links to folders are followed, a loop of them once; a link without a target is no file. Raises
    AccessError for a folder in it that may not be read, except lost+found.
    """
    with _translate_errors(path):
        is_folder = os.path.isdir(path)
    if not is_folder:
        return _entries_of([path], refuse_special=True)
    files: list[str] = []
    visited = set()
    for folder, folders, names in os.walk(path, followlinks=True, onerror=_refuse_unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [os.path.join(folder, name) for name in names]
    return _entries_of(files)


def _refuse_unreadable(error: OSError) -> None:
    """Raise AccessError for a folder that may not be listed; its files would be missing."""
    if error.errno in NO_RIGHTS and os.path.basename(error.filename) != LOST_AND_FOUND:
        raise explain(error, error.filename) from error


def glob(pattern: str) -> list[Entry]:
    """Return the files that match, by the rules of Python's glob: only folders that match are read.

    The pattern may be relative: what the working directory is called does not matter. Raises
    AccessError if nothing matches because the first folder may not be listed.
    """
    if pattern.startswith("~"):
        home, slash, rest = pattern.partition("/")
        pattern = python_glob.escape(os.path.expanduser(home)) + slash + rest
    paths = [os.path.abspath(path) for path in python_glob.iglob(pattern)]
    if not paths:
        start, *rest_of_pattern = WILDCARD.split(pattern, maxsplit=1)
        try:
            if rest_of_pattern:
                os.scandir(os.path.dirname(start) or ".").close()
            else:
                os.stat(pattern)
        except OSError as error:
            _refuse_unreadable(error)
        except ValueError:  # a name that no disk can have
            pass
    return _entries_of(paths, refuse_special=True)


def _entries_of(paths: list[str], *, refuse_special: bool = False) -> list[Entry]:
    """Select the files among these paths: no folders, links without a target or partial files.

    Pipes, sockets and devices are passed over, or refused with InputError.
    """
    files = []
    for path in paths:
        if os.path.basename(path).startswith(PARTIAL):
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            if error.errno in (*MISSING, errno.ELOOP):  # a link without a target, or to itself
                continue
            raise explain(error, path) from error
        if refuse_special:
            _refuse_special(path, status.st_mode)
        if stat.S_ISREG(status.st_mode):
            files.append(Entry(uri=path, size=status.st_size, tag=str(status.st_mtime_ns)))
    return files


def upload(source: str, path: str) -> None:
    """Copy one local file to a path, atomically."""
    with replacing(path, os.path.getsize(source)) as temporary:
        shutil.copyfile(source, temporary)


def download(path: str, target: str) -> None:
    """Copy one file to a local path that exists already."""
    with _translate_errors(path):
        shutil.copyfile(path, target)


def delete(path: str) -> int:
    """Remove a file or a folder with everything in it; returns how many files went.

    Of a link only the link is removed, not its target.
    """
    with _translate_errors(path, "delete"):
        if os.path.isdir(path) and not os.path.islink(path):
            count = sum(len(names) for _, _, names in os.walk(path))
            shutil.rmtree(path)
            return count
        if os.path.lexists(path):
            os.remove(path)
            return 1
    return 0


@contextlib.contextmanager
def replacing(path: str, num_bytes: int | None = None) -> Iterator[str]:
    """Yield a temporary name beside `path`, which becomes `path` if the block ends well.

    If it does not, the temporary file is removed. num_bytes: the size to be written, if known.
    """
    with _translate_errors(path, "write", num_bytes), _replacing(path) as temporary:
        yield temporary


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{PARTIAL}{secrets.token_hex(8)}")
    # The user's umask decides who may read it; mkstemp's 0600 would hide results from colleagues.
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        durable.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise
