"""The data files, ROOT or parquet: patterns of addresses, checks of every file, and decoding.

Patterns are Weaver's: separated by blanks or commas (or given as a list), each a path or an s3://
address with `*`, `?` or `[...]`, and optionally `name:` in front (the name of a sample; it does not
matter here).

Every file is checked before any of it is decoded. A damaged file (truncated, not readable, not a
data file) raises DamagedFile, which names it; where damaged files are to be skipped, they are left
out and reported. A file that is whole but lacks a tree or a branch is another matter: it is refused
in either case.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from common import storage
from common.errors import InputError, unknown
from common.storage import Entry
from weaver.config.data_config import TRAINING_FLAG, DataConfig
from weaver.config.plan import Plan
from weaver.read import jagged, parquet
from weaver.read.jagged import Columns, common_type
from weaver.read.opening import (
    REMEDY,
    DamagedFile,
    check_header,
    choose_tree,
    find_tree,
    open_file,
    open_parquet,
    unreadable,
)
from weaver.read.root import baskets, root_tree

SAMPLE_NAME = re.compile(r"^[\w.+%-]+:(?!//)")
# decoded at a time; what is computed from them takes a few times that, and larger steps are no
# faster
STEP_BYTES = 16 * 2**20
SUFFIXES = (".root", parquet.SUFFIX)
NOT_READ = (".h5", ".hdf5", ".awkd")
CHECKERS = 8  # files opened at a time: on S3 each takes a few round trips
LISTED = 5  # files of a folder that an error names

Step = tuple[Columns, int]
"""The columns of some jets, and how many these are."""
Load = Callable[[], Iterable[Step]]
"""Decodes one or more steps when it is called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A damaged file that was left out, or the rest of it."""

    uri: str
    reason: str
    jets: int
    """Jets lost with it."""
    exact: bool
    """False where `jets` is an estimate from the sizes of the other files."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """One checked file."""

    entry: Entry
    tree: str
    """Path of the tree, with the newest cycle; empty for parquet."""
    num_entries: int
    """Jets."""
    columns: frozenset[str]
    """Column names of the plan that the file has a branch for."""
    bytes_per_entry: float
    """Uncompressed bytes of those branches for one jet."""
    types: Mapping[str, np.dtype] = dataclasses.field(default_factory=dict)
    """Column name -> type of its numbers in this file, where that is known before it is decoded."""
    casts: Mapping[str, np.dtype] = dataclasses.field(default_factory=dict)
    """Column name -> type that it gets, where the column has other types in other files."""
    baskets: root_tree.Tree | None = dataclasses.field(default=None, repr=False, compare=False)
    """Where the branches' baskets lie, where they are simple enough to be read without uproot."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Files that can be decoded, the plan for decoding them, and what was left out."""

    files: list[DataFile]
    plan: Plan
    skipped: list[Skipped]


# --------------------------------------------------------------------------------------- patterns


def split_patterns(patterns: str | Iterable[str]) -> list[str]:
    """Patterns without the samples' names.

    A text that is the path of an existing file is one pattern, blanks and all.
    """
    parts: list[str] = []
    for text in [patterns] if isinstance(patterns, str) else patterns:
        parts += [text] if os.path.exists(text) else re.split(r"[,\s]+", text)
    return [part if os.path.exists(part) else SAMPLE_NAME.sub("", part) for part in parts if part]


def find(patterns: str | Iterable[str]) -> list[Entry]:
    """The files that match, each once, in the order of the patterns.

    A folder stands for the data files in it. Raises InputError for a pattern that matches nothing,
    and where no pattern is given.
    """
    parts = split_patterns(patterns)
    if not parts:
        raise InputError(
            "no data files given; pass a path or a pattern such as data/*.root or"
            " s3://bucket/data/*.root"
        )
    entries: dict[str, Entry] = {}
    for part in parts:
        matches = storage.glob(part)
        # The address of one file takes that file, and a pattern all it matches, whatever their
        # names end in.
        is_file = len(matches) == 1 and storage.absolute(part) == matches[0].uri
        if not is_file and not re.search(r"[*?\[]", part):
            matches = [entry for entry in matches if entry.uri.endswith(SUFFIXES)]
        if not matches:
            kind = "parquet" if part.endswith(parquet.SUFFIX) else "ROOT"
            raise InputError(f"no {kind} file matches '{part}'{_folder_contents(part)}")
        for entry in matches:
            written = _as_written(part, entry.uri)
            entries.setdefault(entry.uri, dataclasses.replace(entry, written=written))
    for uri in entries:
        if uri.endswith(NOT_READ):
            raise InputError(
                f"{uri}: HDF5 and .awkd files, which weaver-core takes, are not read here; write"
                " the jets as ROOT or parquet"
            )
    return list(entries.values())


