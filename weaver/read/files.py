"""Find, check and decode data files: ROOT, parquet and HDF5.

Patterns are Weaver's (common/storage/patterns.py); the names of samples have no effect here.

All files are checked before any is decoded. A damaged file (truncated, unreadable, not a data file)
raises DamagedFile; with skip_bad_files it is left out and reported. A good file that lacks a branch
is an error in both cases.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from common import storage
from common.errors import InputError, StorageError, unknown
from common.machine import cores
from common.storage import Entry
from common.storage.patterns import has_wildcard
from common.storage.patterns import parse as parse_patterns
from weaver.config.data_config import TRAINING_FLAG, DataConfig
from weaver.config.plan import Plan
from weaver.read import hdf5, jagged, parquet
from weaver.read.jagged import Columns, common_type
from weaver.read.opening import (
    REMEDY,
    DamagedFile,
    check_header,
    choose_tree,
    find_tree,
    open_bytes,
    open_file,
    open_hdf5,
    open_parquet,
    unreadable,
)
from weaver.read.remote import Fetch, Parts, Range, Readers
from weaver.read.root import baskets, root_tree

# bytes decoded at a time; columns that are computed from them need a few times as much, and larger
# steps are not faster
STEP_BYTES = 16 * 2**20
# steps of a range of baskets that one thread decodes together. In a range with more steps each one
# is a load of its own, so that the results of a large basket are not all in memory.
STEPS_TOGETHER = 2
STEPS_AHEAD = 3  # steps of uproot that are read at the same time, including the current one
SUFFIXES = (".root", parquet.SUFFIX, *hdf5.SUFFIXES)
UNSUPPORTED_SUFFIXES = (".awkd",)
# files checked at a time; distant ones need two or three round trips each
CHECKERS, DISTANT_CHECKERS = 8, 32
MOST_ERRORS = 20  # files that the error about unusable files lists
MOST_NAMES = 5  # files that other messages list

Step = tuple[Columns, int]
"""The columns of some jets, and the number of these jets."""


@dataclasses.dataclass(frozen=True)
class Load:
    """A function that decodes one or more steps, and the size of its transfer."""

    decode: Callable[[], Iterable[Step]]
    num_bytes: int = 0
    """Bytes that are being read for it from a distant storage."""

    def __call__(self) -> Iterable[Step]:
        """Decode and yield the steps."""
        return self.decode()


Part = tuple[float, float]
"""A range of each file's entries, as fractions (start, end): (0, 0.8) for the first 80 %."""
WHOLE: Part = (0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A damaged file that was left out, in whole or from the damage on."""

    uri: str
    reason: str
    jets: int
    """Number of jets that were lost."""
    exact: bool
    """False if `jets` is an estimate from the file's size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFile:
    """A file that has passed the checks."""

    entry: Entry
    tree: str
    """Path of the tree, with the newest cycle; empty for parquet."""
    num_entries: int
    """Number of jets."""
    columns: frozenset[str]
    """Columns of the plan for which the file has a branch."""
    bytes_per_entry: float
    """Uncompressed bytes of these branches for one jet."""
    types: Mapping[str, np.dtype] = dataclasses.field(default_factory=dict)
    """Column -> type of its numbers in this file, if it is known before decoding."""
    casts: Mapping[str, np.dtype] = dataclasses.field(default_factory=dict)
    """Column -> type to cast it to, if its type differs between files."""
    baskets: root_tree.Tree | None = dataclasses.field(default=None, repr=False, compare=False)
    """The baskets of the branches, if the file can be read without uproot."""
    fallbacks: list[str] = dataclasses.field(default_factory=list, repr=False, compare=False)
    """Why uproot decoded a range of entries in place of our decoder; each range adds a reason."""
    part: Part = WHOLE
    """The range of entries to use."""
    alone: bool = False
    """Whether it is the only file."""

    @property
    def entries(self) -> tuple[int, int]:
        """(first entry, last entry + 1) of the part; at least one entry, as in weaver-core."""
        start, stop = (math.trunc(bound * self.num_entries) for bound in self.part)
        return start, min(max(start + 1, stop), self.num_entries)

    @property
    def num_used(self) -> int:
        """Number of jets in the part."""
        start, stop = self.entries
        return stop - start


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Files that can be decoded, the plan for decoding them, and damaged files."""

    files: list[DataFile]
    plan: Plan
    skipped_files: list[SkippedFile]


# --------------------------------------------------------------------------------------- patterns


def find(patterns: str | Iterable[str], warn: Callable[[str], None] | None = None) -> list[Entry]:
    """Find the files that match, each once, in the order of the patterns.

    A folder stands for the data files in it. warn: called with a warning if patterns match a file
    twice, or two files are the same. Raises InputError for a pattern that matches nothing, for an
    address of an unknown scheme, and without a pattern.
    """
    parts = parse_patterns(patterns)
    if not parts:
        raise InputError(
            "no data files: pass a path or a pattern such as data/*.root or s3://bucket/data/*.root"
        )
    entries: dict[tuple[str, str], Entry] = {}
    repeats: set[tuple[str, str]] = set()
    for part in parts:
        matches = storage.glob(part.text)
        # A folder gives only files with the suffixes of data files; the address of a file, and a
        # pattern, give files with any name.
        is_file = len(matches) == 1 and storage.absolute(part.text) == matches[0].uri
        if not is_file and not has_wildcard(part.text):
            matches = [entry for entry in matches if entry.uri.endswith(SUFFIXES)]
        if not matches:
            kind = "parquet" if part.text.endswith(parquet.SUFFIX) else "ROOT"
            raise InputError(f"no {kind} file matches '{part.text}'{_folder_contents(part.text)}")
        for entry in matches:
            path = _path_as_written(part.text, entry.uri)
            entry_for_tree = dataclasses.replace(entry, written=path, tree=part.tree)
            key = (entry.uri, part.tree)
            if key in entries:
                repeats.add(key)
            entries.setdefault(key, entry_for_tree)
    if warn and (text := _repetitions(list(entries.values()), [uri for uri, _ in repeats])):
        warn(text)
    for entry in entries.values():
        if entry.uri.endswith(UNSUPPORTED_SUFFIXES):
            raise InputError(
                f"{entry.uri}: files of awkward 0 (.awkd) are not supported, unlike in weaver-core;"
                " write the jets as ROOT or parquet"
            )
    return list(entries.values())


def _repetitions(entries: list[Entry], repeats: list[str]) -> str:
    """Return the warning about files that are listed twice, or are links to each other.

    "" if none.
    """
    texts = []
    if repeats:
        texts.append(
            f"{len(repeats)} of {len(entries)} files match more than one pattern, and are read"
            f" once: {_list_names(repeats)}"
        )
    first: dict[tuple[int, int, str], str] = {}
    links = []
    for entry in entries:
        if storage.is_local(entry.uri):
            status = os.stat(entry.uri)
            identity = (status.st_dev, status.st_ino, entry.tree)
            if first.setdefault(identity, entry.uri) != entry.uri:
                links.append(entry.uri)
    if links:
        texts.append(
            f"{len(links)} of {len(entries)} files are links to others of them, so that their jets"
            f" count twice: {_list_names(links)}"
        )
    return "; ".join(texts)


def _list_names(uris: list[str]) -> str:
    more = f" and {len(uris) - MOST_NAMES} more" if len(uris) > MOST_NAMES else ""
    return f"{', '.join(sorted(uris)[:MOST_NAMES])}{more}"


def _path_as_written(pattern: str, uri: str) -> str:
    """Return the address of a matching file, relative if the pattern is relative."""
    if not storage.is_local(pattern):
        return uri
    # the folders before the first wildcard
    head = re.split(r"[*?\[]", pattern)[0]
    head = head[: head.rfind("/") + 1]
    return head + uri.removeprefix(storage.absolute(head)).lstrip("/")


def _folder_contents(pattern: str) -> str:
    """List the data files in the folder of a pattern without a match; the end of a sentence."""
    if not storage.is_local(pattern):  # listing may be slow
        return ""
    folder = os.path.dirname(storage.absolute(pattern))
    if not os.path.isdir(folder):
        return f"; there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIXES))
    text = ", ".join(names[:MOST_NAMES]) or "none"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"; data files in {folder}: {text}{more}"


def note_on_uproot(files: Iterable[DataFile]) -> str:
    """Return a line on the ROOT files that uproot reads, because that takes longer; "" if none."""
    of_root = [file for file in files if file.tree and file.num_entries]
    slow = [file.entry.uri for file in of_root if file.baskets is None]
    if not slow:
        return ""
    return (
        f"note: {len(slow)} of {len(of_root)} ROOT files have a form that only uproot reads, which"
        f" takes longer (RNTuple, nested branches, objects): {_list_names(slow)}"
    )


def note_on_fallbacks(files: Iterable[DataFile]) -> str:
    """Return a line on the files for which our decoder failed and uproot took over; "" if none."""
    failed = [file for file in files if file.fallbacks]
    if not failed:
        return ""
    return (
        f"note: the decoder of ROOT files failed for {_list_names([f.entry.uri for f in failed])}"
        f" ({failed[0].fallbacks[0]}); uproot read them instead"
    )


# ----------------------------------------------------------------------------------------- checks


def check(
    entries: list[Entry],
    config: DataConfig,
    *,
    for_training: bool,
    skip_bad_files: bool = False,
    part: Part = WHOLE,
) -> CheckResult:
    """Open every file and check that it can be decoded.

    part: the range of each file's entries to use. Observers that a training file lacks are left out
    of the plan, because training does not need them. Raises DamagedFile for files that are not data
    files, are truncated or lack the tree, unless skip_bad_files; InputError for files that lack a
    branch, or have one of an unsupported type, and if no file or no jet remains. One error lists
    all such files.
    """
    plan = config.plan(for_training)

    def inspect_or_refuse(entry: Entry) -> DataFile | InputError:
        try:
            return inspect(entry, config, plan)
        except InputError as error:
            return error

    files: list[DataFile] = []
    bad_files: list[tuple[Entry, DamagedFile]] = []
    errors: list[InputError] = []
    are_local = all(storage.is_local(entry.uri) for entry in entries)
    with ThreadPoolExecutor(CHECKERS if are_local else DISTANT_CHECKERS) as pool:
        for entry, result in zip(entries, pool.map(inspect_or_refuse, entries), strict=True):
            if isinstance(result, DataFile):
                files.append(dataclasses.replace(result, part=part))
            elif isinstance(result, DamagedFile) and skip_bad_files:
                bad_files.append((entry, result))
            else:
                errors.append(result)

    # missing column -> the first file without it
    absent: dict[str, DataFile] = {}
    for file in files:
        for name in plan.branches:
            if name not in file.columns:
                absent.setdefault(name, file)
    if for_training:
        plan = config.plan(for_training, without=config.droppable_observers(absent))
    for file in files:
        missing = [name for name in plan.branches if name not in file.columns]
        if missing:
            errors.append(missing_branches(missing, file, config, plan))
    if errors:
        raise combine_errors(errors, len(entries))
    if not files:
        raise bad_files[0][1]

    if len(files) == 1:
        files = [dataclasses.replace(files[0], alone=True)]
    files = _with_common_types(files, config)
    num_jets = sum(file.num_entries for file in files)
    if not num_jets:
        others = f" nor in {len(files) - 1} other files" if files[1:] else ""
        raise InputError(f"there is no jet in {files[0].entry.uri}{others}")

    # The jets in a damaged file cannot be counted, so their number is estimated by its size.
    jets_per_byte = num_jets / sum(file.entry.size for file in files)
    skipped_files = []
    for entry, error in bad_files:
        jets = round(jets_per_byte * (error.whole_size or entry.size))
        skipped_files.append(SkippedFile(uri=entry.uri, reason=str(error), jets=jets, exact=False))
    return CheckResult(files=files, plan=plan, skipped_files=skipped_files)


def _with_common_types(files: list[DataFile], config: DataConfig) -> list[DataFile]:
    """Set the casts of columns whose types differ between files."""
    types_by_column: dict[str, set[np.dtype]] = {}
    types_by_file: list[dict[str, np.dtype]] = []
    for file in files:
        constants = _constant_columns(file, config, False)
        types = {name: np.asarray(value).dtype for name, value in constants.items()}
        types |= {name: dtype.newbyteorder("=") for name, dtype in file.types.items()}
        types_by_file.append(types)
        for name, dtype in types.items():
            types_by_column.setdefault(name, set()).add(dtype)
    common = {name: common_type(types) for name, types in types_by_column.items() if len(types) > 1}
    result = []
    for file, types in zip(files, types_by_file, strict=True):
        casts = {name: dtype for name, dtype in common.items() if types.get(name) != dtype}
        result.append(dataclasses.replace(file, casts=casts))
    return result


def combine_errors(errors: list[InputError], count: int) -> InputError:
    """Combine the errors of all unusable files, of `count` files, into one."""
    if len(errors) == 1:
        return errors[0]
    lines = [f"{len(errors)} of {count} files cannot be used:"]
    lines += [str(error) for error in errors[:MOST_ERRORS]]
    if len(errors) > MOST_ERRORS:
        lines.append(f"and {len(errors) - MOST_ERRORS} more")
    all_damaged = all(isinstance(error, DamagedFile) for error in errors)
    return (DamagedFile if all_damaged else InputError)("\n  ".join(lines))


def branch_names(file: DataFile) -> list[str]:
    """Return the names of all branches or columns of a checked file."""
    uri = file.entry.uri
    if file.tree:
        with open_file(uri) as file_object:
            return list(file_object[file.tree].keys(recursive=True, full_paths=False))
    if uri.endswith(hdf5.SUFFIXES):
        with open_hdf5(uri) as file_object:
            return list(hdf5.names(file_object))
    with open_parquet(uri) as file_object:
        return list(parquet.names(file_object))


def missing_branches(
    names: list[str], file: DataFile, config: DataConfig, plan: Plan
) -> InputError:
    """Return the error for a file without these columns of the plan.

    It names the nearest branches.
    """
    uri = file.entry.uri
    branches = branch_names(file)
    parts = []
    for name in names:
        branch = unknown("branch", plan.branches[name], branches)
        parts.append(f"{branch} ({config.source} uses it in {config.used_by(name)})")
    return InputError(f"{uri}: {'; '.join(parts)}; correct the data config, or give other files")


def inspect(entry: Entry, config: DataConfig, plan: Plan) -> DataFile:
    """Check one file without decoding it.

    Raises DamagedFile for a file that is truncated, is not a data file or lacks the tree, and
    InputError for a branch of an unsupported type.
    """
    if entry.uri.endswith(parquet.SUFFIX):
        return _inspect_parquet(entry, plan)
    if entry.uri.endswith(hdf5.SUFFIXES):
        return _inspect_hdf5(entry, plan)
    with open_bytes(entry.uri, entry) as fetch:
        check_header(entry, fetch)
        simple = _simple_tree(entry, fetch, config, plan)
    if simple is not None:
        size = sum(branch.uncompressed_bytes for branch in simple.branches.values())
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
        path = find_tree(entry.uri, file, entry.tree or config.treename)
        tree = file[path]
        if is_ntuple(tree):
            return _ntuple(entry, path, tree, plan)
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
    """Name -> branch of uproot's tree, the first of several with the same name.

    A branch comes before its own branches.
    """
    branches: dict[str, Any] = {}
    for branch in tree.itervalues(recursive=True):
        branches.setdefault(branch.name, branch)
    return branches


def _number_type(interpretation: Any) -> np.dtype | None:
    """Return the type of a branch's numbers, from uproot's interpretation; None for other forms."""
    content = getattr(interpretation, "content", interpretation)
    of_vector = getattr(getattr(content, "model", None), "values", None)
    dtype = getattr(content, "to_dtype", of_vector)
    if not isinstance(dtype, np.dtype) or dtype.base.kind not in "biuf":
        return None
    return dtype.base  # for x[3] the type of its numbers


def _simple_tree(
    entry: Entry, fetch: Fetch, config: DataConfig, plan: Plan
) -> root_tree.Tree | None:
    """Return the tree of a file, with all branches of the plan.

    None if uproot must read the file, or report what is wrong with it.
    """
    try:
        tree = root_tree.read_tree(
            fetch,
            lambda keys: choose_tree(entry.uri, keys, entry.tree or config.treename),
            set(plan.branches.values()),
        )
    except StorageError:
        raise
    except Exception:  # damaged bytes cause errors of many types
        return None
    if not tree.num_entries or not tree.branches:
        return None
    for branch in tree.branches.values():
        if int((branch.seeks + branch.sizes).max(initial=0)) > entry.size:  # truncated
            return None
    return tree


def _check_branch(entry: Entry, branch: Any) -> None:
    """Raise InputError for a branch that uproot cannot read, or that extends beyond the file."""
    import uproot

    kind = branch.interpretation
    is_unknown = isinstance(kind, uproot.interpretation.identify.UnknownInterpretation)
    if isinstance(kind, uproot.AsObjects):
        try:
            kind.awkward_form(branch.file)
        except uproot.interpretation.objects.CannotBeAwkward:
            is_unknown = True
    if is_unknown:
        raise InputError(
            f"{entry.uri}: branch '{branch.name}' is not readable:"
            f" {branch.typename or 'of an unknown type'}"
        )
    count = branch.num_baskets
    ends = branch.member("fBasketSeek")[:count] + branch.member("fBasketBytes")[:count]
    if count and len(ends) and ends.max() > entry.size:
        raise DamagedFile(
            f"{entry.uri} is truncated: branch '{branch.name}' ends at byte {ends.max():,} of"
            f" {entry.size:,}; {REMEDY}"
        )


def is_ntuple(tree: Any) -> bool:
    """Return True for an RNTuple of uproot, False for a TTree."""
    return "RNTuple" in type(tree).__name__


def _ntuple(entry: Entry, path: str, tree: Any, plan: Plan) -> DataFile:
    fields = set(tree.keys(recursive=False))
    columns = {name for name, branch in plan.branches.items() if branch in fields}
    # the bytes of a field are estimated from the file's size; uncompressed they are about twice it
    share = len(columns) / max(len(fields), 1)
    return DataFile(
        entry=entry,
        tree=path,
        num_entries=int(tree.num_entries),
        columns=frozenset(columns),
        bytes_per_entry=2 * share * entry.size / max(int(tree.num_entries), 1),
    )


def _inspect_hdf5(entry: Entry, plan: Plan) -> DataFile:
    with open_hdf5(entry.uri) as file:
        names = set(hdf5.names(file))
        columns = {name: branch for name, branch in plan.branches.items() if branch in names}
        for branch in columns.values():
            kind = hdf5.unreadable_type(file, branch)
            if kind:
                raise InputError(
                    f"{entry.uri}: array '{branch}' is not readable: {kind}; write numbers, one or"
                    " a fixed number for each jet"
                )
        count = hdf5.num_jets(entry.uri, file, columns.values())
        return DataFile(
            entry=entry,
            tree="",
            num_entries=count,
            columns=frozenset(columns),
            bytes_per_entry=hdf5.uncompressed_bytes(file, columns.values()) / max(count, 1),
            types={name: getattr(file.root, branch).dtype for name, branch in columns.items()},
        )


def _inspect_parquet(entry: Entry, plan: Plan) -> DataFile:
    with open_parquet(entry.uri) as file:
        names = set(parquet.names(file))
        columns = {name: branch for name, branch in plan.branches.items() if branch in names}
        for name, branch in columns.items():
            kind = parquet.unreadable_type(file, branch)
            if kind is None and parquet.is_text(file, branch) and not plan.is_operand(name):
                kind = "text; only expressions can use it, as in label == 'QCD'"
            if kind:
                raise InputError(
                    f"{entry.uri}: column '{branch}' is not readable: {kind}; write numbers or"
                    " lists of numbers"
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
    start: int = 0,
    stop: int | None = None,
    step_bytes: int = STEP_BYTES,
) -> Iterator[Step]:
    """Decode the plan's branches for the entries `start` to `stop` of a file, with uproot.

    Yields steps of about `step_bytes` (uncompressed). training_set: the value of the column
    `aux_training_`. Raises InputError for a damaged file.
    """
    constants = _constant_columns(file, config, training_set)
    branches = set(plan.branches.values())
    rows = _rows(file, step_bytes)
    if file.entry.uri.endswith(parquet.SUFFIX):
        with open_parquet(file.entry.uri) as file_object:
            yield from _with_plan_names(
                parquet.steps(file_object, branches, rows, start, stop), file, plan, constants
            )
        return
    if file.entry.uri.endswith(hdf5.SUFFIXES):
        with open_hdf5(file.entry.uri) as file_object:
            end = file.num_entries if stop is None else stop
            # weaver-core converts the arrays to lists when it concatenates several files
            steps = hdf5.steps(file_object, branches, rows, start, end, as_lists=not file.alone)
            yield from _with_plan_names(steps, file, plan, constants)
        return
    # Decompression takes half of the time of decoding, and releases Python's lock.
    with (
        open_file(file.entry.uri) as file_object,
        ThreadPoolExecutor(cores()) as decompressors,
    ):
        tree = file_object[file.tree]
        if is_ntuple(tree):
            steps = _ntuple_steps(tree, branches, rows, start, stop)
        else:
            selected_branches = _branches_with_names(tree, branches)
            steps = tree.iterate(
                filter_branch=_is_one_of(selected_branches),
                step_size=rows,
                entry_start=start,
                entry_stop=stop,
                decompression_executor=decompressors,
                library="ak",
                how=dict,
            )
            if not storage.is_local(file.entry.uri):
                end = file.num_entries if stop is None else stop
                steps = _read_ahead(steps, tree, selected_branches, range(start, end, rows), end)
        yield from _with_plan_names(steps, file, plan, constants)


def _read_ahead(
    steps: Iterator[Columns], tree: Any, branches: list[Any], starts: range, stop: int
) -> Iterator[Columns]:
    """Yield uproot's steps over a distant tree, while the baskets of the next ones are being read.

    starts: the first entry of each step.
    """
    source = tree.file.source
    begun_ranges: set[Range] = set()  # uproot keeps baskets that extend into the next step
    ahead = 0
    for number, _ in enumerate(starts):
        while ahead < min(number + STEPS_AHEAD, len(starts)):
            end = min(starts[ahead] + starts.step, stop)
            ranges = _basket_ranges(branches, starts[ahead], end) - begun_ranges
            begun_ranges |= ranges
            if ranges:
                source.begin(sorted(ranges))
            ahead += 1
        step = next(steps, None)
        if step is None:
            return
        yield step


def _basket_ranges(branches: list[Any], start: int, stop: int) -> set[Range]:
    """Return ranges of bytes of the baskets of uproot's branches with entries start:stop."""
    ranges = set()
    for branch in branches:
        for part in [branch, *branch.itervalues(recursive=True)]:
            bounds = part.entry_offsets
            for number in range(part.num_baskets):
                if bounds[number] < stop and bounds[number + 1] > start:
                    begin = int(part.member("fBasketSeek")[number])
                    ranges.add((begin, begin + int(part.member("fBasketBytes")[number])))
    return ranges


def _ntuple_steps(
    tree: Any, fields: set[str], rows: int, first: int, stop: int | None
) -> Iterator[Columns]:
    """Yield fields of an RNTuple, `rows` jets at a time; a record comes with all its fields."""

    def belongs_to_a_field(name: str) -> bool:
        return name.partition(".")[0] in fields

    end = int(tree.num_entries) if stop is None else stop
    for start in range(first, end, rows):
        arrays = tree.arrays(
            filter_name=belongs_to_a_field, entry_start=start, entry_stop=min(start + rows, end)
        )
        yield {name: arrays[name] for name in fields}


def _is_one_of(branches: list[Any]) -> Callable[[Any], bool]:
    """Make a function that tells whether a branch of uproot is one of these.

    It does not use `in`, because uproot considers any two branches without subbranches equal.
    """
    identities = {id(branch) for branch in branches}
    return lambda branch: id(branch) in identities


def _branches_with_names(tree: Any, names: set[str]) -> list[Any]:
    """Return the branches with these names of uproot's tree."""
    return [branch for name, branch in first_branches(tree).items() if name in names]


def loads(
    file: DataFile,
    config: DataConfig,
    plan: Plan,
    *,
    training_set: bool,
    start: int = 0,
    stop: int | None = None,
    step_bytes: int = STEP_BYTES,
    readers: Readers | None = None,
) -> Iterator[Load]:
    """Yield loads, functions that decode steps of a file.

    Loads may be called in any order and in several threads. If uproot reads the file, it decodes in
    this iterator. With `readers`, yielding a load of a distant file starts to read its bytes.
    Columns are those of weaver/read/jagged.py. Both the iterator and the loads raise InputError for
    a damaged file, and StorageError if its storage fails.
    """
    if file.baskets is None:
        for step in read(
            file,
            config,
            plan,
            training_set=training_set,
            start=start,
            stop=stop,
            step_bytes=step_bytes,
        ):
            yield Load(functools.partial(iter, [step]))
        return
    constants = _constant_columns(file, config, training_set)
    rows = _rows(file, step_bytes)
    stop = file.num_entries if stop is None else stop
    branches = file.baskets.branches
    own_branches = {name: branches[name] for name in set(plan.branches.values())}
    bounds = []
    for first, end in baskets.ranges(branches.values(), rows, stop):
        if end > start:
            bounds.append((max(first, start), end))
    is_distant = not storage.is_local(file.entry.uri)
    distant = readers.file(file.entry, len(bounds)) if readers and is_distant else None
    waiting: list[Load] = []  # the steps of a large range, while the next range is decoded
    for begin, end in bounds:
        parts, size = None, 0
        if distant is not None:
            ranges = baskets.basket_ranges(branches.values(), begin, end)
            parts, size = distant.read(ranges), sum(last - first for first, last in ranges)
        shared = _SharedColumns(functools.partial(_columns, file, own_branches, begin, end, parts))
        slices = [slice(first, first + rows) for first in range(0, end - begin, rows)]
        if len(slices) <= STEPS_TOGETHER:
            own = [Load(functools.partial(_steps, file, plan, constants, shared, slices), size)]
        else:
            each = -(-size // (len(slices) + 1))
            yield Load(shared.begin, each)
            own = []
            for slice_ in slices:
                decode = functools.partial(_steps, file, plan, constants, shared, [slice_])
                own.append(Load(decode, each))
        yield from waiting
        waiting = own
    yield from waiting


class _SharedColumns:
    """The columns of a range of entries, decoded once and shared by the loads of its steps."""

    def __init__(self, decode: Callable[[], Columns]) -> None:
        """Take the function that decodes; the first call of `columns` or `begin` calls it."""
        self._decode: Callable[[], Columns] | None = decode
        self._lock = threading.Lock()
        self._columns: Columns = {}
        self._error: Exception | None = None

    def begin(self) -> tuple[()]:
        """Decode before the steps need it. Returns no steps; the steps raise any error."""
        with contextlib.suppress(Exception):
            self.columns()
        return ()

    def columns(self) -> Columns:
        """Return the columns. Each call raises the error of decoding, if there was one."""
        with self._lock:
            if self._decode is not None:
                try:
                    self._columns = self._decode()
                except Exception as error:
                    self._error = error
                self._decode = None  # frees the bytes that it holds
        if self._error is not None:
            raise self._error
        return self._columns


def range_bytes(file: DataFile, step_bytes: int) -> int:
    """Return uncompressed bytes of the largest range of baskets that `loads` decodes at once."""
    if file.baskets is None:
        return step_bytes
    branches = file.baskets.branches.values()
    most = 0
    for start, stop in baskets.ranges(branches, _rows(file, step_bytes), file.num_entries):
        most = max(most, stop - start)
    return int(most * file.bytes_per_entry)


def _rows(file: DataFile, step_bytes: int) -> int:
    """Return the number of jets in a step."""
    return max(int(step_bytes / max(file.bytes_per_entry, 1)), 1)


def _constant_columns(file: DataFile, config: DataConfig, training_set: bool) -> dict[str, float]:
    """Return the columns that come from no branch: name -> value for all jets of the file."""
    constants: dict[str, float] = {TRAINING_FLAG: training_set}
    for name, values in (config.options.get("file_magic") or {}).items():
        constants[name] = 0
        # the first pattern that matches the path as the user gave it, because folders above it say
        # nothing about the sample
        for pattern, value in values.items():
            if re.search(pattern, file.entry.written or file.entry.uri):
                constants[name] = value
                break
    return constants


def _columns(
    file: DataFile,
    branches: Mapping[str, root_tree.Branch],
    start: int,
    stop: int,
    parts: Future[Parts] | None,
) -> Columns:
    """Decode the entries start:stop; returns branch -> column.

    parts: the baskets, if they are being read.
    """
    try:
        if parts is not None:
            return baskets.columns(parts.result(), branches, start, stop)
        with open_bytes(file.entry.uri) as fetch:
            return baskets.columns(fetch, branches, start, stop)
    except StorageError:
        raise
    except Exception as error:  # uproot may be able to read the file, or reports the error
        file.fallbacks.append(f"{type(error).__name__}: {error}")
        with open_file(file.entry.uri) as file_object:
            tree = file_object[file.tree]
            uproot_branches = _branches_with_names(tree, set(branches))
            steps = tree.iterate(
                filter_branch=_is_one_of(uproot_branches),
                step_size=stop,
                entry_start=start,
                entry_stop=stop,
                how=dict,
            )
            whole = next(_with_readable_errors(file.entry.uri, steps))
            return {name: jagged.plain(values) for name, values in whole.items()}


def _steps(
    file: DataFile,
    plan: Plan,
    constants: dict[str, float],
    shared: _SharedColumns,
    slices: list[slice],
) -> Iterator[Step]:
    """Yield steps of a range of entries; slices: the entries of each step within the range."""
    arrays = shared.columns()
    for slice_ in slices:
        part = {name: values[slice_] for name, values in arrays.items()}
        yield from _with_plan_names(iter([part]), file, plan, constants)


def _with_plan_names(
    steps: Iterator[Columns], file: DataFile, plan: Plan, constants: dict[str, float]
) -> Iterator[Step]:
    """Name the columns of steps as in the plan, cast them, and add those that have no branch."""
    for arrays in _with_readable_errors(file.entry.uri, steps):
        count = len(next(iter(arrays.values())))
        columns = {name: arrays[branch] for name, branch in plan.branches.items()}
        for name, value in constants.items():
            columns[name] = np.full(count, value)
        for name, dtype in file.casts.items():
            if name in columns:
                columns[name] = jagged.convert_column(columns[name], dtype, name, file.entry.uri)
        yield columns, count


def _with_readable_errors(uri: str, steps: Iterator[Columns]) -> Iterator[Columns]:
    """Yield the same steps; an exception of uproot becomes an InputError that names the file."""
    try:
        yield from steps
    except Exception as error:
        raise unreadable(uri, error) from error
