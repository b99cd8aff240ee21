"""Say which files exist beside one that does not."""

from __future__ import annotations

import itertools
import os

from common.errors import nearest

MOST_ENTRIES = 1000
"""Entries of a folder that are read, because folders of data may be large."""
MOST_NAMES = 5


def missing_file(path: str | os.PathLike[str]) -> str:
    """Return the sentence for a file that does not exist, with what to do.

    For a file of this machine it names the existing part of the path, or the most similar names in
    the folder, or the first ones.
    """
    text = os.path.expanduser(os.fspath(path))
    if "://" in text:
        return f"there is no file {text}; correct the address"
    folder = os.path.dirname(os.path.abspath(text))
    if not os.path.isdir(folder):
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        return f"there is no file {path}; correct the path, of which only {folder} exists"
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in itertools.islice(entries, MOST_ENTRIES))
    except OSError:
        names = []
    if not names:
        return f"there is no file {path}; correct the path ({folder} has no files)"
    similar = nearest(os.path.basename(text), names)
    if similar:
        return f"there is no file {path}; did you mean {' or '.join(similar)}?"
    shown = ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return f"there is no file {path}; correct the path ({folder} has {shown})"
