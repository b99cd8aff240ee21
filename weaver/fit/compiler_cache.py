"""The cache of torch.compile: a temporary folder that is removed with the command.

By itself it leaves `torchinductor_<user>` and Triton's cache behind. Whoever wants compiled code to
outlive a command, such as the trials of a search that share it, sets TORCHINDUCTOR_CACHE_DIR.
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

    What the environment sets already stays.
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
