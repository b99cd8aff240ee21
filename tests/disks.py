"""Small disks for tests of full ones."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.storage import space


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount an empty file system in memory at a new folder, for the block.

    options: those of `mount` for a tmpfs, such as size=1m. Only root may mount one: the test is
    skipped for other users.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Write a file that leaves only `leave` bytes free on a disk; returns its path."""
    path = disk / "other"
    path.write_bytes(b"\0" * (space.free_bytes(disk) - leave))
    return path
