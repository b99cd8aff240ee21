"""Temporary folders that are removed after their process has ended, even if it was killed.

A process holds a lock in its folder as long as it lives; the next command that makes a folder with
the same prefix removes those without a lock. This also works for processes in other containers
that share the temporary folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.storage import space

LOCK = ".lock"
NEW_LOCK = ".new-lock"
"""Name of a lock file that its process does not hold yet."""
YOUNG_SECONDS = 60.0
"""Age from which a folder without a lock file is removed; a younger one may get it still."""


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder for the block, and remove those of killed commands.

    prefix: of the folder's name, which no other program uses. Raises FullDiskError where the disk
    of the folder, or of temporary files that the block writes, is full.
    """
    parent = space.temporary_folder()
    remove_abandoned(prefix)
    with (
        space.catch_full_disk(parent),
        # another process may remove what it holds while it is removed itself
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as path,
        # handles errors before the folder is removed, which frees its space
        space.catch_full_disk(parent),
        open(Path(path) / NEW_LOCK, "wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        # with this name it is always held, as long as the process lives
        os.rename(Path(path) / NEW_LOCK, Path(path) / LOCK)
        space.add_removed_folder(path)
        yield Path(path)


def remove_abandoned(prefix: str) -> None:
    """Remove folders with this prefix whose process has ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # of another user, removed meanwhile, or locked by a running command
        with contextlib.suppress(OSError):
            if not path.is_symlink() and not _in_use(path):
                shutil.rmtree(path)


def _in_use(path: Path) -> bool:
    """Return whether the process of a folder lives. Raises OSError where that is not known."""
    try:
        lock = open(path / LOCK, "rb")  # noqa: SIM115  # closed below
    except FileNotFoundError:  # a new folder, or a removal that was interrupted
        return time.time() - path.stat().st_mtime <= YOUNG_SECONDS
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