def _as_written(pattern: str, uri: str) -> str:
    """The address of a file that matches a pattern, relative where the pattern is relative."""
    if storage.is_s3(pattern):
        return uri
    # the folders before the first wildcard
    head = re.split(r"[*?\[]", pattern)[0]
    head = head[: head.rfind("/") + 1]
    return head + uri.removeprefix(storage.absolute(head)).lstrip("/")


def _folder_contents(pattern: str) -> str:
    """What the folder of a pattern without a match holds, as the end of a sentence."""
    if storage.is_s3(pattern):  # where listing may be slow
        return ""
    folder = os.path.dirname(storage.absolute(pattern))
    if not os.path.isdir(folder):
        return f"; there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIXES))
    listed = ", ".join(names[:LISTED]) or "none"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"; data files in {folder}: {listed}{more}"


# ----------------------------------------------------------------------------------------- checks


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

    def inspect_or_skip(entry: Entry) -> DataFile | DamagedFile:
        try:
            return inspect(entry, config, plan)
        except DamagedFile as error:
            if not skip_bad_files:
                raise
            return error

    files: list[DataFile] = []
    damaged: list[tuple[Entry, DamagedFile]] = []
    with ThreadPoolExecutor(CHECKERS) as pool:
        for entry, result in zip(entries, pool.map(inspect_or_skip, entries), strict=True):
            if isinstance(result, DataFile):
                files.append(result)
            else:
                damaged.append((entry, result))
    if not files:
        raise damaged[0][1]

    # column that is absent -> the first file without it
    absent: dict[str, DataFile] = {}
    for file in files:
        for name in plan.branches:
            if name not in file.columns:
                absent.setdefault(name, file)
    if for_training:
        plan = config.plan(for_training, without=config.dispensable(absent))
    for name, file in absent.items():
        if name in plan.branches:
            raise _missing_branch(name, file, config, plan)

    files = _with_common_types(files, config)
    num_jets = sum(file.num_entries for file in files)
    if not num_jets:
        others = f" nor in {len(files) - 1} other files" if files[1:] else ""
        raise InputError(f"there is no jet in {files[0].entry.uri}{others}")

    # What is inside a damaged file cannot be counted: its share by size.
    jets_per_byte = num_jets / sum(file.entry.size for file in files)
    skipped = []
    for entry, error in damaged:
        jets = round(jets_per_byte * (error.whole_size or entry.size))
        skipped.append(Skipped(uri=entry.uri, reason=str(error), jets=jets, exact=False))
    return Checked(files=files, plan=plan, skipped=skipped)


def _with_common_types(files: list[DataFile], config: DataConfig) -> list[DataFile]:
    """The same files, with casts for the columns whose types differ from file to file."""
    seen: dict[str, set[np.dtype]] = {}
    stated: list[dict[str, np.dtype]] = []
    for file in files:
        supplied = _supplied(file, config, False)
        types = {name: np.asarray(value).dtype for name, value in supplied.items()}
        types |= {name: dtype.newbyteorder("=") for name, dtype in file.types.items()}
        stated.append(types)
        for name, dtype in types.items():
            seen.setdefault(name, set()).add(dtype)
    common = {name: common_type(types) for name, types in seen.items() if len(types) > 1}
    result = []
    for file, types in zip(files, stated, strict=True):
        casts = {name: dtype for name, dtype in common.items() if types.get(name) != dtype}
        result.append(dataclasses.replace(file, casts=casts))
    return result


def _missing_branch(name: str, file: DataFile, config: DataConfig, plan: Plan) -> InputError:
    if file.tree:
        with open_file(file.entry.uri) as opened:
            branches = opened[file.tree].keys(recursive=True, full_paths=False)
    else:
        with open_parquet(file.entry.uri) as opened:
            branches = parquet.names(opened)
    return InputError(
        f"{file.entry.uri}: {unknown('branch', plan.branches[name], branches)} ({config.source}"
        f" uses it in {config.used_by(name)})"
    )


