"""The data files, ROOT or parquet: patterns of addresses, checks of every file, and decoding.

Patterns are Weaver's (common/storage/patterns.py); the name of a sample does not matter here.

Every file is checked before any of it is decoded. A damaged file (truncated, not readable, not a
data file) raises DamagedFile, which names it; where damaged files are to be skipped, they are left
out and reported. A file that is whole but lacks a tree or a branch is another matter: it is refused
in either case.
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

# decoded at a time; what is computed from them takes a few times that, and larger steps are no
# faster
STEP_BYTES = 16 * 2**20
# steps of one range of baskets that are worked on by one thread: of a range with more of them, each
# step is work of its own, so that what is made of a large basket need not be in memory as a whole
STEPS_TOGETHER = 2
STEPS_AHEAD = 3  # of uproot's, whose bytes are on their way, with the one that is decoded
SUFFIXES = (".root", parquet.SUFFIX, *hdf5.SUFFIXES)
NOT_READ = (".awkd",)
# files opened at a time; distant ones wait for two or three round trips each
CHECKERS, DISTANT_CHECKERS = 8, 32
REFUSED = 20  # files that cannot be used and that an error lists
LISTED = 5  # files of a folder that an error names

Step = tuple[Columns, int]
"""The columns of some jets, and how many these are."""


@dataclasses.dataclass(frozen=True)
class Load:
    """Decodes one or more steps when it is called."""

    decode: Callable[[], Iterable[Step]]
    stored: int = 0
    """Bytes that are on their way for it, from a distant storage."""

    def __call__(self) -> Iterable[Step]:
        """Decode the load and yield its steps."""
        return self.decode()


Part = tuple[float, float]
"""The part of each file between two shares of its entries, as (0, 0.8) for the first 80 %."""
WHOLE: Part = (0.0, 1.0)


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
    part: Part = WHOLE
    """The part of the file that is used."""
    alone: bool = False
    """True where it is the only file."""

    @property
    def entries(self) -> tuple[int, int]:
        """The first entry of the part, and the one behind its last.

        At least one entry, as in weaver-core.
        """
        start, stop = (math.trunc(bound * self.num_entries) for bound in self.part)
        return start, min(max(start + 1, stop), self.num_entries)

    @property
    def num_used(self) -> int:
        """Jets of the part."""
        start, stop = self.entries
        return stop - start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Files that can be decoded, the plan for decoding them, and what was left out."""

    files: list[DataFile]
    plan: Plan
    skipped: list[Skipped]


# --------------------------------------------------------------------------------------- patterns


def find(patterns: str | Iterable[str], warn: Callable[[str], None] | None = None) -> list[Entry]:
    """The files that match, each once, in the order of the patterns.

    A folder stands for the data files in it. warn: called with a sentence where a file is named
    twice, or is there under two names. Raises InputError for a pattern that matches nothing,
    for an address of an unknown scheme, and where no pattern is given.
    """
    parts = parse_patterns(patterns)
    if not parts:
        raise InputError(
            "no data files: pass a path or a pattern such as data/*.root or s3://bucket/data/*.root"
        )
    entries: dict[tuple[str, str], Entry] = {}
    repeated: set[tuple[str, str]] = set()
    for part in parts:
        matches = storage.glob(part.text)
        # The address of one file takes that file, and a pattern all it matches, whatever their
        # names end in.
        is_file = len(matches) == 1 and storage.absolute(part.text) == matches[0].uri
        if not is_file and not has_wildcard(part.text):
            matches = [entry for entry in matches if entry.uri.endswith(SUFFIXES)]
        if not matches:
            kind = "parquet" if part.text.endswith(parquet.SUFFIX) else "ROOT"
            raise InputError(f"no {kind} file matches '{part.text}'{_folder_contents(part.text)}")
        for entry in matches:
            written = _as_written(part.text, entry.uri)
            named = dataclasses.replace(entry, written=written, tree=part.tree)
            key = (entry.uri, part.tree)
            if key in entries:
                repeated.add(key)
            entries.setdefault(key, named)
    if warn and (text := _repetitions(list(entries.values()), [uri for uri, _ in repeated])):
        warn(text)
    for entry in entries.values():
        if entry.uri.endswith(NOT_READ):
            raise InputError(
                f"{entry.uri}: files of awkward 0 (.awkd), which weaver-core takes, are not read"
                " here; write the jets as ROOT or parquet"
            )
    return list(entries.values())


def _repetitions(entries: list[Entry], repeated: list[str]) -> str:
    """What to say of files that are named twice, or are one file under two names; "" if none."""
    texts = []
    if repeated:
        texts.append(
            f"{len(repeated)} of {len(entries)} files are named more than once, and read once:"
            f" {_listed(repeated)}"
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
            f" count twice: {_listed(links)}"
        )
    return "; ".join(texts)


def _listed(uris: list[str]) -> str:
    more = f" and {len(uris) - LISTED} more" if len(uris) > LISTED else ""
    return f"{', '.join(sorted(uris)[:LISTED])}{more}"


def _as_written(pattern: str, uri: str) -> str:
    """The address of a file that matches a pattern, relative where the pattern is relative."""
    if not storage.is_local(pattern):
        return uri
    # the folders before the first wildcard
    head = re.split(r"[*?\[]", pattern)[0]
    head = head[: head.rfind("/") + 1]
    return head + uri.removeprefix(storage.absolute(head)).lstrip("/")


def _folder_contents(pattern: str) -> str:
    """What the folder of a pattern without a match holds, as the end of a sentence."""
    if not storage.is_local(pattern):  # where listing may be slow
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
    entries: list[Entry],
    config: DataConfig,
    *,
    for_training: bool,
    skip_bad_files: bool = False,
    part: Part = WHOLE,
) -> Checked:
    """Open every file and make sure that it can be decoded.

    part: the part of each file that is to be used.
    Observers that a training file lacks are left out of the plan (training does not need them).
    Raises DamagedFile for files that are no data files, are truncated or lack the tree, unless such
    files are to be skipped; InputError for those that lack a branch, or hold a branch of a type
    that cannot be read, and where no file or no jet is left. All such files are listed at once.
    """
    plan = config.plan(for_training)

    def inspect_or_refuse(entry: Entry) -> DataFile | InputError:
        try:
            return inspect(entry, config, plan)
        except InputError as error:
            return error

    files: list[DataFile] = []
    damaged: list[tuple[Entry, DamagedFile]] = []
    refusals: list[InputError] = []
    are_local = all(storage.is_local(entry.uri) for entry in entries)
    with ThreadPoolExecutor(CHECKERS if are_local else DISTANT_CHECKERS) as pool:
        for entry, result in zip(entries, pool.map(inspect_or_refuse, entries), strict=True):
            if isinstance(result, DataFile):
                files.append(dataclasses.replace(result, part=part))
            elif isinstance(result, DamagedFile) and skip_bad_files:
                damaged.append((entry, result))
            else:
                refusals.append(result)

    # column that is absent -> the first file without it
    absent: dict[str, DataFile] = {}
    for file in files:
        for name in plan.branches:
            if name not in file.columns:
                absent.setdefault(name, file)
    if for_training:
        plan = config.plan(for_training, without=config.dispensable(absent))
    for file in files:
        missing = [name for name in plan.branches if name not in file.columns]
        if missing:
            refusals.append(missing_branches(missing, file, config, plan))
    if refusals:
        raise together(refusals, len(entries))
    if not files:
        raise damaged[0][1]

    if len(files) == 1:
        files = [dataclasses.replace(files[0], alone=True)]
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


def together(refusals: list[InputError], count: int) -> InputError:
    """One error for all files that are refused, of `count` files."""
    if len(refusals) == 1:
        return refusals[0]
    lines = [f"{len(refusals)} of {count} files cannot be used:"]
    lines += [str(refusal) for refusal in refusals[:REFUSED]]
    if len(refusals) > REFUSED:
        lines.append(f"and {len(refusals) - REFUSED} more")
    all_damaged = all(isinstance(refusal, DamagedFile) for refusal in refusals)
    return (DamagedFile if all_damaged else InputError)("\n  ".join(lines))


def branch_names(file: DataFile) -> list[str]:
    """The names of all branches or columns of a checked file."""
    uri = file.entry.uri
    if file.tree:
        with open_file(uri) as opened:
            return list(opened[file.tree].keys(recursive=True, full_paths=False))
    if uri.endswith(hdf5.SUFFIXES):
        with open_hdf5(uri) as opened:
            return list(hdf5.names(opened))
    with open_parquet(uri) as opened:
        return list(parquet.names(opened))


def missing_branches(
    names: list[str], file: DataFile, config: DataConfig, plan: Plan
) -> InputError:
    """The error for a file without these columns of the plan: it names the nearest branches."""
    uri = file.entry.uri
    branches = branch_names(file)
    parts = []
    for name in names:
        branch = unknown("branch", plan.branches[name], branches)
        parts.append(f"{branch} ({config.source} uses it in {config.used_by(name)})")
    return InputError(f"{uri}: {'; '.join(parts)}")


