"""ROOT files -> prepared data, decoded once and shared by all trials, epochs and nodes.

    python -m weaver.prepare --data-config jec_pfn_open.yaml --data 'train/*.root' --output runs

prints the address of the prepared folder, `<output>/cache/<key>/` (its form:
weaver/prepared/columns.py). The key is a digest of the files (address, size, tag), of the data
config's meaning and of the sample's role, so that the same data is never decoded twice and changed
data is never taken for the old. What was left out of damaged files is in the key as well: a set
that lacks something never stands for the whole one. Memory stays bounded: files are decoded in
steps, and columns are written as they come.

Roles: the training set (which also derives the numbers of `preprocess: auto` and the histograms of
reweighting), the validation set (`--validation`: the same selection), the test set (`--test`:
test_time_selection, observers required, no weights). What was derived from the training set goes on
to the others with the data config that its preparation returns, or with `--derived-from`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from common import storage
from common.cli import run_main
from common.errors import InputError
from common.storage import Entry, space
from weaver.config.data_config import DataConfig
from weaver.config.sections import AUTO, NON_FINITE
from weaver.prepared.columns import (
    DESCRIPTION,
    FORMAT,
    building,
    damage,
    digest_of,
    is_prepared,
    publish,
)
from weaver.prepared.decoding import Decoding, Report, report_skipped
from weaver.prepared.node_cache import node_cache
from weaver.read import files as data_files

# raise it when the same files decode to other numbers; data that were prepared before are then made
# anew, while those of a finished run can still be read
DECODED = 2
STORAGE_REQUESTS = 16  # on their way at a time
OBJECTS = 50_000  # made between two garbage collections: an opened file has some ten thousand


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRef:
    """A prepared folder and what is in it."""

    uri: str
    num_jets: int
    """Jets that passed the selection."""
    num_read: int
    """Jets in the files."""
    key: str
    data_config: DataConfig
    """With what was derived from the training set; prepare the validation and test sets with it."""
    reused: bool
    """True if it had been prepared before."""


def prepare(
    files: str | Iterable[str] | list[Entry],
    data_config: DataConfig,
    storage_uri: str,
    *,
    for_training: bool,
    validation: bool = False,
    skip_bad_files: bool = False,
    part: data_files.Part = data_files.WHOLE,
    report: Report | None = None,
    step_bytes: int = data_files.STEP_BYTES,
) -> PreparedRef:
    """Decode files into `<storage_uri>/cache/<key>/`, or find them there already decoded.

    files: patterns (weaver/read/files.py) or stored entries. data_config: for the validation and
    test sets that of the training set's `PreparedRef` where something is derived (`preprocess:
    auto`, reweighting). for_training: true for the training and the validation set, which take
    `selection`, false for the test set. part: the part of each file's entries to take, as (0, 0.8);
    what `preprocess: auto` derives is of the whole files, as in weaver-core. skip_bad_files: leave
    damaged files out, and say so; a set that lacks something has a key of its own.
    report: called with one line about the result (default: stderr).

    Raises InputError, before any decoding, for files and branches that cannot be used, and after it
    where no jet passed.
    """
    report = report or (lambda line: print(line, file=sys.stderr))
    if isinstance(files, list) and files and isinstance(files[0], Entry):
        entries = cast(list[Entry], files)
    else:
        patterns = cast("str | Iterable[str]", files)
        entries = data_files.find(patterns, lambda text: report(f"warning: {text}"))
    # The key, and the order of the jets, do not depend on the order in which files are named.
    entries = sorted(entries, key=lambda entry: (entry.uri, entry.tree))
    role = "test" if not for_training else "validation" if validation else "training"
    _check_derived(data_config, role)

    def address(left_out: Sequence[data_files.Skipped]) -> str:
        key = _key(entries, data_config, role, left_out, part)
        return storage.join(storage.absolute(storage_uri), "cache", key)

    uri = address(())
    if (earlier := _usable(uri, report)) is not None:
        return _reference(uri, data_config, earlier, reused=True)

    with _rare_collections():
        checked = data_files.check(
            entries,
            data_config,
            for_training=for_training,
            skip_bad_files=skip_bad_files,
            part=part,
        )
    uri = address(checked.skipped)
    if checked.skipped and (earlier := _usable(uri, report)) is not None:
        report_skipped(checked.skipped, report)
        return _reference(uri, data_config, earlier, reused=True)
    decoding = Decoding(
        config=data_config,
        plan=checked.plan,
        files=checked.files,
        role=role,
        report=report,
        step_bytes=step_bytes,
        skip_bad_files=skip_bad_files,
        skipped=checked.skipped,
    )

    def target() -> Path:
        """The folder on this machine: the set itself, or this node's copy of it."""
        return Path(uri) if storage.is_local(uri) else node_cache() / storage.name(uri)

    needed = warn_of_space(target(), checked.files, report)
    with building(target(), target, needed=needed) as folder:
        try:
            with _rare_collections():
                description = decoding.run(folder)
        except InputError:
            check_unchanged(entries)  # half of an old file and half of a new one look like damage
            raise
        check_unchanged(entries)
        if address(decoding.skipped) != uri:  # some damage shows in decoding only
            uri = address(decoding.skipped)
            _usable(uri, report)  # which removes an earlier set of that name if it is damaged
        description["sha256"] = digest_of(description)
        storage.write_json(str(folder / DESCRIPTION), description)
        if not storage.is_local(uri):
            publish(folder, uri)  # the temporary folder then becomes this node's copy
    return _reference(uri, data_config, description, reused=False)


def _usable(uri: str, report: Report) -> dict[str, Any] | None:
    """The description of a prepared folder; None where there is none.

    A folder that is damaged is removed, with a warning.
    """
    if not is_prepared(uri):
        return None
    # data elsewhere is compared when its copy on this node has been made
    problem = damage(Path(uri)) if storage.is_local(uri) else ""
    if problem:
        report(f"warning: prepared data {uri} is damaged ({problem}); it is prepared again")
        storage.delete(uri)
        return None
    description: dict[str, Any] = storage.read_json(storage.join(uri, DESCRIPTION))
    return description


def warn_of_space(target: Path, files: Iterable[data_files.DataFile], report: Report) -> int:
    """Say so where the disk has less room than the branches that are read take in memory.

    Returns those bytes. It is no error, because a selection may leave most of their jets out.
    """
    size = int(sum(file.bytes_per_entry * file.num_used for file in files))
    free = space.free_bytes(target)
    if free < size:
        report(
            f"warning: the data may take {space.shown(size)}, and {space.shown(free)} are free"
            f" where {target} is to be"
        )
    return size


def check_unchanged(entries: Iterable[Entry]) -> None:
    """Raise InputError where a file is not the one any more that was listed before it was read.

    Of what S3 and web servers have, each request asks for the version that was listed.
    """
    listed = []
    for entry in entries:
        if not storage.is_s3(entry.uri) and not entry.uri.startswith("http"):
            listed.append(entry)
    with ThreadPoolExecutor(STORAGE_REQUESTS) as pool:  # each takes a round trip
        again = list(pool.map(storage.entries, [entry.uri for entry in listed]))
    for entry, now in zip(listed, again, strict=True):
        if [(file.size, file.tag) for file in now] != [(entry.size, entry.tag)]:
            raise InputError(
                f"{entry.uri} changed while it was read: it had {entry.size:,} bytes, now it has"
                f" {sum(file.size for file in now):,} or another date; start again when it is whole"
            )


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Python's garbage collection in larger steps.

    The many small objects of an opened file would start it over and over. What lives already
    (torch's modules, say) is left out of it.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(OBJECTS, 5, 5)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _check_derived(config: DataConfig, role: str) -> None:
    """Raise InputError where numbers of the training set are still missing."""
    if role == "training":
        return
    if config.missing_preprocess_params:
        raise InputError(
            f"{config.source}: preprocess: auto takes its numbers from the training set; prepare"
            " that first"
        )
    if role == "validation" and config.missing_reweight_hists:
        raise InputError(
            f"{config.source}: weights: the histograms come from the training set; prepare that"
            " first"
        )


def _key(
    entries: list[Entry],
    config: DataConfig,
    role: str,
    left_out: Sequence[data_files.Skipped],
    part: data_files.Part,
) -> str:
    """The digest of all that decides the prepared data; it names the folder.

    left_out: the damaged files, or parts of them, that are not in it.
    """
    derived: dict[str, object] = {**config.derived}
    # Numbers that stand in the data config are in its digest; only the validation set is weighted
    # with histograms that are in neither.
    if not any(values["center"] == AUTO for values in config.declared["params"].values()):
        del derived["preprocess_params"]
    if role != "validation":
        del derived["reweight_hists"]
    files = storage.fingerprint(entries)
    meaning: list[object] = [FORMAT, DECODED, files, config.digest(), role, derived]
    if config.options.get("file_magic"):  # which looks at the paths as they were written
        meaning.append([entry.written for entry in entries])
    if left_out:
        meaning.append(["left out", sorted((one.uri, one.jets, one.exact) for one in left_out)])
    if part != data_files.WHOLE:
        meaning.append(list(part))
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:32]


def _reference(
    uri: str, config: DataConfig, description: Mapping[str, Any], *, reused: bool
) -> PreparedRef:
    return PreparedRef(
        uri=uri,
        num_jets=description["num_jets"],
        num_read=description["num_read"],
        key=storage.name(uri),
        data_config=config.with_derived(description),
        reused=reused,
    )


def argument_parser() -> argparse.ArgumentParser:
    """The arguments of `python -m weaver.prepare`."""
    parser = argparse.ArgumentParser(
        prog="python -m weaver.prepare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--data-config",
        required=True,
        help="data config in Weaver's YAML: a path or an address",
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="data files: paths, s3://, root:// or https:// addresses, with *, ? or [...]",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="storage: a folder, s3:// or root:// address; the data goes to its cache/",
    )
    role = parser.add_mutually_exclusive_group()
    role.add_argument(
        "--validation",
        action="store_true",
        help="this is the validation set (default: the training set)",
    )
    role.add_argument("--test", action="store_true", help="this is the test set")
    parser.add_argument(
        "--derived-from",
        help=(
            "prepared training data, whose standardisation (preprocess: auto) and histograms are"
            " used"
        ),
    )
    parser.add_argument(
        "--skip-bad-files",
        action="store_true",
        help="leave damaged files out and say how many jets are lost with them",
    )
    parser.add_argument(
        "--non-finite",
        choices=NON_FINITE,
        help="what becomes of NaN and infinity in inputs (default: the data config's)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prepare data and print its address; returns the exit code."""
    arguments = argument_parser().parse_args(argv)

    def body() -> None:
        config = DataConfig.load(arguments.data_config)
        if arguments.derived_from:
            description = storage.read_json(storage.join(arguments.derived_from, DESCRIPTION))
            config = config.with_derived(description)
        if arguments.non_finite:
            config = config.with_non_finite(arguments.non_finite)
        prepared = prepare(
            arguments.data,
            config,
            arguments.output,
            for_training=not arguments.test,
            validation=arguments.validation,
            skip_bad_files=arguments.skip_bad_files,
        )
        print(prepared.uri)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