def inspect(entry: Entry, config: DataConfig, plan: Plan) -> DataFile:
    """Check one file without decoding it.

    Raises DamagedFile for a file that is truncated or no data file, InputError for one without the
    tree or with a branch that cannot be read.
    """
    if entry.uri.endswith(parquet.SUFFIX):
        return _inspect_parquet(entry, plan)
    check_header(entry)
    simple = _simple_tree(entry, config, plan)
    if simple is not None:
        size = sum(branch.uncompressed for branch in simple.branches.values())
        return DataFile(
            entry=entry,
            tree=simple.path,
            num_entries=simple.num_entries,
            columns=frozenset(plan.branches),
            bytes_per_entry=size / simple.num_entries,
            types={name: simple.branches[b].dtype for name, b in plan.branches.items()},
            baskets=simple,
        )
    with open_file(entry.uri) as file:
        path = find_tree(entry.uri, file, config.treename)
        tree = file[path]
        branches = first_branches(tree)
        columns = set()
        types = {}
        size = 0
        for name, branch in plan.branches.items():
            if branch in branches:
                _check_branch(entry, branches[branch])
                columns.add(name)
                size += branches[branch].uncompressed_bytes
                if (dtype := _number_type(branches[branch].interpretation)) is not None:
                    types[name] = dtype
        return DataFile(
            entry=entry,
            tree=path,
            num_entries=tree.num_entries,
            columns=frozenset(columns),
            bytes_per_entry=size / max(tree.num_entries, 1),
            types=types,
        )


def first_branches(tree: Any) -> dict[str, Any]:
    """Name -> branch of a tree of uproot's; of several branches of one name the first one.

    A branch comes before those within it.
    """
    branches: dict[str, Any] = {}
    for branch in tree.itervalues(recursive=True):
        branches.setdefault(branch.name, branch)
    return branches


def _number_type(interpretation: Any) -> np.dtype | None:
    """The type of a branch's numbers, of uproot's interpretation; None for other forms."""
    content = getattr(interpretation, "content", interpretation)
    of_vector = getattr(getattr(content, "model", None), "values", None)
    dtype = getattr(content, "to_dtype", of_vector)
    if not isinstance(dtype, np.dtype) or dtype.base.kind not in "biuf":
        return None
    return dtype.base  # of x[3]: that of its numbers


def _simple_tree(entry: Entry, config: DataConfig, plan: Plan) -> root_tree.Tree | None:
    """The tree of a local file with all branches of the plan.

    None where uproot is to read the file, or to say what is wrong with it.
    """
    if storage.is_s3(entry.uri):
        return None
    try:
        tree = root_tree.read_tree(
            entry.uri,
            lambda keys: choose_tree(entry.uri, keys, config.treename),
            set(plan.branches.values()),
        )
    except Exception:  # damaged bytes end in errors of many kinds
        return None
    if not tree.num_entries or not tree.branches:
        return None
    for branch in tree.branches.values():
        if int((branch.seeks + branch.sizes).max(initial=0)) > entry.size:  # truncated
            return None
    return tree


def _check_branch(entry: Entry, branch: Any) -> None:
    """Raise InputError for a branch of uproot's that cannot be read, or reaches beyond the file."""
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


def _inspect_parquet(entry: Entry, plan: Plan) -> DataFile:
    with open_parquet(entry.uri) as file:
        names = set(parquet.names(file))
        columns = {name: branch for name, branch in plan.branches.items() if branch in names}
        for branch in columns.values():
            kind = parquet.unreadable_type(file, branch)
            if kind:
                raise InputError(
                    f"{entry.uri}: column '{branch}' has a type that cannot be read ({kind})"
                )
        count = file.metadata.num_rows
        size = parquet.uncompressed_bytes(file, columns.values())
        types = {}
        for name, branch in columns.items():
            if (dtype := parquet.number_type(file, branch)) is not None:
                types[name] = dtype
        return DataFile(
            entry=entry,
            tree="",
            num_entries=count,
            columns=frozenset(columns),
            bytes_per_entry=size / max(count, 1),
            types=types,
        )


# --------------------------------------------------------------------------------------- decoding


