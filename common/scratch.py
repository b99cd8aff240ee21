"""Temporary folders that end with their process, also where that is killed.

A process holds a lock in its folder as long as it lives; the next command that makes a folder with
the same prefix removes those without a holder. So it works wherever the temporary folder is seen
from, such as another container.
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
"""A folder without a lock may be just being made."""


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A folder below the temporary one, which goes with the block; those of killed commands go now.

    prefix: of its name, which other programs do not use. Raises FullDiskError where a disk is full
    that it, or what the block writes without a name, lies on.
    """
    parent = space.temporary_folder()
    remove_left(prefix)
    with (
        space.explained(parent),
        # another process may remove what it holds while it is removed itself
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True) as path,
        # before the folder goes, and the room that it took is free again
        space.explained(parent),
        open(Path(path) / LOCK, "wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(path)


def remove_left(prefix: str) -> None:
    """Remove folders with this prefix whose process has ended."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # another's, gone, or locked by a living command
            if left.is_symlink() or time.time() - left.stat().st_mtime <= YOUNG_SECONDS:
                continue
            with open(left / LOCK, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
