"""Room on a disk: how much there is, and one sentence where it does not suffice."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator

from common.errors import JecError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk, and of a user's share of it that is used up."""
SQLITE_BLOCKS = 64 * 2**10
"""Bytes that SQLite adds to its files at a time, at most; where less is free, the disk is full."""
SQLITE_VAGUE = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
"""What SQLite also says where its journal finds no room: "attempt to write a readonly database"."""
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def free_bytes(path: str | os.PathLike[str]) -> int:
    """What this user may still write on the disk where a path is, or is to be.

    A user's share of the disk (quota) is not known here. Raises OSError.
    """
    return shutil.disk_usage(_folder_of(path)).free


def require(path: str | os.PathLike[str], needed: int, what: str) -> None:
    """Raise StorageError, before anything is written, where there is less room than needed."""
    free = free_bytes(path)
    if free < needed:
        raise StorageError(
            f"{what} needs {shown(needed)} in {_folder_of(path)}, where {shown(free)} are free;"
            " free some space there, or name another folder, and repeat the command"
        )


def sentence(error: OSError, path: str | os.PathLike[str], needed: int | None = None) -> str:
    """The error of a full disk: the folder, what is free in it, and what was needed if known."""
    folder = _folder_of(path)
    cause = "your quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
    need = "" if needed is None else f", {shown(needed)} needed"
    return (
        f"cannot write {path}: {cause} ({error.strerror}): {shown(free_bytes(folder))} free in"
        f" {folder}{need}; free some space there, then repeat the command (a run goes on with"
        " --resume)"
    )


@contextlib.contextmanager
def explained(folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turn a full disk, wherever it shows in the block, into a StorageError of one sentence.

    folder: where the block writes, for errors that do not say which file they are about (default:
    the working folder). Libraries hide the error of the system behind others, and SQLite has one of
    its own; both count.
    """
    place = folder if folder is not None else os.getcwd()
    try:
        yield
    except JecError:
        raise
    except Exception as error:
        full = _full_disk(error, place)
        if full is None:
            raise
        # A write to an open file does not say which one it is.
        raise StorageError(sentence(full, full.filename or place)) from error


def _full_disk(error: BaseException, folder: str | os.PathLike[str]) -> OSError | None:
    """The error of a full disk that an exception is, or was raised because of; None for others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause
        if isinstance(cause, sqlite3.Error) and _is_full(cause, folder):
            return OSError(errno.ENOSPC, str(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def _is_full(error: sqlite3.Error, folder: str | os.PathLike[str]) -> bool:
    code: int = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the kind; the rest says where
    if code in SQLITE_VAGUE:
        return free_bytes(folder) < SQLITE_BLOCKS
    return code == sqlite3.SQLITE_FULL


def shown(size: int) -> str:
    """Bytes in words: '3.2 MB'."""
    number, unit = float(size), 0
    while number >= 1000 and unit < len(UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {UNITS[unit]}" if unit == 0 else f"{number:.1f} {UNITS[unit]}"


def _folder_of(path: str | os.PathLike[str]) -> str:
    """The nearest folder above a path that exists, or the path itself if it is one."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder
