"""Globs for servers that list one folder at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from common.storage.addresses import matches
from common.storage.entry import Entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child:
    """A file or folder in a folder."""

    name: str
    uri: str
    is_folder: bool
    entry: Entry | None = None
    """Of a file, where the listing has its size."""


Children = Callable[[str], list[Child]]
"""URI of a folder -> its children; empty if there is no such folder."""


def matching_files(root: str, path: str, wildcards: str, children: Children) -> list[Child]:
    """Return the files below `root` whose path matches.

    A folder that does not match is not listed.
    """
    folders = [root]
    *parents, last = path.strip("/").split("/")
    for part in parents:
        if any(char in part for char in wildcards):
            folders = [child.uri for child in _matches(folders, part, children) if child.is_folder]
        else:
            folders = [f"{folder}/{part}" for folder in folders]
    return [child for child in _matches(folders, last, children) if not child.is_folder]


def _matches(folders: list[str], pattern: str, children: Children) -> list[Child]:
    """Return the children of these folders with matching names; a `*` matches no hidden one."""
    hidden_too = pattern.startswith(".")
    return [
        child
        for folder in folders
        for child in children(folder)
        if matches(child.name, pattern) and (hidden_too or not child.name.startswith("."))
    ]
