"""Temporary folders that are removed when their process ends, even if it is killed.

A process locks a file in its folder until it ends. The next command that creates a folder with the
same prefix removes the folders that no process locks. A lock, unlike a pid, also works between
containers that share the temporary folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common.storage import space

LOCK = ".lock"
YOUNG_SECONDS = 60.0
"""A folder this young is kept even without a lock, because its process may be about to lock it."""


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """Create a temporary folder, and remove it at the end of the `with` block.

    Folders that killed commands left behind are removed first.

    Args:
        prefix: Prefix of the folder's name, which no other program uses.

    Raises:
        FullDiskError: If the disk of the folder is full, or one to which libraries write by
            default (`space.full_folder`).
    """
    parent = space.temporary_folder()
    remove_abandoned(prefix)
    with (
        space.explained(parent),
        # ignore_cleanup_errors: another process may be removing the same files
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as path,
        # A second time, because the disk must be checked before the folder is removed, which frees
        # its space.
        space.explained(parent),
        open(Path(path) / LOCK, "wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(path)


def remove_abandoned(prefix: str) -> None:
    """Remove folders with this prefix whose process has ended."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # of another user, removed meanwhile, or locked
            if left.is_symlink() or time.time() - left.stat().st_mtime <= YOUNG_SECONDS:
                continue
            with open(left / LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
