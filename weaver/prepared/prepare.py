"""Prepare data files: decode them once, for all trials, epochs and nodes.

    python -m weaver.prepare --data-config jec_pfn_open.yaml --data 'train/*.root' --output runs

prints the address of the prepared folder, `<output>/cache/<key>/` (its format:
weaver/prepared/columns.py). The key is a digest of the files (address, size, tag), of the data
config's settings and of the data's role. So the same data are never decoded twice, and changed data
are prepared again. The key includes jets that were lost with damaged files, so that an incomplete
set never replaces a complete one. Memory does not grow with the data: files are decoded in steps,
and columns are written step by step.

Roles: the training set (from which the numbers of `preprocess: auto` and the histograms of a
reweighting are derived), the validation set (`--validation`: the same selection), the test set
(`--test`: test_time_selection, required observers, no weights). The derived numbers are passed to
the other sets by the data config that the preparation returns, or by `--derived-from`.
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
from common.cli import Parser, output_place, run_main
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
from weaver.prepared.decoding import Decoding, Report, report_skipped_files
from weaver.prepared.node_cache import node_cache
from weaver.read import files as data_files

# raise it if the same files decode to other numbers; data are then prepared again, but earlier
# prepared data of finished runs can still be read
DECODING_VERSION = 2
STORAGE_REQUESTS = 16  # requests at the same time
OBJECTS = 50_000  # new objects between garbage collections; an open file has some ten thousand


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedRef:
    """A prepared folder, with its number of jets and its data config."""

    uri: str
    num_jets: int
    """Number of jets that pass the selection."""
    num_read: int
    """Number of jets in the files."""
    key: str
    data_config: DataConfig
    """The data config with the derived numbers; prepare the validation and test sets with it."""
    reused: bool
    """True if the data had been prepared before."""


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
    """Decode files into `<storage_uri>/cache/<key>/`, unless that folder exists.

    files: patterns (weaver/read/files.py) or entries. data_config: if numbers are derived
    (`preprocess: auto`, reweighting), the one of the training set's PreparedRef for the validation
    and test sets. for_training: True for the training and the validation set, which use
    `selection`, False for the test set. part: range of each file's entries, such as (0, 0.8);
    `preprocess: auto` derives its numbers from whole files, as in weaver-core. skip_bad_files:
    leave out damaged files with a warning; the key then differs. report: called with lines about
    the result (default: print to stderr).

    Raises InputError before decoding for files and branches that cannot be used, and after it if no
    jet passes the selection or a file has changed meanwhile.
    """
    report = report or (lambda line: print(line, file=sys.stderr))
    if isinstance(files, list) and files and isinstance(files[0], Entry):
        entries = cast(list[Entry], files)
    else:
        patterns = cast("str | Iterable[str]", files)
        entries = data_files.find(patterns, lambda text: report(f"warning: {text}"))
    # so that the key and the order of the jets do not depend on the order of the files
    entries = sorted(entries, key=lambda entry: (entry.uri, entry.tree))
    role = "test" if not for_training else "validation" if validation else "training"
    _check_parameters(data_config, role)

    def address(skipped_files: Sequence[data_files.SkippedFile]) -> str:
        key = _key(entries, data_config, role, skipped_files, part)
        return storage.join(storage.absolute(storage_uri), "cache", key)

    uri = address(())
    if (earlier := _usable(uri, report)) is not None:
        return _reference(uri, data_config, earlier, reused=True)

    with _rare_collections():
        check_result = data_files.check(
            entries,
            data_config,
            for_training=for_training,
            skip_bad_files=skip_bad_files,
            part=part,
        )
    if note := data_files.note_on_uproot(check_result.files):
        report(note)
    uri = address(check_result.skipped_files)
    if check_result.skipped_files and (earlier := _usable(uri, report)) is not None:
        report_skipped_files(check_result.skipped_files, report)
        return _reference(uri, data_config, earlier, reused=True)
    decoding = Decoding(
        config=data_config,
        plan=check_result.plan,
        files=check_result.files,
        role=role,
        report=report,
        step_bytes=step_bytes,
        skip_bad_files=skip_bad_files,
        skipped_files=check_result.skipped_files,
    )

    def target() -> Path:
        """Return the local folder: the prepared folder itself, or this node's copy of it."""
        return Path(uri) if storage.is_local(uri) else node_cache() / storage.name(uri)

    num_bytes = warn_of_space(target(), check_result.files, report)
    with building(target(), target, num_bytes=num_bytes) as folder:
        try:
            with _rare_collections():
                description = decoding.run(folder)
        except InputError:
            check_unchanged(entries)  # a file that changes while it is read looks damaged
            raise
        check_unchanged(entries)
        if note := data_files.note_on_fallbacks(check_result.files):
            report(note)
        if address(decoding.skipped_files) != uri:  # some damage is noticed only in decoding
            uri = address(decoding.skipped_files)
            _usable(uri, report)  # this removes an earlier set with this name if it is damaged
        description["sha256"] = digest_of(description)
        storage.write_json(str(folder / DESCRIPTION), description)
        if not storage.is_local(uri):
            publish(folder, uri)  # the temporary folder then becomes this node's copy
    return _reference(uri, data_config, description, reused=False)


def _usable(uri: str, report: Report) -> dict[str, Any] | None:
    """Return the description of a prepared folder; None without one.

    A damaged folder is removed, with a warning.
    """
    if not is_prepared(uri):
        return None
    # remote data is verified when its copy on this node has been made
    problem = damage(Path(uri)) if storage.is_local(uri) else ""
    if problem:
        report(f"warning: prepared data {uri} is damaged ({problem}); it is prepared again")
        storage.delete(uri)
        return None
    description: dict[str, Any] = storage.read_json(storage.join(uri, DESCRIPTION))
    return description


