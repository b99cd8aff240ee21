"""The cache of torch.compile: a temporary folder that is removed with the command.

torch itself would not remove `torchinductor_<user>` and Triton's cache. Set TORCHINDUCTOR_CACHE_DIR
to keep compiled code after a command, for example for the trials of a search that share it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from common import scratch

COMPILED = "jec-compiled-"
VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variable of the environment -> name of the folder that it gets."""


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
        for name, folder in missing.items():
            os.environ[name] = str(place / folder)
        try:
            yield
        finally:
            for name in missing:
                os.environ.pop(name, None)
