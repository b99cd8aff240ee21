"""Files that survive a power cut: content reaches the disk before the name that announces it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

# file systems that cannot sync (some FUSE mounts) say so with one of these
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises OSError where the disk cannot take it.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def rename(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a file or a folder its final name, after all of its content is on the disk.

    A file of that name is replaced, as os.replace does. Raises OSError.
    """
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                sync(path)
        sync(folder)
    if not os.path.isdir(source):
        sync(source)
    os.replace(source, target)
    # The file is whole under its name by now; a folder that cannot be opened changes nothing.
    with contextlib.suppress(PermissionError):
        sync(Path(target).absolute().parent)
