"""The cache of torch.compile: a temporary folder that is removed with the command.

torch itself would not remove `torchinductor_<user>` and Triton's cache. Set TORCHINDUCTOR_CACHE_DIR
to keep compiled code after a command, for example for the trials of a search that share it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from common import scratch
from common.storage import space

COMPILED = "jec-compiled-"
VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variable of the environment -> name of the folder that it gets."""
HEADERS = "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"
"""Variable that keeps precompiled headers (70 MB, seen with torch 2.13) unless it is "0".

They lie in `torchinductor_<user>` among the temporary files, wherever the cache is.
"""
TEMPORARY = "temporary"


@contextlib.contextmanager
def of_command() -> Iterator[None]:
    """Let this process, and those that it starts, keep compiled code in a folder of the block.

    Variables that are already set are not changed.
    """
    missing = {name: folder for name, folder in VARIABLES.items() if not os.environ.get(name)}
    if not missing:
        yield
        return
    with scratch.folder(COMPILED) as place:
        values = {name: str(place / folder) for name, folder in missing.items()}
        if HEADERS not in os.environ:
            values[HEADERS] = "0"
        os.environ.update(values)
        try:
            yield
        finally:
            for name in values:
                os.environ.pop(name, None)


@contextlib.contextmanager
def of_compilers() -> Iterator[None]:
    """Let compilers that the block starts keep their temporary files beside the compiled code.

    So they go with it, also if the compilers are killed. Python's own temporary files stay where
    they are. Nothing changes where the compiled code outlives the command.
    """
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    if not cache.parent.name.startswith(COMPILED):
        yield
        return
    space.add_removed_folder(cache.parent)  # it may be that of the process that started this one
    space.temporary_folder()  # Python chooses its folder at the first use, and keeps it
    before = os.environ.get("TMPDIR")
    folder = cache.parent / TEMPORARY
    with space.catch_full_disk(cache.parent):
        folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def folders() -> list[str]:
    """Return the folders into which torch.compile writes, besides those of temporary files."""
    return [os.environ[name] for name in VARIABLES if os.environ.get(name)]
