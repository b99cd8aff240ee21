"""--log-file: the messages of a training in a file too."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common import storage
from common.errors import InputError


class _Both:
    """A stream whose whole lines go to a file too; a progress bar leaves its last state there."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream = stream
        self.file = file
        self.line = ""

    def write(self, text: str) -> int:
        self.line += text
        *lines, self.line = self.line.split("\n")
        for line in lines:
            # what a carriage return has overwritten is not kept
            self.file.write(line.rstrip("\r").rpartition("\r")[2] + "\n")
        self.file.flush()
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


@contextlib.contextmanager
def logged(path: str) -> Iterator[None]:
    """Within the block, what is written to stderr goes to a file too, at its end.

    Of several ranks each has a file of its own, PATH.000, PATH.001, ..., as in weaver-core. Nothing
    is done for an empty path. Raises InputError where the file cannot be written.
    """
    if not path:
        yield
        return
    if not storage.is_local(path):
        raise InputError(f"--log-file {path}: give a path on this machine")
    if "LOCAL_RANK" in os.environ:
        path = f"{path}.{int(os.environ['LOCAL_RANK']):03d}"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"--log-file {path}: {error.strerror or error}") from None
    stream = sys.stderr
    both = _Both(stream, file)
    try:
        with contextlib.redirect_stderr(both):  # type: ignore[type-var]
            yield
    finally:
        if both.line:
            file.write(both.line.rpartition("\r")[2] + "\n")
        file.close()
