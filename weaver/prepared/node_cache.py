"""This node's cache: the folder for decoded jets and copies of distant data."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import private_folder, scratch

CACHE_VARIABLE = "JEC_CACHE"
TEMPORARY_PREFIX = "jec-own-cache-"
"""Prefix of the temporary caches of single commands (--no-cache)."""


def node_cache() -> Path:
    """Make and return this node's cache.

    It is JEC_CACHE, or a folder for this user in the temporary directory, where other users can
    write too. So it is created for this user only, and checked. Raises InputError if another user
    owns it or can write to it.
    """
    return private_folder.make(place(), CACHE_VARIABLE)


def place() -> Path:
    """Return the path of the cache, which need not exist."""
    default = os.path.join(tempfile.gettempdir(), f"jec-cache-{os.getuid()}")
    return Path(os.environ.get(CACHE_VARIABLE) or default)


@contextlib.contextmanager
def temporary_cache() -> Iterator[None]:
    """Let this process and its children use a temporary cache, which is deleted after the block."""
    before = os.environ.get(CACHE_VARIABLE)
    # a rank of a command with a temporary cache
    if before is not None and Path(before).name.startswith(TEMPORARY_PREFIX):
        yield
        return
    with scratch.folder(TEMPORARY_PREFIX) as folder:
        os.environ[CACHE_VARIABLE] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before
