"""Decode data files into the columns of a prepared folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from common import machine, storage
from common.errors import InputError
from common.progress import Progress
from weaver.config.data_config import DataConfig
from weaver.config.helpers import random_numbers
from weaver.config.plan import Plan
from weaver.config.weights import BLOCK, Reweighting, Sampler, jet_weights, make_histograms
from weaver.prepared import transform
from weaver.prepared.columns import (
    AUTO_YAML,
    FORMAT,
    WEIGHT,
    ColumnEntry,
    Contents,
    DatasetWriter,
    Description,
    FileEntry,
    NpyWriter,
    reweight_column,
)
from weaver.prepared.derive import derive_params
from weaver.read import files as data_files
from weaver.read.ahead import in_threads, lookahead
from weaver.read.files import DamagedFile, DataFile, Load, SkippedFile, Step
from weaver.read.jagged import common_type
from weaver.read.opening import REMEDY, TREE_REMEDY
from weaver.read.remote import AHEAD_BYTES, Readers

Report = Callable[[str], None]
MOST_EXPANSION = 2.0
"""Largest ratio of the bytes of padded input variables to the bytes that a step reads."""
MOST_THREADS = 8  # limit, because each thread has a step and its rows in memory
LEAST_STEP = 2**18  # smallest number of bytes in a step, if memory is short
# Memory of the preparation: the bytes that a step reads and the padded inputs count twice for each
# thread and four times for steps that wait or are written, plus three ranges of baskets. Measured
# with 40 variables of 200 particles: 342 MB with two threads and 279 with one, at 36 MB a step.
SHARES_OF_THREAD, SHARES_OF_OTHERS, RANGES = 2, 4, 3
SHARE_OF_ROOM = 0.7  # share of the available memory; the rest is for what is not counted here

TREATMENTS = {
    "weaver": "NaN is replaced by 0; infinity stays unless it is clipped",
    "zero": "replaced by 0 unless they are clipped",
    "drop": "jets with such a value are left out unless it is clipped",
    "error": "all of them are clipped",
}
"""Policy for NaN and infinity -> what is done with them, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Number of threads, and size of steps."""

    threads: int
    share: float
    """Size of a step relative to the usual one, at most 1."""


def pace(room: int | None, threads: int, step: int, ranges: int, least: float) -> Pace:
    """Choose as many threads, and then as large steps, as fit in the available memory.

    room: available bytes; None without a limit. step: bytes that a usual step reads and makes.
    ranges: bytes of the largest range of baskets, which cannot be divided. least: smallest share.
    If there is too little memory for one thread with the smallest steps, that is returned.
    """
    if room is None:
        return Pace(threads=threads, share=1.0)
    available = max(SHARE_OF_ROOM * room - RANGES * ranges, 0.0)
    for number in range(threads, 0, -1):
        shares = SHARES_OF_THREAD * number + SHARES_OF_OTHERS
        share = available / (shares * max(step, 1))
        if share >= least:
            return Pace(threads=number, share=min(share, 1.0))
    return Pace(threads=1, share=least)


@dataclasses.dataclass(frozen=True)
class JobResult:
    """The result of a job, which decodes some steps of a file."""

    number: int
    """Number of the file."""
    steps: list[tuple[transform.Rows | None, int]]
    """(rows, number of jets read) of each step; rows are None if no jet passed the selection."""
    damage: DamagedFile | None
    """The error after these steps, if damaged files are skipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """The decoding of checked files; damage that is noticed here is added to `skipped_files`."""

    config: DataConfig
    plan: Plan
    files: list[DataFile]
    role: str
    report: Report
    step_bytes: int
    skip_bad_files: bool
    skipped_files: list[SkippedFile]

    def run(self, folder: Path) -> Description:
        """Derive missing parameters, and write the columns; returns the content of dataset.json.

        Raises InputError if no jet remains, and for damaged files.
        """
        config = self.config
        if config.missing_preprocess_params:
            config = config.with_preprocess_params(derive_params(self.files, config, self.steps))
        contents = self.write(folder, config)
        if contents["num_jets"] and self.role == "training" and config.missing_reweight_hists:
            config = self.reweight(folder, contents["columns"], config)
        if not contents["num_jets"]:
            raise self.no_jets_error(contents["dropped_jets"])
        self.report_contents(contents)
        if WEIGHT in contents["columns"]:
            self.report_weights(folder / contents["columns"][WEIGHT]["file"])
        storage.write_text(str(folder / AUTO_YAML), config.auto_yaml())

        files: list[FileEntry] = []
        for file in self.files:
            files.append(
                {
                    "uri": file.entry.uri,
                    "written": file.entry.written,
                    "size": file.entry.size,
                    "tag": file.entry.tag,
                    "tree": file.tree,
                    "jets": file.num_used,
                }
            )
        return {
            "format": FORMAT,
            "role": self.role,
            "num_read": self.num_read,
            "config": self.config.digest(),
            "skipped": [dataclasses.asdict(file) for file in self.skipped_files],
            **config.derived_parameters,
            "files": files,
            "types": self.types,
            **contents,
        }

    @property
    def types(self) -> dict[str, str]:
        """Branch -> common type of its numbers in all files."""
        types: dict[str, set[np.dtype]] = {}
        for file in self.files:
            for name, dtype in file.types.items():
                types.setdefault(self.plan.branches[name], set()).add(dtype.newbyteorder("="))
        return {branch: common_type(dtypes).str for branch, dtypes in types.items()}

    @property
    def num_read(self) -> int:
        """Number of jets in the files."""
        return sum(file.num_used for file in self.files)

    # ----------------------------------------------------------------------------------- decoding

    def write(self, folder: Path, config: DataConfig) -> Contents:
        """Decode all files and write their rows, in the order of the files."""
        writer = DatasetWriter(folder)
        jets_read = [0] * len(self.files)  # jets read of each file
        damaged_files: set[int] = set()
        label = f"preparing {self.role} data"
        with (
            Progress(label, total=self.num_read, unit="jets") as progress,
            Readers() as readers,
            contextlib.closing(
                in_threads(self.jobs(config, readers), self.pace.threads)
            ) as results,
        ):
            for result in results:
                # Later jobs of a damaged file may have been at work already; they are ignored.
                if result.number in damaged_files:
                    continue
                file = self.files[result.number]
                for rows, count in result.steps:
                    if rows is not None:
                        writer.append(rows)
                    jets_read[result.number] += count
                    progress.advance(count, note=storage.name(file.entry.uri))
                if result.damage is not None:
                    damaged_files.add(result.number)
                    jets_lost = file.num_used - jets_read[result.number]
                    reason = str(result.damage)
                    self.skipped_files.append(
                        SkippedFile(uri=file.entry.uri, reason=reason, jets=jets_lost, exact=True)
                    )
        return writer.close()

    @functools.cached_property
    def pace(self) -> Pace:
        """Number of threads and size of steps, for the memory that this process may use.

        There is one thread for each core, at most MOST_THREADS. Expressions with random numbers
        need one thread and steps of the usual size, so that the order of jets decides the numbers.
        """
        expressions = [function for _, function in self.plan.selection_functions]
        expressions += [function for _, function in self.plan.functions]
        if self.plan.selection is not None:
            expressions.append(self.plan.selection)
        if any(expression.is_random for expression in expressions):
            return Pace(threads=1, share=1.0)
        room = machine.memory_room()
        least = min(LEAST_STEP / self.step_bytes, 1.0)
        step = ranges = 0
        if room is not None:
            for file in self.files:
                read_bytes = self.bytes_of_step(file)
                step = max(
                    step, int(read_bytes * (1 + self.padded_bytes / max(file.bytes_per_entry, 1)))
                )
                ranges = max(ranges, data_files.range_bytes(file, int(least * read_bytes)))
        threads = min(machine.cores(), MOST_THREADS)
        return pace(room, threads, step, ranges, least)

    def jobs(self, config: DataConfig, readers: Readers) -> Iterator[Callable[[], JobResult]]:
        """Yield the jobs for all files, each for some steps of one file.

        The bytes of the next jobs, also of the next files, are already being read.
        """

        def numbered_loads() -> Iterator[tuple[int, Load]]:
            for number, file in enumerate(self.files):
                for load in self.loads(file, self.plan, *file.entries, readers):
                    yield number, load

        generators = [np.random.default_rng(number) for number in range(len(self.files))]
        for number, load in lookahead(
            numbered_loads(), lambda item: item[1].num_bytes, AHEAD_BYTES
        ):
            yield functools.partial(self.decode, number, load, config, generators[number])

    def decode(
        self, number: int, load: Load, config: DataConfig, generator: np.random.Generator
    ) -> JobResult:
        """Decode steps of a file and make their rows.

        If damaged files are skipped, the result contains the error at which decoding ended. Raises
        InputError otherwise.
        """
        where = self.files[number].entry.uri
        steps: list[tuple[transform.Rows | None, int]] = []
        try:
            with random_numbers(generator):
                for columns, count in load():
                    rows = None
                    selected_columns, num_passed = transform.select(columns, self.plan)
                    if num_passed:
                        rows = transform.make_rows(
                            selected_columns, num_passed, config, self.plan, where
                        )
                    steps.append((rows, count))
        except DamagedFile as error:
            if not self.skip_bad_files:
                raise
            return JobResult(number, steps, error)
        except InputError as error:
            if where in str(error):
                raise
            raise InputError(f"{error} (in {where})") from error
        return JobResult(number, steps, None)

    @functools.cached_property
    def padded_bytes(self) -> int:
        """Number of bytes of a jet's padded input variables."""
        return sum(4 * math.prod(shape[1:]) for shape in self.config.input_shapes.values())

    def bytes_of_step(self, file: DataFile) -> int:
        """Return the bytes in a step: fewer if the padded inputs are much larger than the data.

        Otherwise memory would grow with the number of input variables.
        """
        share = MOST_EXPANSION * file.bytes_per_entry / max(self.padded_bytes, 1)
        return max(int(self.step_bytes * min(share, 1)), 1)

    def loads(
        self, file: DataFile, plan: Plan, start: int, stop: int, readers: Readers
    ) -> Iterator[Load]:
        """Yield the loads of the file's entries start:stop.

        If the iterator itself meets damage, it yields a load that raises the error.
        """
        try:
            yield from data_files.loads(
                file,
                self.config,
                plan,
                training_set=self.role == "training",
                start=start,
                stop=stop,
                step_bytes=max(int(self.pace.share * self.bytes_of_step(file)), 1),
                readers=readers,
            )
        except DamagedFile as error:
            yield Load(functools.partial(_raise, error))

    def steps(self, file: DataFile, plan: Plan, stop: int) -> Iterator[Step]:
        """Yield the columns of the file's entries up to `stop`, step by step.

        If damaged files are skipped, it ends at the damage. Raises DamagedFile otherwise.
        """

        def list_steps(load: Load) -> list[Step]:
            return list(load())  # a list, so that the thread decodes, not the loop below

        def jobs(readers: Readers) -> Iterator[Callable[[], list[Step]]]:
            loads = self.loads(file, plan, 0, stop, readers)
            for load in lookahead(loads, lambda load: load.num_bytes, AHEAD_BYTES):
                yield functools.partial(list_steps, load)

        with (
            Readers() as readers,
            contextlib.closing(in_threads(jobs(readers), self.pace.threads)) as parts,
        ):
            try:
                for part in parts:
                    yield from part
            except DamagedFile:
                if not self.skip_bad_files:
                    raise

    # ------------------------------------------------------------------------------------ reports

    def report_contents(self, contents: Contents) -> None:
        """Report the number of jets, and problems with the data."""
        self.report(
            f"{self.role} data: {contents['num_jets']:,} of {self.num_read:,} jets pass the"
            " selection"
        )
        report_skipped_files(self.skipped_files, self.report)
        if contents["empty_jets"]:
            self.report(f"{contents['empty_jets']:,} jets have no particles")
        if contents["dropped_jets"]:
            self.report(
                f"warning: {contents['dropped_jets']:,} jets with NaN or infinite values are left"
                " out (non_finite: drop)"
            )
        policy = self.config.non_finite
        for name, (nan, infinite) in contents["non_finite"].items():
            # labels and weights are never changed
            is_input = name in self.config.preprocess_params
            treatment = TREATMENTS[policy] if is_input or policy == "drop" else "kept as they are"
            self.report(
                f"warning: '{name}' has {nan:,} NaN and {infinite:,} infinite values ({treatment})"
            )

    def report_weights(self, path: Path) -> None:
        """Report the effect of the weights in a file on the training."""
        weights = np.load(path, mmap_mode="r")
        if self.config.weight_use == "loss":
            self.report(
                "weights multiply the loss of the jets; their mean is"
                f" {weights.mean(dtype=np.float64):.4g}"
            )
            return
        size = Sampler(weights).size
        if self.role == "training":
            self.report(f"an epoch samples {size:,} of {len(weights):,} jets by their weights")
        above = np.count_nonzero(weights > 1) / len(weights)
        if above:
            self.report(
                f"warning: {above:.1%} of the weights are above 1, where sampling cuts them; see"
                " 'use_as: loss' of weights"
            )

    def no_jets_error(self, num_dropped: int) -> InputError:
        """Return the error if no jet remains.

        Num_dropped: jets that `non_finite: drop` has removed.
        """
        selection = self.plan.selection
        if num_dropped or selection is None:
            return InputError(
                f"all {num_dropped:,} selected jets have NaN or infinite values (non_finite: drop);"
                " choose another policy"
            )
        return InputError(
            f"none of {self.num_read:,} jets passes {selection.where} '{selection.text}';"
            " make it wider"
        )

    # ---------------------------------------------------------------------------------- reweighting

    def reweight(
        self, folder: Path, columns: dict[str, ColumnEntry], config: DataConfig
    ) -> DataConfig:
        """Compute the histograms of the reweighting, and each jet's weight.

        The temporary columns are removed. Returns the config with the histograms. Raises InputError
        as make_histograms does.
        """
        reweighting = config.reweighting
        if reweighting is None:
            return config
        chunks = _Chunks(folder, columns, reweighting)
        try:
            hists, num_entries, jets = make_histograms(chunks, reweighting)
        except InputError as error:
            raise InputError(f"{config.source}: {error}") from None
        if num_entries != jets:
            self.report(
                f"warning: {num_entries:,} of {jets:,} jets are in the histograms of the weights;"
                " see reweight_classes and reweight_vars"
            )
        writer = NpyWriter(folder / f"{WEIGHT}.npy")
        for chunk in chunks:
            writer.append(jet_weights(chunk, reweighting, hists))
        columns[WEIGHT] = writer.close()
        for path in chunks.paths.values():
            path.unlink()
        return dataclasses.replace(config, reweight_hists=hists)


class _Chunks:
    """The columns of a reweighting, in chunks of jets; may be iterated several times.

    They are removed from `columns`, because the prepared data will not contain them.
    """

    def __init__(
        self, folder: Path, columns: dict[str, ColumnEntry], reweighting: Reweighting
    ) -> None:
        self.paths: dict[str, Path] = {}
        self.columns: dict[str, np.ndarray] = {}
        for name in reweighting.columns:
            self.paths[name] = folder / columns.pop(reweight_column(name))["file"]
            self.columns[name] = np.load(self.paths[name], mmap_mode="r")

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        for start in range(0, len(next(iter(self.columns.values()))), BLOCK):
            yield {name: values[start : start + BLOCK] for name, values in self.columns.items()}


def report_skipped_files(files: Iterable[SkippedFile], report: Report) -> None:
    """Report the jets that were lost with damaged files, and the reasons."""
    for file in files:
        about = "" if file.exact else "a file is left out, about "
        # the reason without its advice, which has been followed
        reason = file.reason
        for remedy in (REMEDY, TREE_REMEDY):
            reason = reason.removesuffix(f"; {remedy}")
        report(f"warning: {about}{file.jets:,} jets are lost: {reason}")


def _raise(error: Exception) -> NoReturn:
    raise error