def inspect(entry: Entry, config: DataConfig, plan: Plan) -> DataFile:
    """Check one file without decoding it.

    Raises DamagedFile for a file that is truncated or no data file, InputError for one without the
    tree or with a branch that cannot be read.
    """
    if entry.uri.endswith(parquet.SUFFIX):
        return _inspect_parquet(entry, plan)
    if entry.uri.endswith(hdf5.SUFFIXES):
        return _inspect_hdf5(entry, plan)
    with open_bytes(entry.uri, entry) as fetch:
        check_header(entry, fetch)
        simple = _simple_tree(entry, fetch, config, plan)
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


def _simple_tree(
    entry: Entry, fetch: Fetch, config: DataConfig, plan: Plan
) -> root_tree.Tree | None:
    """The tree of a file with all branches of the plan.

    None where uproot is to read the file, or to say what is wrong with it.
    """
    try:
        tree = root_tree.read_tree(
            fetch,
            lambda keys: choose_tree(entry.uri, keys, entry.tree or config.treename),
            set(plan.branches.values()),
        )
    except StorageError:
        raise
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
    """True for an RNTuple of uproot's, false for a TTree."""
    return "RNTuple" in type(tree).__name__


def _ntuple(entry: Entry, path: str, tree: Any, plan: Plan) -> DataFile:
    fields = set(tree.keys(recursive=False))
    columns = {name for name, branch in plan.branches.items() if branch in fields}
    # its pages say little about a field's bytes: the share of the file, unpacked about twice that
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
                raise InputError(f"{entry.uri}: array '{branch}' is not readable: {kind}")
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
                raise InputError(f"{entry.uri}: column '{branch}' is not readable: {kind}")
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
    """Decode the plan's branches of a file, from entry `start` up to entry `stop`.

    In steps of about `step_bytes` (uncompressed); columns are awkward's. Raises InputError where
    the file turns out to be damaged.
    """
    supplied = _supplied(file, config, training_set)
    branches = set(plan.branches.values())
    rows = _rows(file, step_bytes)
    if file.entry.uri.endswith(parquet.SUFFIX):
        with open_parquet(file.entry.uri) as opened:
            yield from _named(
                parquet.steps(opened, branches, rows, start, stop), file, plan, supplied
            )
        return
    if file.entry.uri.endswith(hdf5.SUFFIXES):
        with open_hdf5(file.entry.uri) as opened:
            end = file.num_entries if stop is None else stop
            # weaver-core makes lists of the arrays when it puts several files together
            steps = hdf5.steps(opened, branches, rows, start, end, as_lists=not file.alone)
            yield from _named(steps, file, plan, supplied)
        return
    # Decompression takes half of the time of decoding, and releases Python's lock.
    with (
        open_file(file.entry.uri) as opened,
        ThreadPoolExecutor(cores()) as decompressors,
    ):
        tree = opened[file.tree]
        if is_ntuple(tree):
            steps = _ntuple_steps(tree, branches, rows, start, stop)
        else:
            chosen = _chosen(tree, branches)
            steps = tree.iterate(
                filter_branch=_is_one_of(chosen),
                step_size=rows,
                entry_start=start,
                entry_stop=stop,
                decompression_executor=decompressors,
                library="ak",
                how=dict,
            )
            if not storage.is_local(file.entry.uri):
                end = file.num_entries if stop is None else stop
                steps = _read_ahead(steps, tree, chosen, range(start, end, rows), end)
        yield from _named(steps, file, plan, supplied)


def _read_ahead(
    steps: Iterator[Columns], tree: Any, branches: list[Any], starts: range, stop: int
) -> Iterator[Columns]:
    """Uproot's steps over a distant tree, with the baskets of the next ones on their way.

    starts: the first entry of each step.
    """
    source = tree.file.source
    seen: set[Range] = set()  # uproot keeps the baskets that reach into the next step
    ahead = 0
    for number, _ in enumerate(starts):
        while ahead < min(number + STEPS_AHEAD, len(starts)):
            end = min(starts[ahead] + starts.step, stop)
            ranges = _stored(branches, starts[ahead], end) - seen
            seen |= ranges
            if ranges:
                source.begin(sorted(ranges))
            ahead += 1
        step = next(steps, None)
        if step is None:
            return
        yield step


def _stored(branches: list[Any], start: int, stop: int) -> set[Range]:
    """The bytes of the baskets of uproot's branches that hold the entries start:stop."""
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
    """Fields of an RNTuple, `rows` jets at a time; a record comes with all of its parts."""

    def is_wanted(name: str) -> bool:
        return name.partition(".")[0] in fields

    end = int(tree.num_entries) if stop is None else stop
    for start in range(first, end, rows):
        arrays = tree.arrays(
            filter_name=is_wanted, entry_start=start, entry_stop=min(start + rows, end)
        )
        yield {name: arrays[name] for name in fields}


