"""The folder of this node for decoded jets and for copies of distant ones."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from common import private_folder, scratch

CACHE_VARIABLE = "JEC_CACHE"
OWN = "jec-own-cache-"
"""Prefix of the caches of single commands (--no-cache), which go with them."""


def node_cache() -> Path:
    """The folder of this node for copies of prepared data.

    JEC_CACHE, or one for this user in the temporary directory. Other users may write beside it, so
    it is made and checked as this user's alone. Raises InputError where it is not.
    """
    return private_folder.make(place(), CACHE_VARIABLE)


def place() -> Path:
    """Where the cache is, or would be."""
    default = os.path.join(tempfile.gettempdir(), f"jec-cache-{os.getuid()}")
    return Path(os.environ.get(CACHE_VARIABLE) or default)


@contextlib.contextmanager
def own_cache() -> Iterator[None]:
    """Let this process, and those that it starts, use a cache that goes with the block."""
    before = os.environ.get(CACHE_VARIABLE)
    if before is not None and Path(before).name.startswith(OWN):  # a rank of such a command
        yield
        return
    with scratch.folder(OWN) as folder:
        os.environ[CACHE_VARIABLE] = str(folder)
        try:
            yield
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before
