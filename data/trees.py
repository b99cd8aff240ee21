"""Find files with a tree, and open the tree; errors list the trees in the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from common.errors import InputError, JecError
from weaver.read.opening import DamagedFile, choose_tree, open_file


def find_files(patterns: str | Iterable[str], tree: str) -> list[str]:
    """Return the addresses of the files that match, for a command that reads one tree of each.

    Raises InputError where a pattern names another tree (`file.root:other`).
    """
    from weaver.read.files import find

    entries = find(patterns)
    for entry in entries:
        if entry.tree and entry.tree.partition(";")[0] != tree:
            raise InputError(
                f"{entry.uri}:{entry.tree}: this command reads the tree {tree}; name none, or that"
            )
    return [entry.uri for entry in entries]


@contextlib.contextmanager
def open_tree(uri: str, tree: str, hint: str) -> Iterator[Any]:
    """Yield the newest cycle of `tree` in the file at `uri`, closed at the end.

    Raises InputError for a file that is not a ROOT file, or that lacks the tree; the error names
    the trees in the file, and ends with the hint.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open_file(uri))
        except DamagedFile as error:  # whose remedy is a flag of other commands
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise InputError(f"{uri} cannot be read as a ROOT file: {reason}") from None
        paths = file.keys()  # trees, RNTuples and folders, with their cycles
        if tree not in {path.rpartition(";")[0] for path in paths}:
            trees = ", ".join(sorted(set(file.keys(cycle=False)))) or "nothing"
            raise InputError(f"{uri}: no tree {tree} ({hint}); the file holds {trees}")
        item = file[choose_tree(uri, paths, tree)]
        if not hasattr(item, "arrays"):  # a histogram, for example
            raise InputError(f"{uri}: {tree} is a {item.classname}, which holds no jets")
        yield item


def read_branches(uri: str, tree: Any, names: list[str], start: int, stop: int) -> dict[str, Any]:
    """Read entries start, ..., stop - 1 of branches of `open_tree`, as awkward arrays by name.

    Raises InputError where the file is damaged.
    """
    try:
        arrays: dict[str, Any] = tree.arrays(names, entry_start=start, entry_stop=stop, how=dict)
    except JecError:
        raise
    except Exception as error:  # uproot raises many kinds for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise InputError(f"{uri} is damaged and cannot be read to its end: {reason}") from error
    return arrays
