"""The data files, ROOT or parquet: patterns of addresses, and the checks of every file before any
of it is decoded.

Patterns are Weaver's: separated by blanks or commas (or given as a list), each a path or an s3://
address with `*`, `?` or `[...]`, and optionally `name:` in front (the name of a sample; it does not
matter here).

A damaged file (truncated, not readable, not a data file) raises DamagedFile, which names it; where
damaged files are to be skipped, they are left out and told of. A file that is whole but lacks a
tree or a branch is another matter: it is refused in either case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common import storage
from common.errors import InputError, unknown
from common.storage import Entry
from weaver.config.data_config import TRAINING_FLAG, DataConfig, Plan
from weaver.read import jagged, parquet
from weaver.read.root import baskets, root_tree

SAMPLE_NAME = re.compile(r"^[\w.+%-]+:(?!//)")
HEADER = 100  # bytes of a ROOT file's header that hold its version and its end
# decoded at a time; what is computed from them takes a few times that, and larger steps are no
# faster
STEP_BYTES = 16 * 2**20
SUFFIXES = (".root", parquet.SUFFIX)
NOT_READ = (".h5", ".hdf5", ".awkd")
REMEDY = "copy it again, or leave damaged files out with --skip-bad-files"
CHECKERS = 8  # files opened at a time: on S3 each takes a few round trips


class DamagedFile(InputError):
    """A file that is truncated or cannot be read; the text names it."""

    whole_size: int | None = None
    """The bytes that it should have, where that is known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A damaged file that was left out, or the rest of it."""

    uri: str
    reason: str
    jets: int
    """Jets lost with it."""
    exact: bool
    """False where `jets` is an estimate from the sizes of the other files: what is inside cannot be
    counted.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """One checked file: where it is, the path of its tree (newest cycle; empty for parquet), its
    number of jets, and what it holds.
    """

    entry: Entry
    tree: str
    num_entries: int
    columns: frozenset[str]
    """Column names of the plan that the file has a branch for."""
    bytes_per_entry: float
    """Uncompressed bytes of those branches for one jet."""
    baskets: root_tree.Tree | None = dataclasses.field(default=None, repr=False, compare=False)
    """Where the branches' baskets lie, where they are simple enough to be read without uproot."""


def split_patterns(patterns: str | Iterable[str]) -> list[str]:
    """Patterns without the samples' names.

    A text that is the path of an existing file is one pattern, blanks and all.
    """
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    parts = [
        part
        for text in texts
        for part in ([text] if os.path.exists(text) else re.split(r"[,\s]+", text))
        if part
    ]
    return [part if os.path.exists(part) else SAMPLE_NAME.sub("", part) for part in parts]


