"""The project's own files, found by their relative path wherever a command runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from common import storage

ROOT = Path(__file__).resolve().parent.parent


def here(path: str) -> str:
    """The path itself where it exists or is a URI, else the project's file of that relative path.

    A path that is neither is returned unchanged.
    """
    inside = ROOT / path
    return (
        str(inside)
        if storage.is_local(path) and not os.path.exists(path) and inside.is_file()
        else path
    )


def is_own(path: str) -> bool:
    """True for the relative path of a file of the project, which images hold as well."""
    return storage.is_local(path) and (ROOT / path).is_file() and not Path(path).is_absolute()


def version() -> str:
    """The project's version, as pyproject.toml has it; 'unknown' where that file is not."""
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        return "unknown"
    found = re.search(r'^version = "([^"]+)"', path.read_text(), re.MULTILINE)
    return found[1] if found else "unknown"
