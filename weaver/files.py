"""The data files: patterns of addresses, and the checks of every file before any of it is decoded.

Patterns are Weaver's: separated by blanks or commas (or given as a list), each a path or an s3:// address with `*`, `?` or
`[...]`, and optionally `name:` in front (the name of a sample; it does not matter here).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common import storage
from common.errors import InputError, unknown
from common.storage import Entry
from weaver.data_config import TRAINING_FLAG, DataConfig, Plan

SAMPLE_NAME = re.compile(r"^[\w.+-]+:(?!//)")
HEADER = 100  # bytes of a ROOT file's header that hold its version and its end
STEP_BYTES = 16 * 2**20  # decoded at a time; what is computed from them takes a few times that, and larger steps are no faster
CHECKERS = 8  # files opened at a time: on S3 each takes a few round trips


@dataclasses.dataclass(frozen=True, kw_only=True)
class RootFile:
    """One checked file: where it is, the path of its tree (newest cycle), its number of jets, and what it holds."""

    entry: Entry
    tree: str
    num_entries: int
    columns: frozenset[str]
    """Column names of the plan that the file has a branch for."""
    bytes_per_entry: float
    """Uncompressed bytes of those branches for one jet."""


def split_patterns(patterns: str | Iterable[str]) -> list[str]:
    """Patterns without the samples' names. A text that is the path of an existing file is one pattern, blanks and all."""
    texts = [patterns] if isinstance(patterns, str) else list(patterns)
    parts = [part for text in texts for part in ([text] if os.path.exists(text) else re.split(r"[,\s]+", text)) if part]
    return [part if os.path.exists(part) else SAMPLE_NAME.sub("", part) for part in parts]


def find(patterns: str | Iterable[str]) -> list[Entry]:
    """The files that match, each once, in the order of the patterns; a folder stands for the ROOT files in it.

    Raises InputError for a pattern that matches nothing, and where no pattern is given.
    """
    found: dict[str, Entry] = {}
    parts = split_patterns(patterns)
    if not parts:
        raise InputError("no data files given; pass a path or a pattern such as data/*.root or s3://bucket/data/*.root")
    for part in parts:
        matches = storage.glob(part)
        if not _is_exact(part, matches):
            matches = [entry for entry in matches if entry.uri.endswith(".root") or re.search(r"[*?\[]", part)]
        if not matches:
            raise InputError(f"no ROOT file matches '{part}'{_what_is_there(part)}")
        found.update((entry.uri, entry) for entry in matches)
    return list(found.values())


def check(entries: list[Entry], config: DataConfig, *, for_training: bool) -> tuple[list[RootFile], Plan]:
    """Open every file and make sure that it can be decoded; returns the files and the plan for decoding them.

    Observers that a training file lacks are left out of the plan (training does not need them). Raises InputError for the
    first file that is no ROOT file or is truncated, lacks the tree or a branch, or holds a branch of a type that cannot be read.
    """
    plan = config.plan(for_training)
    with ThreadPoolExecutor(CHECKERS) as pool:
        files = list(pool.map(lambda entry: inspect(entry, config, plan), entries))
    absent = {name: file for file in reversed(files) for name in plan.branches if name not in file.columns}
    if for_training:
        plan = config.plan(for_training, without=_dispensable(config, plan, absent))
    for name, file in absent.items():
        if name in plan.branches:
            raise _missing_branch(name, file, config, plan)
    if not sum(file.num_entries for file in files):
        raise InputError(f"there is no jet in {files[0].entry.uri}" + (f" nor in {len(files) - 1} other files" if files[1:] else ""))
    return files, plan


def inspect(entry: Entry, config: DataConfig, plan: Plan) -> RootFile:
    """Check one file without decoding it."""
    check_header(entry)
    with open_file(entry.uri) as file:
        path = _find_tree(entry.uri, file, config.treename)
        tree = file[path]
        names = set(tree.keys(recursive=True, full_paths=False))
        columns = {name: branch for name, branch in plan.branches.items() if branch in names}
        for name in columns.values():
            _check_branch(entry, tree[name])
        size = sum(tree[name].uncompressed_bytes for name in columns.values())
        return RootFile(
            entry=entry,
            tree=path,
            num_entries=tree.num_entries,
            columns=frozenset(columns),
            bytes_per_entry=size / max(tree.num_entries, 1),
        )


def check_header(entry: Entry) -> None:
    """Raise InputError unless the file begins as ROOT files do and is as long as its header says."""
    header = _first_bytes(entry.uri)
    if len(header) < 20 or header[:4] != b"root":
        begins = f"it begins with {header[:8]!r}" if header else "it is empty"
        raise InputError(f"{entry.uri} is not a ROOT file: {begins}")
    version = struct.unpack(">i", header[4:8])[0]
    end = struct.unpack(">q" if version >= 1_000_000 else ">i", header[12 : 20 if version >= 1_000_000 else 16])[0]
    if entry.size < end:
        raise InputError(f"{entry.uri} is truncated: it should have {end:,} bytes and has {entry.size:,}; copy it again")


