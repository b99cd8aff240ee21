"""Read columns of one ROOT or parquet file, piece by piece.

    for table in tables("jets.root", ["jetPt", "PF_pT", "nPF"]):
        ...

A ROOT file's tree may follow its name: jets.root:AK4jets/jetTree. Otherwise it is the tree that has
the columns. The packages are those of the extra `files`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jec_client.columns import Table, table_of
from jec_client.errors import InputError

JETS = 50_000
"""Jets in a piece: about 50 MB of columns where each has 30 particles of ten numbers."""

TREES = ("TTree", "ROOT::RNTuple", "ROOT::Experimental::RNTuple")


def tables(path: str | os.PathLike[str], column_names: Sequence[str]) -> Iterator[Table]:
    """Yield these columns of a file in pieces; one empty piece where it has no jets.

    Raises InputError for a file that is not there, is of another kind or damaged, has no tree or
    several with the columns, or needs a package that is not installed.
    """
    text = os.fsdecode(path)
    text, colon, tree = text.partition(".root:")
    file = text + ".root" if colon else text
    kind = _kind(file)
    try:
        if kind == "parquet":
            yield from _of_parquet(file, column_names)
        else:
            yield from _of_root(file, tree, column_names)
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"{file} cannot be read without {error.name}; pip install 'jec-client[files]'"
        ) from None
    except Exception as error:  # what uproot and pyarrow raise has no common base
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else repr(error)
        raise InputError(f"{file} cannot be read: {reason}") from None


def _kind(file: str) -> str:
    """Return 'root' or 'parquet', by the first bytes of a file here, else by its name."""
    kinds = {b"root": "root", b"PAR1": "parquet"}
    if "://" not in file:
        try:
            with Path(file).expanduser().open("rb") as stream:
                first = stream.read(4)
        # ValueError for a NUL in the name, RuntimeError for ~NAME of a user who does not exist
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{file[:200]!r} cannot be read as a file of jets: {reason}") from None
        if first not in kinds:
            raise InputError(f"{file} is neither a ROOT nor a parquet file; give one of these")
        return kinds[first]
    return "parquet" if file.endswith((".parquet", ".pq")) else "root"


def _of_parquet(file: str, column_names: Sequence[str]) -> Iterator[Table]:
    import pyarrow.parquet

    source: Any = file
    with contextlib.ExitStack() as stack:
        if "://" in file:
            import fsspec

            source = stack.enter_context(fsspec.open(file))
        parquet_file = stack.enter_context(pyarrow.parquet.ParquetFile(source))
        names = parquet_file.schema_arrow.names
        there = [name for name in column_names if name in names]
        empty = True
        for batch in parquet_file.iter_batches(batch_size=JETS, columns=there):
            empty = False
            yield Table(columns=table_of(batch, there).columns, names=names)
        if empty:
            none = parquet_file.schema_arrow.empty_table()
            yield Table(columns=table_of(none, there).columns, names=names)


def _of_root(file: str, tree: str, column_names: Sequence[str]) -> Iterator[Table]:
    import uproot

    with uproot.open(str(Path(file).expanduser()) if "://" not in file else file) as root_file:
        root_tree = root_file[tree or _tree(root_file, file, column_names)]
        if not hasattr(root_tree, "iterate"):
            raise InputError(
                f"'{tree}' in {file} is not a tree; give one behind the path, as FILE:TREE"
            )
        names = list(root_tree.keys(recursive=False))
        there = [name for name in column_names if name in names]
        if not there or root_tree.num_entries == 0:
            pieces = [root_tree.arrays(there, entry_stop=0)] if there else [{}]
        else:
            pieces = root_tree.iterate(there, step_size=JETS)
        for piece in pieces:
            columns = {name: piece[name] for name in there}
            yield Table(columns=columns, names=names)


def _tree(root_file: Any, file: str, column_names: Sequence[str]) -> str:
    """Return the path of the tree that has most of these columns."""
    trees = root_file.keys(filter_classname=TREES, cycle=False)
    if not trees:
        raise InputError(f"{file} has no tree; give a file that has one")
    columns: dict[str, set[str]] = {}
    for path in dict.fromkeys(trees):
        columns[path] = set(root_file[path].keys(recursive=False)) & set(column_names)
    most = max(len(names) for names in columns.values())
    best = [path for path, names in columns.items() if len(names) == most]
    if len(best) > 1:
        paths = ", ".join(f"{file}:{path}" for path in best[:5])
        raise InputError(f"{file} has several trees; give one of them: {paths}")
    return best[0]