def find(patterns: str | Iterable[str]) -> list[Entry]:
    """The files that match, each once, in the order of the patterns; a folder stands for the data
    files in it.

    Raises InputError for a pattern that matches nothing, and where no pattern is given.
    """
    found: dict[str, Entry] = {}
    parts = split_patterns(patterns)
    if not parts:
        raise InputError(
            "no data files given; pass a path or a pattern such as data/*.root or"
            " s3://bucket/data/*.root"
        )
    for part in parts:
        matches = storage.glob(part)
        if not _is_exact(part, matches):
            matches = [
                entry
                for entry in matches
                if entry.uri.endswith(SUFFIXES) or re.search(r"[*?\[]", part)
            ]
        if not matches:
            kind = "parquet" if part.endswith(parquet.SUFFIX) else "ROOT"
            raise InputError(f"no {kind} file matches '{part}'{_what_is_there(part)}")
        found.update((entry.uri, entry) for entry in matches)
    for uri in found:
        if uri.endswith(NOT_READ):
            raise InputError(
                f"{uri}: HDF5 and .awkd files, which weaver-core takes, are not read here; write"
                " the jets as ROOT or parquet"
            )
    return list(found.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Files that can be decoded, the plan for decoding them, and what was left out."""

    files: list[DataFile]
    plan: Plan
    skipped: list[Skipped]


def check(
    entries: list[Entry], config: DataConfig, *, for_training: bool, skip_bad_files: bool = False
) -> Checked:
    """Open every file and make sure that it can be decoded.

    Observers that a training file lacks are left out of the plan (training does not need them).
    Raises DamagedFile for the first file that is no data file or is truncated, unless such files
    are to be skipped; InputError for one that lacks the tree or a branch, or holds a branch of a
    type that cannot be read, and where no file or no jet is left.
    """
    plan = config.plan(for_training)
    with ThreadPoolExecutor(CHECKERS) as pool:
        found = list(
            pool.map(lambda entry: _inspected(entry, config, plan, skip_bad_files), entries)
        )
    files = [file for file in found if isinstance(file, DataFile)]
    damaged = [
        (entry, error)
        for entry, error in zip(entries, found, strict=True)
        if isinstance(error, DamagedFile)
    ]
    if not files:
        raise damaged[0][1]
    absent = {
        name: file for file in reversed(files) for name in plan.branches if name not in file.columns
    }
    if for_training:
        plan = config.plan(for_training, without=_dispensable(config, plan, absent))
    for name, file in absent.items():
        if name in plan.branches:
            raise _missing_branch(name, file, config, plan)
    if not sum(file.num_entries for file in files):
        raise InputError(
            f"there is no jet in {files[0].entry.uri}"
            + (f" nor in {len(files) - 1} other files" if files[1:] else "")
        )
    return Checked(
        files=files, plan=plan, skipped=[_skipped(entry, error, files) for entry, error in damaged]
    )


def _inspected(
    entry: Entry, config: DataConfig, plan: Plan, skip_bad_files: bool
) -> DataFile | DamagedFile:
    try:
        return inspect(entry, config, plan)
    except DamagedFile as error:
        if not skip_bad_files:
            raise
        return error


def _skipped(entry: Entry, error: DamagedFile, files: list[DataFile]) -> Skipped:
    per_byte = sum(file.num_entries for file in files) / sum(file.entry.size for file in files)
    return Skipped(
        uri=entry.uri,
        reason=str(error),
        jets=round(per_byte * (error.whole_size or entry.size)),
        exact=False,
    )


def inspect(entry: Entry, config: DataConfig, plan: Plan) -> DataFile:
    """Check one file without decoding it."""
    if entry.uri.endswith(parquet.SUFFIX):
        return _inspect_parquet(entry, plan)
    check_header(entry)
    if (tree := _simple_tree(entry, config, plan)) is not None:
        return DataFile(
            entry=entry,
            tree=tree.path,
            num_entries=tree.num_entries,
            columns=frozenset(plan.branches),
            bytes_per_entry=sum(branch.uncompressed for branch in tree.branches.values())
            / tree.num_entries,
            baskets=tree,
        )
    with open_file(entry.uri) as file:
        path = _find_tree(entry.uri, file, config.treename)
        tree = file[path]
        names = set(tree.keys(recursive=True, full_paths=False))
        columns = {name: branch for name, branch in plan.branches.items() if branch in names}
        for name in columns.values():
            _check_branch(entry, tree[name])
        size = sum(tree[name].uncompressed_bytes for name in columns.values())
        return DataFile(
            entry=entry,
            tree=path,
            num_entries=tree.num_entries,
            columns=frozenset(columns),
            bytes_per_entry=size / max(tree.num_entries, 1),
        )


def _simple_tree(entry: Entry, config: DataConfig, plan: Plan) -> root_tree.Tree | None:
    """The tree of a local file with all branches of the plan;

    None where uproot is to read the file, or to say what is wrong with it.
    """
    if storage.is_s3(entry.uri):
        return None
    try:
        tree = root_tree.read_tree(
            entry.uri,
            lambda keys: _choose_tree(entry.uri, keys, config.treename),
            set(plan.branches.values()),
        )
    except Exception:  # damaged bytes end in errors of many kinds
        return None
    ends = max(
        (int((branch.seeks + branch.sizes).max(initial=0)) for branch in tree.branches.values()),
        default=0,
    )
    return tree if tree.num_entries and tree.branches and ends <= entry.size else None


def _inspect_parquet(entry: Entry, plan: Plan) -> DataFile:
    with _opened_parquet(entry.uri) as file:
        columns = {
            name: branch for name, branch in plan.branches.items() if branch in parquet.names(file)
        }
        for branch in columns.values():
            if kind := parquet.unreadable_type(file, branch):
                raise InputError(
                    f"{entry.uri}: column '{branch}' has a type that cannot be read ({kind})"
                )
        count = file.metadata.num_rows
        size = parquet.uncompressed_bytes(file, columns.values())
        return DataFile(
            entry=entry,
            tree="",
            num_entries=count,
            columns=frozenset(columns),
            bytes_per_entry=size / max(count, 1),
        )


@contextlib.contextmanager
def _opened_parquet(uri: str) -> Iterator:
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(parquet.open_file(uri))
        except Exception as error:  # pyarrow's own kinds
            raise unreadable(uri, error) from error
        yield file


def check_header(entry: Entry) -> None:
    """Raise InputError unless the file begins as ROOT files do and is as long as its
    header says.
    """
    header = _first_bytes(entry.uri)
    if len(header) < 20 or header[:4] != b"root":
        begins = f"it begins with {header[:8]!r}" if header else "it is empty"
        raise DamagedFile(f"{entry.uri} is not a ROOT file: {begins}")
    version = struct.unpack(">i", header[4:8])[0]
    end = struct.unpack(
        ">q" if version >= 1_000_000 else ">i", header[12 : 20 if version >= 1_000_000 else 16]
    )[0]
    if entry.size < end:
        error = DamagedFile(
            f"{entry.uri} is truncated: it should have {end:,} bytes and has {entry.size:,};"
            f" {REMEDY}"
        )
        error.whole_size = end
        raise error


@contextlib.contextmanager
def open_file(uri: str) -> Iterator:
    """The file opened with uproot; raises InputError where that fails."""
    import uproot

    try:
        # A Path, because uproot takes what follows a colon in a text for the name of an object.
        opened = (
            uproot.open(uri, **storage.s3_options())
            if storage.is_s3(uri)
            else uproot.open(Path(uri))
        )
    # uproot raises many kinds for a damaged file (struct, zlib, key and value errors)
    except Exception as error:
        raise unreadable(uri, error) from error
    with opened as file:
        yield file


def read(
    file: DataFile,
    config: DataConfig,
    plan: Plan,
    *,
    training_set: bool,
    stop: int | None = None,
    step_bytes: int = STEP_BYTES,
) -> Iterator[tuple[dict, int]]:
    """Decode the plan's branches of a file in steps of about `step_bytes` (uncompressed), up to
    entry `stop`.

    Yields (column name -> awkward array, jets in this step). Raises InputError where the file turns
    out to be damaged.
    """
    supplied = {TRAINING_FLAG: training_set, **_file_magic(config, file.entry.uri)}
    wanted = set(plan.branches.values())
    rows = max(int(step_bytes / max(file.bytes_per_entry, 1)), 1)
    if file.entry.uri.endswith(parquet.SUFFIX):
        with _opened_parquet(file.entry.uri) as opened:
            yield from _named(parquet.steps(opened, wanted, rows, stop), file, plan, supplied)
        return
    # Decompression takes half of the time of decoding, and releases Python's lock.
    with (
        open_file(file.entry.uri) as opened,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as decompressors,
    ):
        steps = opened[file.tree].iterate(
            filter_branch=lambda branch: branch.name in wanted,
            step_size=rows,
            entry_stop=stop,
            decompression_executor=decompressors,
            library="ak",
            how=dict,
        )
        yield from _named(steps, file, plan, supplied)


def loads(
    file: DataFile,
    config: DataConfig,
    plan: Plan,
    *,
    training_set: bool,
    stop: int | None = None,
    step_bytes: int = STEP_BYTES,
) -> Iterator[Load]:
    """The steps of `read`, each as a function without arguments that gives one or more of them
    (columns, jets).

    They may be called in any order and several at a time; where uproot reads the file, it does so
    while this iterator goes on. Columns are those of weaver/read/jagged.py, or awkward's. Both
    raise InputError where the file turns out to be damaged.
    """
    if file.baskets is None:
        for step in read(
            file, config, plan, training_set=training_set, stop=stop, step_bytes=step_bytes
        ):
            yield functools.partial(iter, [step])
        return
    supplied = {TRAINING_FLAG: training_set, **_file_magic(config, file.entry.uri)}
    rows = max(int(step_bytes / max(file.bytes_per_entry, 1)), 1)
    stop = file.num_entries if stop is None else stop
    for start, end in baskets.ranges(file.baskets.branches.values(), rows, stop):
        yield functools.partial(_load, file, plan, supplied, start, end, rows)


Load = Callable[[], Iterable[tuple[dict, int]]]


def _load(
    file: DataFile, plan: Plan, supplied: dict, start: int, stop: int, rows: int
) -> Iterator[tuple[dict, int]]:
    """The entries start:stop, `rows` at a time."""
    try:
        with root_tree.opened(file.entry.uri) as fetch:
            arrays = baskets.columns(
                fetch,
                {name: file.baskets.branches[name] for name in plan.branches.values()},
                start,
                stop,
            )
    except Exception:  # uproot may know better, or says what is wrong
        with open_file(file.entry.uri) as opened:
            wanted = set(plan.branches.values())
            steps = opened[file.tree].iterate(
                filter_branch=lambda branch: branch.name in wanted,
                step_size=stop,
                entry_start=start,
                entry_stop=stop,
                how=dict,
            )
            arrays = {
                name: jagged.plain(values)
                for name, values in next(_explained(file.entry.uri, steps)).items()
            }
    for first in range(0, stop - start, rows):
        step = slice(first, first + rows)
        yield from _named(
            iter([{name: values[step] for name, values in arrays.items()}]), file, plan, supplied
        )


def _named(
    steps: Iterator, file: DataFile, plan: Plan, supplied: dict
) -> Iterator[tuple[dict, int]]:
    """The steps under the names of the plan's columns, with those that come from no branch."""
    for arrays in _explained(file.entry.uri, steps):
        count = len(next(iter(arrays.values())))
        columns = {name: arrays[branch] for name, branch in plan.branches.items()}
        yield columns | {name: np.full(count, value) for name, value in supplied.items()}, count


def _explained(uri: str, steps: Iterator) -> Iterator:
    """The same steps, with whatever uproot raises turned into an InputError that names the file."""
    try:
        yield from steps
    except Exception as error:
        raise unreadable(uri, error) from error


def _file_magic(config: DataConfig, uri: str) -> dict[str, float]:
    """Variables that the config gives by patterns of the file's address: the first pattern that is
    found in it, else 0.
    """
    magic = config.options.get("file_magic") or {}
    return {
        name: next((value for pattern, value in by.items() if re.search(pattern, uri)), 0)
        for name, by in magic.items()
    }


def unreadable(uri: str, error: Exception) -> InputError:
    """The error for a file that cannot be read (further); an InputError passes through."""
    if isinstance(error, InputError):
        return error
    lines = str(error).strip().splitlines()
    kind = "parquet" if uri.endswith(parquet.SUFFIX) else "ROOT"
    return DamagedFile(
        f"cannot read {uri} as a {kind} file: {lines[0] if lines else type(error).__name__};"
        f" {REMEDY}"
    )


def _is_exact(pattern: str, matches: list[Entry]) -> bool:
    """True if the pattern is the address of one file, which is then taken whatever its name ends
    in.
    """
    return len(matches) == 1 and storage.absolute(pattern) == matches[0].uri


def _what_is_there(pattern: str) -> str:
    """What the folder of a pattern without a match holds, as the end of a sentence; nothing for S3,
    where listing may be slow.
    """
    if storage.is_s3(pattern):
        return ""
    folder = os.path.dirname(storage.absolute(pattern))
    if not os.path.isdir(folder):
        return f"; there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIXES))
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"; data files in {folder}: {listed or 'none'}"


def _first_bytes(uri: str) -> bytes:
    try:
        if not storage.is_s3(uri):
            with open(uri, "rb") as file:
                return file.read(HEADER)
        import s3fs

        return s3fs.S3FileSystem(**storage.s3_options()).cat_file(uri, start=0, end=HEADER)
    except Exception as error:
        raise unreadable(uri, error) from error


def _find_tree(uri: str, file, wanted: str | None) -> str:
    """The path, with cycle, of the tree to read. Raises InputError where there is none."""
    try:
        keys = file.keys(recursive=True, cycle=True, filter_classname="TTree")
    except Exception as error:
        raise unreadable(uri, error) from error
    if not keys and (
        ntuples := file.keys(recursive=True, cycle=False, filter_classname="ROOT::RNTuple")
    ):
        raise InputError(
            f"{uri} holds the RNTuple '{ntuples[0]}' and no tree; RNTuples are not read yet: write"
            " a TTree or a parquet file"
        )
    return _choose_tree(uri, keys, wanted)


def _choose_tree(uri: str, keys: Iterable[str], wanted: str | None) -> str:
    """Of the paths with cycles of all trees: the newest cycle of the wanted tree, or of the only
    one. Raises InputError for none.
    """
    newest: dict[str, int] = {}
    for key in keys:
        path, _, cycle = key.rpartition(";")
        newest[path] = max(newest.get(path, 0), int(cycle))
    if wanted in keys:  # a cycle was asked for by number
        return wanted
    if wanted is None and len(newest) == 1:
        wanted = next(iter(newest))
    if wanted is None:
        raise InputError(
            f"{uri} holds {len(newest)} trees ({', '.join(sorted(newest)) or 'none'}); name one as"
            " 'treename' in the data config"
        )
    if wanted not in newest:
        raise InputError(f"{uri}: {unknown('tree', wanted, newest)}")
    return f"{wanted};{newest[wanted]}"


def _check_branch(entry: Entry, branch) -> None:
    import uproot

    if isinstance(branch.interpretation, uproot.interpretation.identify.UnknownInterpretation):
        raise InputError(
            f"{entry.uri}: branch '{branch.name}' has a type that cannot be read"
            f" ({branch.typename or 'unknown'})"
        )
    count = branch.num_baskets
    ends = branch.member("fBasketSeek")[:count] + branch.member("fBasketBytes")[:count]
    if count and len(ends) and ends.max() > entry.size:
        raise DamagedFile(
            f"{entry.uri} is truncated: branch '{branch.name}' ends at byte {ends.max():,} of"
            f" {entry.size:,}; {REMEDY}"
        )


def _dispensable(config: DataConfig, plan: Plan, absent: Iterable[str]) -> list[str]:
    """Observers that cannot be made because of absent branches, and that nothing else needs."""
    dropped = []
    for name in config.observer_names:
        alone = set(plan.branches) - set(config.plan(True, without=[name]).branches)
        if alone & set(absent):
            dropped.append(name)
    return dropped


def _missing_branch(name: str, file: DataFile, config: DataConfig, plan: Plan) -> InputError:
    if file.tree:
        with open_file(file.entry.uri) as opened:
            known = opened[file.tree].keys(recursive=True, full_paths=False)
    else:
        with _opened_parquet(file.entry.uri) as opened:
            known = parquet.names(opened)
    branch = plan.branches[name]
    return InputError(
        f"{file.entry.uri}: {unknown('branch', branch, known)} ({config.source} uses it in"
        f" {config.used_by(name)})"
    )
