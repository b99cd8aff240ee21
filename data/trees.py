"""Opening a tree of a ROOT file, with one sentence where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from common.errors import InputError
from weaver.read.opening import choose_tree, open_file


@contextlib.contextmanager
def open_tree(uri: str, tree: str, hint: str) -> Iterator[Any]:
    """The newest cycle of `tree` in the file at `uri`, closed at the end.

    Raises InputError for what is no ROOT file, and for one without the tree: it names what the file
    holds, and adds the hint.
    """
    with open_file(uri) as file:
        paths = file.keys()  # trees, RNTuples and folders, with their cycles
        if tree not in {path.rpartition(";")[0] for path in paths}:
            trees = ", ".join(sorted(set(file.keys(cycle=False)))) or "nothing"
            raise InputError(f"{uri}: no tree {tree} ({hint}); the file holds {trees}")
        yield file[choose_tree(uri, paths, tree)]