def warn_of_space(target: Path, files: Iterable[data_files.DataFile], report: Report) -> int:
    """Warn if the uncompressed branches are larger than the free space on the disk.

    Returns their bytes. It is not an error, because the selection may leave out most jets.
    """
    size = int(sum(file.bytes_per_entry * file.num_used for file in files))
    free = space.free_bytes(target)
    if free < size:
        report(
            f"warning: the prepared data may need up to {space.size_text(size)}, but only"
            f" {space.size_text(free)} are free for {target}"
        )
    return size


def check_unchanged(entries: Iterable[Entry]) -> None:
    """Raise InputError for a file that has changed since it was listed.

    Files on S3 and web servers are not checked, because each request asks for the listed version.
    """
    local_entries = []
    for entry in entries:
        if not storage.is_s3(entry.uri) and not entry.uri.startswith("http"):
            local_entries.append(entry)
    with ThreadPoolExecutor(STORAGE_REQUESTS) as pool:  # each takes a round trip
        again = list(pool.map(storage.entries, [entry.uri for entry in local_entries]))
    for entry, now in zip(local_entries, again, strict=True):
        if [(file.size, file.tag) for file in now] != [(entry.size, entry.tag)]:
            raise InputError(
                f"{entry.uri} changed while it was read: it had {entry.size:,} bytes, now it has"
                f" {sum(file.size for file in now):,} or another date; start again when it is whole"
            )


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python collect garbage less often within the block.

    Otherwise the many small objects of open files would start it again and again. Existing objects
    (such as torch's modules) are excluded.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(OBJECTS, 5, 5)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


TRAINING_FIRST = (
    "prepare that set first, and give the folder that its command prints as --derived-from FOLDER"
)


def _check_parameters(config: DataConfig, role: str) -> None:
    """Raise InputError if numbers of the training set are missing."""
    if role == "training":
        return
    if config.missing_preprocess_params:
        raise InputError(
            f"{config.source}: preprocess: auto takes its numbers from the training set;"
            f" {TRAINING_FIRST}"
        )
    if role == "validation" and config.missing_reweight_hists:
        raise InputError(
            f"{config.source}: weights has no reweight_hists: the histograms come from the training"
            f" set; {TRAINING_FIRST}"
        )


def _key(
    entries: list[Entry],
    config: DataConfig,
    role: str,
    skipped_files: Sequence[data_files.SkippedFile],
    part: data_files.Part,
) -> str:
    """Return digest of all settings that decide the prepared data; it becomes the folder's name.

    skipped_files: damaged files, or parts of them, that are missing in the data.
    """
    parameters: dict[str, object] = {**config.derived_parameters}
    # Numbers in the data config are part of its digest, so they are left out here. Histograms are
    # needed only for the validation set.
    if not any(values["center"] == AUTO for values in config.canonical_form["params"].values()):
        del parameters["preprocess_params"]
    if role != "validation":
        del parameters["reweight_hists"]
    files = storage.fingerprint(entries)
    meaning: list[object] = [FORMAT, DECODING_VERSION, files, config.digest(), role, parameters]
    if config.options.get("file_magic"):  # it depends on the paths as the user gave them
        meaning.append([entry.written for entry in entries])
    if skipped_files:
        meaning.append(
            ["left out", sorted((file.uri, file.jets, file.exact) for file in skipped_files)]
        )
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
        data_config=config.with_derived_parameters(description),
        reused=reused,
    )


def argument_parser() -> argparse.ArgumentParser:
    """Return the arguments of `python -m weaver.prepare`."""
    parser = Parser(prog="python -m weaver.prepare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data-config",
        required=True,
        metavar="FILE",
        help="data config in Weaver's YAML: a path or an address",
    )
    parser.add_argument(
        "--data",
        type=str,  # patterns, which line breaks may separate
        required=True,
        nargs="+",
        metavar="PATTERN",
        help="data files: paths, s3://, root:// or https:// addresses, with *, ? or [...]",
    )
    parser.add_argument(
        "--output",
        type=output_place,
        required=True,
        metavar="URI",
        help="folder, s3:// or root:// address; the data are written to cache/ below it",
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
        metavar="URI",
        help=(
            "prepared training data from which to take the standardisation (preprocess: auto) and"
            " histograms"
        ),
    )
    parser.add_argument(
        "--skip-bad-files",
        action="store_true",
        help="leave out damaged files, and report how many jets are lost with them",
    )
    parser.add_argument(
        "--non-finite",
        choices=NON_FINITE,
        help="how to treat NaN and infinity in inputs (default: as the data config says)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prepare data and print its address; returns the exit code."""
    arguments = argument_parser().parse_args(argv)

    def body() -> None:
        config = DataConfig.load(arguments.data_config)
        if arguments.derived_from:
            description = storage.read_object(storage.join(arguments.derived_from, DESCRIPTION))
            config = config.with_derived_parameters(description)
        if arguments.non_finite:
            config = config.with_non_finite(arguments.non_finite)
        reference = prepare(
            arguments.data,
            config,
            arguments.output,
            for_training=not arguments.test,
            validation=arguments.validation,
            skip_bad_files=arguments.skip_bad_files,
        )
        print(reference.uri)

    return run_main(body)


if __name__ == "__main__":
    sys.exit(main())
