"""ROOT files -> prepared data, decoded once and shared by all trials, epochs and nodes.

    python -m weaver.prepare --data-config data/jec_pfn_open.yaml --data 'train/*.root' --output
        runs

prints the address of the prepared folder, `<output>/cache/<key>/` (its form:
weaver/prepared/columns.py). The key is a digest of the files (address, size, tag), of the data
config's meaning and of the sample's role, so that the same data is never decoded twice and changed
data never taken for the old. Memory stays bounded: files are decoded in steps, columns are written
as they come.

Roles: the training set (which also derives the numbers of `preprocess: auto` and the histograms of
reweighting), the validation set (`--validation`: the same selection), the test set (`--test`:
test_time_selection, observers required, no weights). What was derived from the training set goes on
to the others with the data config that its preparation returns, or with `--derived-from`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common import storage
from common.errors import InputError, JecError
from common.progress import Progress
from common.storage import Entry
from weaver.config.data_config import AUTO, NON_FINITE, DataConfig, Plan
from weaver.config.helpers import random_numbers
from weaver.config.weights import BLOCK, Sampler, jet_weights, make_histograms
from weaver.prepared import transform
from weaver.prepared.columns import (
    AUTO_YAML,
    DESCRIPTION,
    FORMAT,
    WEIGHT,
    DatasetWriter,
    NpyWriter,
    building,
    is_prepared,
    node_cache,
    publish,
    reweight_column,
)
from weaver.read import files as data_files
from weaver.read.ahead import in_threads

Report = Callable[[str], None]
MOST_THREADS = 8  # each holds a step and what is made of it
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
    """The data config with what was derived from the training set; prepare the validation and test
    sets with it.
    """
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
    report: Report | None = None,
    step_bytes: int = data_files.STEP_BYTES,
) -> PreparedRef:
    """Decode files into `<storage_uri>/cache/<key>/`, or find them there already decoded.

    files: patterns (weaver/read/files.py) or stored entries. data_config: for the validation and
    test sets that of the training set's `PreparedRef` where something is derived (`preprocess:
    auto`, reweighting). for_training: true for the training and the validation set, which take
    `selection`, false for the test set. skip_bad_files: leave damaged files out, and say so.
    report: called with one line about what was found (default: stderr).

    Raises InputError, before any decoding, for files and branches that cannot be used, and after it
    where no jet passed.
    """
    report = report or (lambda line: print(line, file=sys.stderr))
    entries = (
        files
        if isinstance(files, list) and files and isinstance(files[0], Entry)
        else data_files.find(files)
    )
    entries = sorted(entries, key=lambda entry: entry.uri)
    data_config.check_supported(for_training)
    role = "test" if not for_training else "validation" if validation else "training"
    _check_derived(data_config, role)
    key = _key(entries, data_config, role, skip_bad_files)
    uri = storage.join(storage.absolute(storage_uri), "cache", key)
    if is_prepared(uri):
        return _reference(
            uri, data_config, storage.read_json(storage.join(uri, DESCRIPTION)), reused=True
        )
    with _rare_collections():
        checked = data_files.check(
            entries, data_config, for_training=for_training, skip_bad_files=skip_bad_files
        )
    job = _Job(
        data_config,
        checked.plan,
        checked.files,
        role,
        report,
        step_bytes,
        skip_bad_files,
        checked.skipped,
    )
    with building(node_cache() / key if storage.is_s3(uri) else Path(uri)) as folder:
        with _rare_collections():
            description = job.run(folder)
        storage.write_json(str(folder / DESCRIPTION), description)
        if storage.is_s3(uri):
            publish(folder, uri)  # the temporary folder then becomes this node's copy
    return _reference(uri, data_config, description, reused=False)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Python's garbage collection, which the many small objects of an opened file would start over
    and over, in larger steps.

    What lives already (torch's modules, say) is left out of it.
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


@dataclasses.dataclass(frozen=True)
class _Job:
    """One decoding of checked files; `skipped` grows where damage shows in decoding only."""

    config: DataConfig
    plan: Plan
    files: list[data_files.DataFile]
    role: str
    report: Report
    step_bytes: int
    skip_bad_files: bool
    skipped: list[data_files.Skipped]

    def run(self, folder: Path) -> dict[str, Any]:
        """Derive what is to be derived, write the columns, return the description."""
        config = self.config
        if config.missing_preprocess_params:
            config = config.with_preprocess_params(derive_params(self.files, config, self.steps))
        columns = self.write(folder, config)
        if columns["num_jets"] and self.role == "training" and config.missing_reweight_hists:
            config = self.reweight(folder, columns["columns"], config)
        if not columns["num_jets"]:
            read = sum(file.num_entries for file in self.files)
            raise self.nothing_left(read, columns["dropped_jets"])
        self.tell(columns)
        self.tell_weights(folder, columns["columns"])
        storage.write_text(str(folder / AUTO_YAML), config.auto_yaml())
        return {
            "format": FORMAT,
            "role": self.role,
            "num_read": sum(file.num_entries for file in self.files),
            "config": self.config.digest(),
            "skipped": [dataclasses.asdict(skipped) for skipped in self.skipped],
            **config.derived,
            "files": [
                {
                    "uri": f.entry.uri,
                    "size": f.entry.size,
                    "tag": f.entry.tag,
                    "tree": f.tree,
                    "jets": f.num_entries,
                }
                for f in self.files
            ],
            **columns,
        }

    def write(self, folder: Path, config: DataConfig) -> dict[str, Any]:
        writer = DatasetWriter(folder)
        done = [0] * len(self.files)
        with (
            self.progress() as progress,
            contextlib.closing(in_threads(self.jobs(config), self.threads)) as results,
        ):
            for number, steps, error in results:
                file = self.files[number]
                if self.is_skipped(file):
                    continue
                for ready, count in steps:
                    if ready is not None:
                        writer.append(ready)
                    done[number] += count
                    progress.advance(count, note=storage.name(file.entry.uri))
                if error is not None:
                    lost = file.num_entries - done[number]
                    self.skipped.append(
                        data_files.Skipped(
                            uri=file.entry.uri, reason=str(error), jets=lost, exact=True
                        )
                    )
        return writer.close()

    @property
    def threads(self) -> int:
        """One for each core; numpy and the decompressors let each other run.

        Random numbers of a file are drawn in its order.
        """
        functions = (*self.plan.selection_functions, *self.plan.functions)
        draws = any(function.is_random for _, function in functions) or (
            self.plan.selection is not None and self.plan.selection.is_random
        )
        return 1 if draws else min(len(os.sched_getaffinity(0)), MOST_THREADS)

    def is_skipped(self, file: data_files.DataFile) -> bool:
        return any(skipped.uri == file.entry.uri for skipped in self.skipped)

    def progress(self) -> Progress:
        return Progress(
            f"preparing {self.role} data",
            total=sum(file.num_entries for file in self.files),
            unit="jets",
        )

    def jobs(self, config: DataConfig) -> Iterator[Callable[[], Made]]:
        """The work on all files, each job on some steps of one of them."""
        for number, file in enumerate(self.files):
            generator = np.random.default_rng(number)
            for load in self.loads(file, self.plan):
                yield functools.partial(self.make, number, load, config, generator)

    def make(
        self, number: int, load: data_files.Load, config: DataConfig, generator: np.random.Generator
    ) -> Made:
        """Decode steps of a file and make their rows; where damaged files are skipped, it ends at
        the damage, which is then told.
        """
        made: list[tuple[transform.Ready | None, int]] = []
        try:
            with random_numbers(generator):
                for columns, count in load():
                    selected, passed = transform.select(columns, self.plan)
                    where = self.files[number].entry.uri
                    made.append(
                        (
                            (
                                transform.make_ready(selected, passed, config, self.plan, where)
                                if passed
                                else None
                            ),
                            count,
                        )
                    )
        except data_files.DamagedFile as error:
            if not self.skip_bad_files:
                raise
            return number, made, error
        return number, made, None

    def loads(
        self, file: data_files.DataFile, plan: Plan, stop: int | None = None
    ) -> Iterator[data_files.Load]:
        """The file's steps; damage that shows while they are listed is one of them."""
        try:
            yield from data_files.loads(
                file,
                self.config,
                plan,
                training_set=self.role == "training",
                stop=stop,
                step_bytes=self.step_bytes,
            )
        except data_files.DamagedFile as error:
            yield functools.partial(_raise, error)

    def steps(self, file: data_files.DataFile, plan: Plan, stop: int) -> Iterator[tuple[dict, int]]:
        """The columns of the file's first entries, step by step; where it turns out to be damaged,
        and such files are skipped, it ends.
        """
        jobs = (functools.partial(_listed, load) for load in self.loads(file, plan, stop))
        with contextlib.closing(in_threads(jobs, self.threads)) as parts:
            try:
                for part in parts:
                    yield from part
            except data_files.DamagedFile:
                if not self.skip_bad_files:
                    raise

    def tell(self, columns: dict[str, Any]) -> None:
        read = sum(file.num_entries for file in self.files)
        self.report(
            f"{self.role} data: {columns['num_jets']:,} of {read:,} jets pass the selection"
        )
        for skipped in self.skipped:
            about = "" if skipped.exact else "about "
            self.report(
                f"warning: {about}{skipped.jets:,} jets are lost:"
                f" {skipped.reason.removesuffix(f'; {data_files.REMEDY}')}"
            )
        if columns["empty_jets"]:
            self.report(f"{columns['empty_jets']:,} jets have no particles")
        if columns["dropped_jets"]:
            self.report(
                f"warning: {columns['dropped_jets']:,} jets with NaN or infinite values are left"
                " out (non_finite: drop)"
            )
        for name, (nan, infinite) in columns["non_finite"].items():
            treated = (
                TREATED[self.config.non_finite]
                if name in self.config.preprocess_params
                else "kept as they are"
            )
            treated = TREATED["drop"] if self.config.non_finite == "drop" else treated
            self.report(
                f"warning: '{name}' holds {nan:,} NaN and {infinite:,} infinite values ({treated})"
            )

    def tell_weights(self, folder: Path, columns: dict[str, Any]) -> None:
        if WEIGHT not in columns:
            return
        weights = np.load(folder / columns[WEIGHT]["file"], mmap_mode="r")
        if self.config.weight_use == "loss":
            return self.report(
                "weights multiply the loss of the jets; their mean is"
                f" {weights.mean(dtype=np.float64):.4g}"
            )
        size, above = Sampler(weights).size, np.count_nonzero(weights > 1) / len(weights)
        if self.role == "training":
            self.report(f"an epoch draws {size:,} of {len(weights):,} jets by their weights")
        if above:
            self.report(
                f"warning: {above:.1%} of the weights are above 1, where sampling cuts them; see"
                " 'use_as: loss' of weights"
            )
        return None

    def nothing_left(self, read: int, dropped: int) -> InputError:
        if dropped:
            return InputError(
                f"all {dropped:,} selected jets hold NaN or infinite values (non_finite: drop);"
                " choose another policy"
            )
        return InputError(
            f"none of {read:,} jets passes {self.plan.selection.where} '{self.plan.selection.text}'"
        )

    def reweight(self, folder: Path, columns: dict[str, Any], config: DataConfig) -> DataConfig:
        """Make the histograms of all jets, and each jet's weight of them; the columns that they are
        made of vanish.
        """
        chosen = config.reweighting
        files = {
            name: folder / columns.pop(reweight_column(name))["file"] for name in chosen.columns
        }
        chunks = _Chunks({name: np.load(path, mmap_mode="r") for name, path in files.items()})
        try:
            hists, used, jets = make_histograms(chunks, chosen)
        except InputError as error:
            raise InputError(f"{config.source}: {error}") from None
        if used != jets:
            self.report(
                f"warning: {used:,} of {jets:,} jets are in the histograms of the weights; see"
                " reweight_classes and reweight_vars"
            )
        writer = NpyWriter(folder / f"{WEIGHT}.npy")
        for columns_of_chunk in chunks:
            writer.append(jet_weights(columns_of_chunk, chosen, hists))
        columns[WEIGHT] = writer.close()
        for path in files.values():
            path.unlink()
        return dataclasses.replace(config, reweight_hists=hists)


Made = tuple[int, list[tuple[transform.Ready | None, int]], data_files.DamagedFile | None]
"""A file's number, the rows of some steps (None where no jet passed) each with the jets read for
it, and what was wrong after them.
"""


def _listed(load: data_files.Load) -> list[tuple[dict, int]]:
    return list(load())


def _raise(error: Exception) -> list:
    raise error


TREATED = {
    "weaver": "NaN became 0, infinity stays where it is not clipped",
    "zero": "what is not clipped became 0",
    "drop": "where they are not clipped, their jets are left out",
    "error": "all of them clipped",
}
"""Policy for NaN and infinity -> what happened to them, in words."""


@dataclasses.dataclass(frozen=True)
class _Chunks:
    """Columns in chunks of jets, as often as wanted."""

    columns: dict[str, np.ndarray]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(next(iter(self.columns.values()))), BLOCK):
            yield {name: values[start : start + BLOCK] for name, values in self.columns.items()}


Steps = Callable[[data_files.DataFile, Plan, int | None], Iterator[tuple[dict, int]]]


def derive_params(
    files: list[data_files.DataFile], config: DataConfig, steps: Steps
) -> dict[str, dict[str, Any]]:
    """The parameters of all input variables, those of `preprocess: auto` from the first
    `data_fraction` of each file's jets.

    center = median, scale = 1 / max(q84 - median, median - q16) (1 where that is 0) over all
    particles of the selected jets; a variable whose name ends in _mask is left as it is. As
    weaver-core, which also replaces NaN by 0 before.
    """
    names = [name for name in config.missing_preprocess_params if not name.endswith("_mask")]
    plan = config.plan_for(names)
    params = {name: dict(values) for name, values in config.preprocess_params.items()}
    with tempfile.TemporaryDirectory(prefix="jec-standardise-") as folder:
        paths = {name: Path(folder) / str(index) for index, name in enumerate(names)}
        types = _collect(files, config, plan, paths, steps)
        for name in config.missing_preprocess_params:
            if name.endswith("_mask"):
                params[name]["center"] = None
            else:
                params[name] |= _quantile_params(
                    np.fromfile(paths[name], types[name]), name, config
                )
    return params


def _collect(
    files: list[data_files.DataFile],
    config: DataConfig,
    plan: Plan,
    paths: Mapping[str, Path],
    steps: Steps,
) -> dict[str, np.dtype]:
    """Write the flat values of each variable to a file of its own (one variable at a time fits in
    memory); returns their types.
    """
    types: dict[str, np.dtype] = {}
    stops = {
        file.entry.uri: max(math.trunc(config.preprocess["data_fraction"] * file.num_entries), 1)
        for file in files
    }
    with Progress(
        "deriving the standardisation", total=sum(stops.values()), unit="jets"
    ) as progress:
        for file in files:
            stop = stops[file.entry.uri]
            for columns, count in steps(file, plan, stop):
                selected, passed = transform.select(columns, plan)
                for name, path in paths.items() if passed else ():
                    values = transform.flatten(selected[name], name, config.source)[0]
                    with open(path, "ab") as file_of_values:
                        values.astype(types.setdefault(name, values.dtype), copy=False).tofile(
                            file_of_values
                        )
                progress.advance(count)
    if not types and paths:
        raise InputError(
            f"{config.source}: no jet in the first {config.preprocess['data_fraction']:.0%} of the"
            " files passes the selection"
        )
    return types


def _quantile_params(values: np.ndarray, name: str, config: DataConfig) -> dict[str, float]:
    if not len(values):
        raise InputError(f"{config.source}: preprocess: auto finds no value of '{name}'")
    if values.dtype == bool:
        values = values.astype(np.float32)  # np.percentile subtracts
    if np.isnan(values).any():
        values = np.nan_to_num(values)
    low, center, high = np.percentile(values, [16, 50, 84])
    width = max(high - center, center - low)
    return {"center": float(center), "scale": float(1 if width == 0 else 1.0 / width)}


def _key(entries: list[Entry], config: DataConfig, role: str, skip_bad_files: bool) -> str:
    derived = config.derived
    if not any(values["center"] == AUTO for values in config.declared["params"].values()):
        del derived["preprocess_params"]
    if role != "validation":
        del derived["reweight_hists"]
    meaning = [
        FORMAT,
        storage.fingerprint(entries),
        config.digest(),
        role,
        derived,
        *(["skip"] if skip_bad_files else []),
    ]
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()[:32]


def _reference(
    uri: str, config: DataConfig, description: dict[str, Any], *, reused: bool
) -> PreparedRef:
    return PreparedRef(
        uri=uri,
        num_jets=description["num_jets"],
        num_read=description["num_read"],
        key=storage.name(uri),
        data_config=config.with_derived(description),
        reused=reused,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weaver.prepare", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--data-config",
        required=True,
        help="data config in Weaver's YAML: a path or an s3:// address",
    )
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="ROOT or parquet files: paths or s3:// addresses with *, ? or [...]",
    )
    parser.add_argument(
        "--output",
        required=True,
        help="storage: a folder or s3://bucket/prefix; the data goes to its cache/",
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
    arguments = _parser().parse_args(argv)
    try:
        config = DataConfig.load(arguments.data_config)
        if arguments.derived_from:
            config = config.with_derived(
                storage.read_json(storage.join(arguments.derived_from, DESCRIPTION))
            )
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
    except JecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(prepared.uri)
    return 0


if __name__ == "__main__":
    sys.exit(main())