def _is_one_of(branches: list[Any]) -> Callable[[Any], bool]:
    """Whether a branch of uproot's is one of these.

    Not `in`, because uproot takes any two branches without branches within for equal.
    """
    identities = {id(branch) for branch in branches}
    return lambda branch: id(branch) in identities


def _chosen(tree: Any, names: set[str]) -> list[Any]:
    """The branches of these names of a tree of uproot's."""
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
    """The steps of `read`, each as a function without arguments that gives one or more of them.

    They may be called in any order and several at a time; where uproot reads the file, it does so
    while this iterator goes on. With `readers`, the bytes of a distant file's step are on their
    way once this iterator has given it. Columns are those of weaver/read/jagged.py, or awkward's.
    Both raise InputError where the file turns out to be damaged, StorageError where its storage
    fails.
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
    supplied = _supplied(file, config, training_set)
    rows = _rows(file, step_bytes)
    stop = file.num_entries if stop is None else stop
    branches = file.baskets.branches
    chosen = {name: branches[name] for name in set(plan.branches.values())}
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
            stored = baskets.stored(branches.values(), begin, end)
            parts, size = distant.read(stored), sum(last - first for first, last in stored)
        decoded = _Decoded(functools.partial(_columns, file, chosen, begin, end, parts))
        slices = [slice(first, first + rows) for first in range(0, end - begin, rows)]
        if len(slices) <= STEPS_TOGETHER:
            own = [Load(functools.partial(_steps, file, plan, supplied, decoded, slices), size)]
        else:
            each = -(-size // (len(slices) + 1))
            yield Load(decoded.begin, each)
            own = []
            for one in slices:
                decode = functools.partial(_steps, file, plan, supplied, decoded, [one])
                own.append(Load(decode, each))
        yield from waiting
        waiting = own
    yield from waiting


class _Decoded:
    """The columns of a range of entries, decoded once and shared by the loads of its steps."""

    def __init__(self, decode: Callable[[], Columns]) -> None:
        """Remember the function, which the first call of `columns` or `begin` calls."""
        self._decode: Callable[[], Columns] | None = decode
        self._lock = threading.Lock()
        self._columns: Columns = {}
        self._error: Exception | None = None

    def begin(self) -> tuple[()]:
        """Decode, ahead of the steps. There is no step in it, and errors belong to the steps."""
        with contextlib.suppress(Exception):
            self.columns()
        return ()

    def columns(self) -> Columns:
        """The columns; raises, each time, what decoding raised."""
        with self._lock:
            if self._decode is not None:
                try:
                    self._columns = self._decode()
                except Exception as error:
                    self._error = error
                self._decode = None  # with the bytes that it holds
        if self._error is not None:
            raise self._error
        return self._columns


def range_bytes(file: DataFile, step_bytes: int) -> int:
    """Uncompressed bytes of the largest range of baskets that `loads` decodes at once."""
    if file.baskets is None:
        return step_bytes
    branches = file.baskets.branches.values()
    most = 0
    for start, stop in baskets.ranges(branches, _rows(file, step_bytes), file.num_entries):
        most = max(most, stop - start)
    return int(most * file.bytes_per_entry)


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


def _columns(
    file: DataFile,
    branches: Mapping[str, root_tree.Branch],
    start: int,
    stop: int,
    parts: Future[Parts] | None,
) -> Columns:
    """The entries start:stop by the names of branches.

    parts: their baskets, if they are on their way.
    """
    try:
        if parts is not None:
            return baskets.columns(parts.result(), branches, start, stop)
        with open_bytes(file.entry.uri) as fetch:
            return baskets.columns(fetch, branches, start, stop)
    except StorageError:
        raise
    except Exception:  # uproot may know better, or says what is wrong
        with open_file(file.entry.uri) as opened:
            tree = opened[file.tree]
            chosen = _chosen(tree, set(branches))
            steps = tree.iterate(
                filter_branch=_is_one_of(chosen),
                step_size=stop,
                entry_start=start,
                entry_stop=stop,
                how=dict,
            )
            whole = next(_explained(file.entry.uri, steps))
            return {name: jagged.plain(values) for name, values in whole.items()}


def _steps(
    file: DataFile,
    plan: Plan,
    supplied: dict[str, float],
    decoded: _Decoded,
    slices: list[slice],
) -> Iterator[Step]:
    """Some steps of a range of entries, each the slice of its entries within the range."""
    arrays = decoded.columns()
    for one in slices:
        part = {name: values[one] for name, values in arrays.items()}
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
