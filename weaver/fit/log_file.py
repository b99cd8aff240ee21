"""--log-file: write the messages of a training to a file too."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from common import storage
from common.errors import InputError


class _Tee:
    """A stream that also writes complete lines to a file; of a progress bar only the last state."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream = stream
        self.file = file
        self.line = ""

    def write(self, text: str) -> int:
        self.line += text
        *lines, self.line = self.line.split("\n")
        for line in lines:
            # text that a carriage return overwrites does not go to the file
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
def log_to_file(path: str) -> Iterator[None]:
    """Append everything that the block writes to stderr to a file, too.

    Each of several ranks has its own file, PATH.000, PATH.001, ..., as in weaver-core. An empty
    path means no file. Raises InputError if the file cannot be written.
    """
    if not path:
        yield
        return
    if not storage.is_local(path):
        raise InputError(f"--log-file {path}: give a path on this machine")
    path = storage.absolute(path)
    if "LOCAL_RANK" in os.environ:
        path = f"{path}.{int(os.environ['LOCAL_RANK']):03d}"
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise InputError(f"--log-file {path}: {error.strerror or error}") from None
    stream = sys.stderr
    tee = _Tee(stream, file)
    try:
        with contextlib.redirect_stderr(tee):  # type: ignore[type-var]
            yield
    finally:
        if tee.line:
            file.write(tee.line.rpartition("\r")[2] + "\n")
        file.close()
