"""Command lines: a typing error brings the nearest name, an error one sentence."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from common import storage
from common.errors import InputError, InterruptedRun, JecError, nearest


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest flag or value behind its own message.

    Abbreviated flags are refused: a later version may have two flags that begin so.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        # An address may hold a secret, and this may be the log of a pod.
        shown = re.sub(r"\b\w+://\S+", "(an address)", message)
        self.exit(2, f"error: {shown}{self._hint(shown)}\nsee: {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        flags = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        near = [
            match for flag in flags for match in nearest(flag, self._option_string_actions, count=1)
        ]
        choice = re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)", message)
        if choice:
            near = nearest(choice[1], re.findall(r"[\w.+-]+", choice[2]), count=1)
        return f"; did you mean {' or '.join(near)}?" if near else ""


def local_path(text: str) -> Path:
    """A path on this machine's disks.

    argparse reports an address, which would otherwise become a folder of that name.
    """
    try:
        if storage.is_local(text):
            is_relative = not text.startswith(("file:", "~"))
            return Path(text) if is_relative else Path(storage.absolute(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(f"'{text}' is an address; a path on this machine is needed")


def truth(text: str) -> bool:
    """The words for yes and no that people and Kubeflow write.

    Raises ValueError for anything else, as argparse wants it.
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(text).lower() not in words:
        raise ValueError(f"'{text}' is not true or false")
    return words[str(text).lower()]


def run_main(body: Callable[[], int | None]) -> int:
    """Run a program's body and return the exit code.

    A JecError becomes `error: ...` on stderr and its own exit code, Ctrl-C becomes 130.
    """
    try:
        return body() or 0
    except JecError as error:
        print(
            f"{'stopped' if isinstance(error, InterruptedRun) else 'error'}: {error}",
            file=sys.stderr,
            flush=True,
        )
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130


def require(condition: bool, message: str) -> None:
    """Raise InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)