def read(
    file: DataFile,
    config: DataConfig,
    plan: Plan,
    *,
    training_set: bool,
    stop: int | None = None,
    step_bytes: int = STEP_BYTES,
) -> Iterator[Step]:
    """Decode the plan's branches of a file, up to entry `stop`.

    In steps of about `step_bytes` (uncompressed); columns are awkward's. Raises InputError where
    the file turns out to be damaged.
    """
    supplied = _supplied(file, config, training_set)
    branches = set(plan.branches.values())
    rows = _rows(file, step_bytes)
    if file.entry.uri.endswith(parquet.SUFFIX):
        with open_parquet(file.entry.uri) as opened:
            yield from _named(parquet.steps(opened, branches, rows, stop), file, plan, supplied)
        return
    # Decompression takes half of the time of decoding, and releases Python's lock.
    with (
        open_file(file.entry.uri) as opened,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as decompressors,
    ):
        tree = opened[file.tree]
        chosen = _chosen(tree, branches)
        steps = tree.iterate(
            filter_branch=lambda branch: branch in chosen,
            step_size=rows,
            entry_stop=stop,
            decompression_executor=decompressors,
            library="ak",
            how=dict,
        )
        yield from _named(steps, file, plan, supplied)


def _chosen(tree: Any, names: set[str]) -> list[Any]:
    """The branches of these names of a tree of uproot's."""
    return [branch for name, branch in first_branches(tree).items() if name in names]


def loads(
    file: DataFile,
    config: DataConfig,
    plan: Plan,
    *,
    training_set: bool,
    stop: int | None = None,
    step_bytes: int = STEP_BYTES,
) -> Iterator[Load]:
    """The steps of `read`, each as a function without arguments that gives one or more of them.

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
    supplied = _supplied(file, config, training_set)
    rows = _rows(file, step_bytes)
    stop = file.num_entries if stop is None else stop
    branches = file.baskets.branches
    for start, end in baskets.ranges(branches.values(), rows, stop):
        yield functools.partial(_load, file, branches, plan, supplied, start, end, rows)


def _rows(file: DataFile, step_bytes: int) -> int:
    """Jets in a step."""
    return max(int(step_bytes / max(file.bytes_per_entry, 1)), 1)


def _supplied(file: DataFile, config: DataConfig, training_set: bool) -> dict[str, float]:
    """Columns that come from no branch: one value for all jets of the file."""
    supplied: dict[str, float] = {TRAINING_FLAG: training_set}
    for name, values in (config.options.get("file_magic") or {}).items():
        supplied[name] = 0
        # the first pattern that occurs in the path, which is the one that the user wrote: what
        # folders lie above it says nothing of the sample
        for pattern, value in values.items():
            if re.search(pattern, file.entry.written or file.entry.uri):
                supplied[name] = value
                break
    return supplied


def _load(
    file: DataFile,
    branches: Mapping[str, root_tree.Branch],
    plan: Plan,
    supplied: dict[str, float],
    start: int,
    stop: int,
    rows: int,
) -> Iterator[Step]:
    """The entries start:stop, `rows` at a time."""
    names = set(plan.branches.values())
    try:
        with root_tree.opened(file.entry.uri) as fetch:
            arrays: Columns = baskets.columns(
                fetch, {name: branches[name] for name in plan.branches.values()}, start, stop
            )
    except Exception:  # uproot may know better, or says what is wrong
        with open_file(file.entry.uri) as opened:
            tree = opened[file.tree]
            chosen = _chosen(tree, names)
            steps = tree.iterate(
                filter_branch=lambda branch: branch in chosen,
                step_size=stop,
                entry_start=start,
                entry_stop=stop,
                how=dict,
            )
            whole = next(_explained(file.entry.uri, steps))
            arrays = {name: jagged.plain(values) for name, values in whole.items()}
    for first in range(0, stop - start, rows):
        step = slice(first, first + rows)
        part = {name: values[step] for name, values in arrays.items()}
        yield from _named(iter([part]), file, plan, supplied)


def _named(
    steps: Iterator[Columns], file: DataFile, plan: Plan, supplied: dict[str, float]
) -> Iterator[Step]:
    """The steps under the names of the plan's columns, with those that come from no branch."""
    for arrays in _explained(file.entry.uri, steps):
        count = len(next(iter(arrays.values())))
        columns = {name: arrays[branch] for name, branch in plan.branches.items()}
        for name, value in supplied.items():
            columns[name] = np.full(count, value)
        for name, dtype in file.casts.items():
            if name in columns:
                columns[name] = jagged.converted(columns[name], dtype, name, file.entry.uri)
        yield columns, count


def _explained(uri: str, steps: Iterator[Columns]) -> Iterator[Columns]:
    """The same steps, with whatever uproot raises turned into an InputError that names the file."""
    try:
        yield from steps
    except Exception as error:
        raise unreadable(uri, error) from error