@contextlib.contextmanager
def open_file(uri: str) -> Iterator:
    """The file opened with uproot; raises InputError where that fails."""
    import uproot

    try:
        # A Path, because uproot takes what follows a colon in a text for the name of an object.
        opened = uproot.open(uri, **storage.s3_options()) if storage.is_s3(uri) else uproot.open(Path(uri))
    except Exception as error:  # uproot raises many kinds for a damaged file (struct, zlib, key and value errors)
        raise unreadable(uri, error) from error
    with opened as file:
        yield file


def read(
    file: RootFile, config: DataConfig, plan: Plan, *, training_set: bool, stop: int | None = None, step_bytes: int = STEP_BYTES
) -> Iterator[tuple[dict, int]]:
    """Decode the plan's branches of a file in steps of about `step_bytes` (uncompressed), up to entry `stop`.

    Yields (column name -> awkward array, jets in this step). Raises InputError where the file turns out to be damaged.
    """
    import awkward as ak

    supplied = {TRAINING_FLAG: training_set, **_file_magic(config, file.entry.uri)}
    wanted = set(plan.branches.values())
    # Decompression takes half of the time of decoding, and releases Python's lock.
    with open_file(file.entry.uri) as opened, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as decompressors:
        steps = opened[file.tree].iterate(
            filter_branch=lambda branch: branch.name in wanted,
            step_size=max(int(step_bytes / max(file.bytes_per_entry, 1)), 1),
            entry_stop=stop,
            decompression_executor=decompressors,
            library="ak",
            how=dict,
        )
        for arrays in _explained(file.entry.uri, steps):
            count = len(next(iter(arrays.values())))
            columns = {name: arrays[branch] for name, branch in plan.branches.items()}
            yield columns | {name: ak.Array(np.full(count, value)) for name, value in supplied.items()}, count


def _explained(uri: str, steps: Iterator) -> Iterator:
    """The same steps, with whatever uproot raises turned into an InputError that names the file."""
    try:
        yield from steps
    except Exception as error:
        raise unreadable(uri, error) from error


def _file_magic(config: DataConfig, uri: str) -> dict[str, float]:
    """Variables that the config gives by patterns of the file's address: the first pattern that is found in it, else 0."""
    magic = config.options.get("file_magic") or {}
    return {name: next((value for pattern, value in by.items() if re.search(pattern, uri)), 0) for name, by in magic.items()}


def unreadable(uri: str, error: Exception) -> InputError:
    """The error for a file that cannot be read (further); an InputError passes through."""
    if isinstance(error, InputError):
        return error
    lines = str(error).strip().splitlines()
    return InputError(f"cannot read {uri} as a ROOT file: {lines[0] if lines else type(error).__name__}")


def _is_exact(pattern: str, matches: list[Entry]) -> bool:
    """True if the pattern is the address of one file, which is then taken whatever its name ends in."""
    return len(matches) == 1 and storage.absolute(pattern) == matches[0].uri


def _what_is_there(pattern: str) -> str:
    """What the folder of a pattern without a match holds, as the end of a sentence; nothing for S3, where listing may be slow."""
    if storage.is_s3(pattern):
        return ""
    folder = os.path.dirname(storage.absolute(pattern))
    if not os.path.isdir(folder):
        return f"; there is no folder {folder}"
    names = sorted(name for name in os.listdir(folder) if name.endswith(".root"))
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"; ROOT files in {folder}: {listed or 'none'}"


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
    """The path, with cycle, of the tree to read: the newest cycle of the wanted tree, or of the only one."""
    try:
        keys = file.keys(recursive=True, cycle=True, filter_classname="TTree")
    except Exception as error:
        raise unreadable(uri, error) from error
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
            f"{uri} holds {len(newest)} trees ({', '.join(sorted(newest)) or 'none'}); name one as 'treename' in the data config"
        )
    if wanted not in newest:
        raise InputError(f"{uri}: {unknown('tree', wanted, newest)}")
    return f"{wanted};{newest[wanted]}"


def _check_branch(entry: Entry, branch) -> None:
    import uproot

    if isinstance(branch.interpretation, uproot.interpretation.identify.UnknownInterpretation):
        raise InputError(f"{entry.uri}: branch '{branch.name}' has a type that cannot be read ({branch.typename or 'unknown'})")
    count = branch.num_baskets
    ends = branch.member("fBasketSeek")[:count] + branch.member("fBasketBytes")[:count]
    if count and len(ends) and ends.max() > entry.size:
        raise InputError(f"{entry.uri} is truncated: branch '{branch.name}' ends at byte {ends.max():,} of {entry.size:,}; copy it again")


def _dispensable(config: DataConfig, plan: Plan, absent: Iterable[str]) -> list[str]:
    """Observers that cannot be made because of absent branches, and that nothing else needs."""
    dropped = []
    for name in config.observer_names:
        alone = set(plan.branches) - set(config.plan(True, without=[name]).branches)
        if alone & set(absent):
            dropped.append(name)
    return dropped


def _missing_branch(name: str, file: RootFile, config: DataConfig, plan: Plan) -> InputError:
    with open_file(file.entry.uri) as opened:
        known = opened[file.tree].keys(recursive=True, full_paths=False)
    branch = plan.branches[name]
    return InputError(f"{file.entry.uri}: {unknown('branch', branch, known)} ({config.source} uses it in {config.used_by(name)})")
