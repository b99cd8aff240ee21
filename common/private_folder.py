"""A private folder of this user in a shared folder, such as /tmp."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from common.errors import InputError, StorageError
from common.storage import space


def make(path: Path, variable: str) -> Path:
    """Make a folder of mode 0700, or check one that exists; returns its path.

    Anyone with write access could replace files that we read later. So it must be a folder and no
    link, owned by this user, and writable by nobody else. variable: the environment variable that
    names another folder, for the error. Raises InputError, and StorageError where the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = os.lstat(path)
    except OSError as error:
        if full := space.full_error(error, path):
            raise full from error
        raise StorageError(f"cannot make the folder {path}: {error.strerror or error}") from error
    problem = ""
    if stat.S_ISLNK(status.st_mode):
        problem = "is a link"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "is not a folder"
    elif status.st_uid != os.getuid():
        problem = f"belongs to another user (uid {status.st_uid}, you are {os.getuid()})"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        problem = f"can be written by other users (mode {stat.S_IMODE(status.st_mode):04o})"
    if problem:
        raise InputError(
            f"{path} {problem}, so that its content cannot be trusted; remove it, or name a folder"
            f" that only you can write to: export {variable}=FOLDER"
        )
    return path


def open_lock(path: Path) -> int:
    """Open a lock file for reading and writing, and make it where there is none; its descriptor.

    A link is refused; the file's content is not changed. Raises InputError and StorageError.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"the lock {path} is a link; remove it") from error
        if full := space.full_error(error, path):
            raise full from error
        raise StorageError(f"cannot open the lock {path}: {error.strerror or error}") from error
    return handle
