"""Free space on disks, and errors in one sentence where it does not suffice."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence

from common.errors import FullDiskError, JecError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's errors for a full disk, and for a quota that is used up."""
FULL_TEXTS = tuple(os.strerror(number) for number in FULL)
"""The same in the texts of libraries that raise errors of their own, such as torch."""
WRITE_TEXTS = (
    *("failed writing", "write failed", "unable to write", "failed to write"),
    *("unexpected pos ", "iostream error"),  # torch.save
    *(" requested and ",),  # numpy's tofile: 400000 requested and 131072 written
)
"""Texts of libraries for a write that failed for any reason."""
NO_TEMPORARY = "No usable temporary directory"
"""Python's message if no file can be written to any of its folders for temporary files."""
NEARLY_FULL = 64 * 2**10
"""Bytes that SQLite adds to its files at a time, at most; where less is free, the disk is full."""
SQLITE_VAGUE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""Errors that SQLite also raises where its journal does not fit on the disk, such as "attempt to
write a readonly database"."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # named in errors; nothing is written there
UNITS = ("bytes", "kB", "MB", "GB", "TB")

_removed_folders: set[str] = set()
"""Temporary folders that this process removes at its end."""


def add_removed_folder(path: str | os.PathLike[str]) -> None:
    """Register a temporary folder that this process removes at its end.

    An error about a full disk then names its parent, because the user could not find the folder.
    """
    _removed_folders.add(os.path.abspath(path))


def free_bytes(path: str | os.PathLike[str]) -> int:
    """Return how many bytes this user may still write on the disk of a path, which need not exist.

    A user's share of the disk (quota) is not known here. Raises OSError.
    """
    return shutil.disk_usage(_folder_of(path)).free


def is_full(path: str | os.PathLike[str]) -> bool:
    """Return whether no further bytes or no further file can be written to the disk of a path."""
    return free_bytes(path) < NEARLY_FULL or _has_no_inodes(path)


def full_folder(*folders: str | os.PathLike[str]) -> str:
    """Return the first folder whose disk is full; empty if there is none.

    After `folders`, the folders are checked into which this process and its libraries write by
    themselves: those of temporary files, shared memory, and standard output that goes to a file.
    """
    for folder in (*folders, *_temporary_folders(), SHARED_MEMORY, *_output_folders()):
        with contextlib.suppress(OSError):  # a folder that cannot be looked at
            if is_full(folder):
                return _folder_of(folder)
    return ""


def require_free(path: str | os.PathLike[str], num_bytes: int, what: str) -> None:
    """Raise FullDiskError, before anything is written, where there is less room than needed."""
    free = free_bytes(path)
    if free < num_bytes:
        raise FullDiskError(
            f"{what} needs {size_text(num_bytes)} in {_folder_of(path)}, where {size_text(free)}"
            " are free; free some space there, or name another folder, and repeat the command"
        )


def sentence(error: OSError, path: str | os.PathLike[str], num_bytes: int | None = None) -> str:
    """Return the text of a full disk's error: the folder, its free space, and the needed space."""
    folder = _remaining_folder(path)
    cause, free = "the disk is full", f"{size_text(free_bytes(folder))} free"
    if error.errno == errno.EDQUOT:
        cause, free = "your quota is used up", f"{free} for others"
    elif _has_no_inodes(folder):
        cause, free = "the disk is full of files", f"no file can be added (inodes), {free}"
    need = "" if num_bytes is None else f", {size_text(num_bytes)} needed"
    return (
        f"cannot write {path}: {cause} ({error.strerror}): {free} in {folder}{need};"
        f" {_advice(folder)}, then repeat the command (a run goes on with --resume)"
    )


def full_error(
    error: OSError, path: str | os.PathLike[str], num_bytes: int | None = None
) -> FullDiskError | None:
    """Return the error of a full disk in one sentence; None for any other error of the system."""
    if error.errno not in FULL:
        return None
    return FullDiskError(sentence(error, path, num_bytes))


def error_of_folder(folder: str | os.PathLike[str], num_bytes: int | None = None) -> FullDiskError:
    """Return the error for a folder whose disk is full, where no error of the system is at hand."""
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return FullDiskError(sentence(error, folder, num_bytes))


def error_of_program(text: str, *folders: str | os.PathLike[str]) -> FullDiskError | None:
    """Return the error for a full disk if a program's output `text` reports one, else None.

    folders: where the program writes, the likeliest first. The disk of its temporary files or its
    shared memory may be the full one as well.
    """
    if not any(words in text for words in FULL_TEXTS):
        return None
    sizes = re.findall(r"size \((\d+) bytes\)", text)  # that Triton asked for
    num_bytes = int(sizes[0]) if sizes else None
    if "shared memory" in text:
        return error_of_folder(SHARED_MEMORY, num_bytes)
    return error_of_folder(full_folder(*folders) or folders[0], num_bytes)


def working_folder() -> str:
    """Return the working folder; '/' where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


@contextlib.contextmanager
def catch_full_disk(*folders: str | os.PathLike[str]) -> Iterator[None]:
    """Raise FullDiskError where anything in the block fails because a disk is full.

    folders: where the block writes, the likeliest first, for errors that do not say which file they
    are about (default: the working folder). Errors of libraries count as well: some wrap the error
    of the system, SQLite has its own, and some say only that a write failed. The text names the
    first of the folders whose disk is full, or another one that `full_folder` checks.
    """
    try:
        yield
    except JecError:
        raise
    except Exception as error:
        places = folders or (working_folder(),)
        cause = _full_disk(error, places)
        if cause is None:
            raise
        path = _file_of(cause) or full_folder(*places) or places[0]
        raise FullDiskError(sentence(cause, path)) from error


def _full_disk(error: BaseException, folders: Sequence[str | os.PathLike[str]]) -> OSError | None:
    """Return the full-disk error among an exception and its causes; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause
        if _says_full(cause, folders):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        cause = cause.__cause__ or cause.__context__
    return None


def _says_full(error: BaseException, folders: Sequence[str | os.PathLike[str]]) -> bool:
    """Return whether a library's error without a number of the system is about a full disk."""
    if isinstance(error, sqlite3.Error):
        code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the kind; the rest says where
        vague = code in SQLITE_VAGUE
        return code == sqlite3.SQLITE_FULL or (vague and bool(full_folder(*folders)))
    text = str(error)
    if any(words in text for words in FULL_TEXTS):
        return True
    vague = any(words in text.lower() for words in WRITE_TEXTS) or NO_TEMPORARY in text
    return vague and bool(full_folder(*folders))


def _file_of(error: OSError) -> str:
    """Return the file that could not be written, from an error of the system; empty if not named.

    The error of a copy names two files, of which the second is written.
    """
    name = error.filename2 if error.filename2 is not None else error.filename
    return os.fsdecode(name) if isinstance(name, str | bytes) else ""


def _has_no_inodes(path: str | os.PathLike[str]) -> bool:
    """Return whether no further file can be made on the disk of a path, even with free bytes."""
    status = os.statvfs(_folder_of(path))
    return status.f_files > 0 and status.f_favail == 0


def temporary_folder() -> str:
    """Return the folder for temporary files. Raises FullDiskError if all their disks are full."""
    with catch_full_disk():
        return tempfile.gettempdir()


def _temporary_folders() -> list[str]:
    """Return where temporary files go: the folder that is set, and the system's."""
    folders = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    with contextlib.suppress(OSError):  # none takes a file
        folders.append(tempfile.gettempdir())
    return folders or ["/tmp"]  # noqa: S108  # looked at, and not written to


def _output_folders() -> list[str]:
    """Return the folders of the files that standard output and standard error go to."""
    folders = []
    for number in (1, 2):
        with contextlib.suppress(OSError):  # closed, or another system than Linux
            path = os.readlink(f"/proc/self/fd/{number}")
            if os.path.isfile(path):
                folders.append(os.path.dirname(path))
    return folders


def _advice(folder: str) -> str:
    """Return a sentence on what to do about a full disk."""
    advice = "free some space there"
    if folder.startswith(SHARED_MEMORY):
        advice += ", or give the container more (docker --shm-size, on a cluster --shared-memory)"
    elif any(_folder_of(temporary) == folder for temporary in _temporary_folders()):
        advice += ", or set TMPDIR to a folder of another disk"
    return advice


def size_text(size: int) -> str:
    """Format a number of bytes: '3.2 MB'."""
    number, unit = float(size), 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {UNITS[unit]}" if unit == 0 else f"{number:.1f} {UNITS[unit]}"


def _remaining_folder(path: str | os.PathLike[str]) -> str:
    """Return the nearest existing folder above a path that this process keeps at its end."""
    folder = _folder_of(path)
    for removed in _removed_folders:
        if f"{folder}{os.sep}".startswith(f"{removed}{os.sep}"):
            return os.path.dirname(removed)
    return folder


def _folder_of(path: str | os.PathLike[str]) -> str:
    """Return the nearest folder above a path that exists, or the path itself if it is one."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
