"""The project's own files, found by their relative path wherever a command runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from common import storage

ROOT = Path(__file__).resolve().parent.parent


def here(path: str) -> str:
    """Return the path if it exists or is a URI, else the project's file of that relative path.

    A path that is neither is returned unchanged.
    """
    inside = str(ROOT / path)
    # os.path.isfile is also false for a path that is too long, where Path.is_file raises OSError
    is_here = storage.is_local(path) and not os.path.exists(path) and os.path.isfile(inside)
    return inside if is_here else path


def is_own(path: str) -> bool:
    """Return True for the relative path of a file of the project, which images hold as well."""
    return storage.is_local(path) and os.path.isfile(ROOT / path) and not Path(path).is_absolute()


def version() -> str:
    """Return the project's version, as pyproject.toml has it; 'unknown' where that file is not."""
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        return "unknown"
    match = re.search(r'^version = "([^"]+)"', path.read_text(), re.MULTILINE)
    return match[1] if match else "unknown"


def git_commit() -> str:
    """Return the commit of the code: set in images, asked of git in a checkout.

    A '+' at its end says that files differ from it.
    """
    if "JEC_GIT_COMMIT" in os.environ:
        return os.environ["JEC_GIT_COMMIT"]
    # --exclude=* leaves tags out, so that the answer is always a hash
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(
            [*command, "--dirty=+"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        # no git, no checkout, or a checkout of another user, which git refuses
        return "unknown"
    return answer.stdout.strip()
