"""One decoding of checked files into the columns of a prepared folder."""

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
from weaver.read.files import DamagedFile, DataFile, Load, Skipped, Step
from weaver.read.jagged import common_type
from weaver.read.opening import REMEDY, TREE_REMEDY
from weaver.read.remote import AHEAD_BYTES, Readers

Report = Callable[[str], None]
MOST_MADE = 2.0
"""Bytes of input variables, at their full length, for each byte that is read in a step."""
MOST_THREADS = 8  # each holds a step and what is made of it
LEAST_STEP = 2**18  # bytes read at a time, where memory is short
# Memory that preparing takes: of the bytes that a step reads and those that are made of them, twice
# for each thread and four times for what waits or is written, and three ranges of baskets. Measured
# with 40 variables of 200 particles: 342 MB with two threads and 279 with one, at 36 MB a step.
SHARES_OF_THREAD, SHARES_OF_OTHERS, RANGES = 2, 4, 3
SHARE_OF_ROOM = 0.7  # of the memory that is left; the rest is for what is not counted here

TREATED = {
    "weaver": "NaN became 0, infinity stays where it is not clipped",
    "zero": "what is not clipped became 0",
    "drop": "where they are not clipped, their jets are left out",
    "error": "all of them clipped",
}
"""Policy for NaN and infinity -> what happened to them, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How much is worked on at a time."""

    threads: int
    share: float
    """Of the usual step, at most 1."""


def pace(room: int | None, threads: int, step: int, ranges: int, least: float) -> Pace:
    """The largest steps, and then the most threads, that a room of so many bytes allows.

    step: bytes that a whole step reads and makes. ranges: bytes of the largest range of baskets,
    which cannot be divided. least: the smallest share of a step. Without a limit nothing is
    smaller. A room that is too small for one thread with the smallest steps gets these.
    """
    if room is None:
        return Pace(threads=threads, share=1.0)
    left = max(SHARE_OF_ROOM * room - RANGES * ranges, 0.0)
    for number in range(threads, 0, -1):
        shares = SHARES_OF_THREAD * number + SHARES_OF_OTHERS
        share = left / (shares * max(step, 1))
        if share >= least:
            return Pace(threads=number, share=min(share, 1.0))
    return Pace(threads=1, share=least)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What one job made of some steps of a file."""

    number: int
    """Of the file."""
    steps: list[tuple[transform.Ready | None, int]]
    """The rows of each step (None where no jet passed), and the jets read for them."""
    damage: DamagedFile | None
    """What was wrong after these steps, where damaged files are skipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """One decoding of checked files; `skipped` grows where damage shows in decoding only."""

    config: DataConfig
    plan: Plan
    files: list[DataFile]
    role: str
    report: Report
    step_bytes: int
    skip_bad_files: bool
    skipped: list[Skipped]

    def run(self, folder: Path) -> Description:
        """Derive what is to be derived, write the columns, return what dataset.json says.

        Raises InputError where no jet is left, and for files that turn out to be damaged.
        """
        config = self.config
        if config.missing_preprocess_params:
            config = config.with_preprocess_params(derive_params(self.files, config, self.steps))
        contents = self.write(folder, config)
        if contents["num_jets"] and self.role == "training" and config.missing_reweight_hists:
            config = self.reweight(folder, contents["columns"], config)
        if not contents["num_jets"]:
            raise self.nothing_left(contents["dropped_jets"])
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
            "skipped": [dataclasses.asdict(skipped) for skipped in self.skipped],
            **config.derived,
            "files": files,
            "types": self.types,
            **contents,
        }

    @property
    def types(self) -> dict[str, str]:
        """Branch -> the common type of its numbers in all files."""
        types: dict[str, set[np.dtype]] = {}
        for file in self.files:
            for name, dtype in file.types.items():
                types.setdefault(self.plan.branches[name], set()).add(dtype.newbyteorder("="))
        return {branch: common_type(listed).str for branch, listed in types.items()}

    @property
    def num_read(self) -> int:
        """Jets in the files."""
        return sum(file.num_used for file in self.files)

    # ----------------------------------------------------------------------------------- decoding

    def write(self, folder: Path, config: DataConfig) -> Contents:
        """Decode all files and write their rows, in the order of the files."""
        writer = DatasetWriter(folder)
        done = [0] * len(self.files)  # jets read of each file
        damaged: set[int] = set()
        label = f"preparing {self.role} data"
        with (
            Progress(label, total=self.num_read, unit="jets") as progress,
            Readers() as readers,
            contextlib.closing(
                in_threads(self.jobs(config, readers), self.pace.threads)
            ) as results,
        ):
            for decoded in results:
                # Jobs behind the damage may have been at work already: the rest of the file goes.
                if decoded.number in damaged:
                    continue
                file = self.files[decoded.number]
                for ready, count in decoded.steps:
                    if ready is not None:
                        writer.append(ready)
                    done[decoded.number] += count
                    progress.advance(count, note=storage.name(file.entry.uri))
                if decoded.damage is not None:
                    damaged.add(decoded.number)
                    lost = file.num_used - done[decoded.number]
                    reason = str(decoded.damage)
                    self.skipped.append(
                        Skipped(uri=file.entry.uri, reason=reason, jets=lost, exact=True)
                    )
        return writer.close()

    @functools.cached_property
    def pace(self) -> Pace:
        """Threads and steps, as the memory of this process allows.

        One thread for each core: numpy and the decompressors let each other run. Random numbers of
        a file are drawn in its order, hence in one thread, and step by step, hence in whole steps.
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
                read = self.bytes_of_step(file)
                step = max(step, int(read * (1 + self.made_bytes / max(file.bytes_per_entry, 1))))
                ranges = max(ranges, data_files.range_bytes(file, int(least * read)))
        threads = min(machine.cores(), MOST_THREADS)
        return pace(room, threads, step, ranges, least)

    def jobs(self, config: DataConfig, readers: Readers) -> Iterator[Callable[[], Decoded]]:
        """The work on all files, each job on some steps of one of them.

        The bytes of the next jobs are on their way, also those of the next files.
        """

        def numbered() -> Iterator[tuple[int, Load]]:
            for number, file in enumerate(self.files):
                for load in self.loads(file, self.plan, *file.entries, readers):
                    yield number, load

        generators = [np.random.default_rng(number) for number in range(len(self.files))]
        for number, load in lookahead(numbered(), lambda item: item[1].stored, AHEAD_BYTES):
            yield functools.partial(self.decode, number, load, config, generators[number])

    def decode(
        self, number: int, load: Load, config: DataConfig, generator: np.random.Generator
    ) -> Decoded:
        """Decode steps of a file and make their rows.

        Where damaged files are skipped, it ends at the damage and returns it.
        """
        where = self.files[number].entry.uri
        steps: list[tuple[transform.Ready | None, int]] = []
        try:
            with random_numbers(generator):
                for columns, count in load():
                    ready = None
                    selected, passed = transform.select(columns, self.plan)
                    if passed:
                        ready = transform.make_ready(selected, passed, config, self.plan, where)
                    steps.append((ready, count))
        except DamagedFile as error:
            if not self.skip_bad_files:
                raise
            return Decoded(number, steps, error)
        except InputError as error:
            if where in str(error):
                raise
            raise InputError(f"{error} (in {where})") from error
        return Decoded(number, steps, None)

    @functools.cached_property
    def made_bytes(self) -> int:
        """Bytes of a jet's input variables, at their full length."""
        return sum(4 * math.prod(shape[1:]) for shape in self.config.input_shapes.values())

    def bytes_of_step(self, file: DataFile) -> int:
        """Bytes to read at a time: fewer where many more variables are made than are read.

        Otherwise memory would grow with the data config.
        """
        share = MOST_MADE * file.bytes_per_entry / max(self.made_bytes, 1)
        return max(int(self.step_bytes * min(share, 1)), 1)

    def loads(
        self, file: DataFile, plan: Plan, start: int, stop: int, readers: Readers
    ) -> Iterator[Load]:
        """The steps of the file's entries start:stop.

        Damage that shows while they are listed is one of them.
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
        """The columns of the file's first entries, step by step.

        Where the file turns out to be damaged, and such files are skipped, it ends there.
        """

        def list_steps(load: Load) -> list[Step]:
            return list(load())  # a list, so that the thread decodes and not the loop below

        def jobs(readers: Readers) -> Iterator[Callable[[], list[Step]]]:
            loads = self.loads(file, plan, 0, stop, readers)
            for load in lookahead(loads, lambda load: load.stored, AHEAD_BYTES):
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
        """Say how many jets there are, and what was wrong with the others."""
        self.report(
            f"{self.role} data: {contents['num_jets']:,} of {self.num_read:,} jets pass the"
            " selection"
        )
        report_skipped(self.skipped, self.report)
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
            treated = TREATED[policy] if is_input or policy == "drop" else "kept as they are"
            self.report(
                f"warning: '{name}' holds {nan:,} NaN and {infinite:,} infinite values ({treated})"
            )

    def report_weights(self, path: Path) -> None:
        """Say what the weights in a file do in training."""
        weights = np.load(path, mmap_mode="r")
        if self.config.weight_use == "loss":
            self.report(
                "weights multiply the loss of the jets; their mean is"
                f" {weights.mean(dtype=np.float64):.4g}"
            )
            return
        size = Sampler(weights).size
        if self.role == "training":
            self.report(f"an epoch draws {size:,} of {len(weights):,} jets by their weights")
        above = np.count_nonzero(weights > 1) / len(weights)
        if above:
            self.report(
                f"warning: {above:.1%} of the weights are above 1, where sampling cuts them; see"
                " 'use_as: loss' of weights"
            )

    def nothing_left(self, dropped: int) -> InputError:
        """The error where no jet is left; dropped: selected jets that were left out."""
        selection = self.plan.selection
        if dropped or selection is None:
            return InputError(
                f"all {dropped:,} selected jets hold NaN or infinite values (non_finite: drop);"
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
        """Make the histograms of all jets, and each jet's weight of them.

        The columns that they are made of are removed; returns the config with the histograms.
        """
        reweighting = config.reweighting
        if reweighting is None:
            return config
        chunks = _Chunks(folder, columns, reweighting)
        try:
            hists, used, jets = make_histograms(chunks, reweighting)
        except InputError as error:
            raise InputError(f"{config.source}: {error}") from None
        if used != jets:
            self.report(
                f"warning: {used:,} of {jets:,} jets are in the histograms of the weights; see"
                " reweight_classes and reweight_vars"
            )
        writer = NpyWriter(folder / f"{WEIGHT}.npy")
        for chunk in chunks:
            writer.append(jet_weights(chunk, reweighting, hists))
        columns[WEIGHT] = writer.close()
        for path in chunks.paths.values():
            path.unlink()
        return dataclasses.replace(config, reweight_hists=hists)


class _Chunks:
    """The columns of a reweighting in chunks of jets, as often as they are iterated over.

    They leave `columns`, because the prepared data will not have them.
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


def report_skipped(skipped: Iterable[Skipped], report: Report) -> None:
    """Say what was left out of damaged files, and why."""
    for one in skipped:
        about = "" if one.exact else "a file is left out, about "
        # the remedy is what has been done
        reason = one.reason
        for remedy in (REMEDY, TREE_REMEDY):
            reason = reason.removesuffix(f"; {remedy}")
        report(f"warning: {about}{one.jets:,} jets are lost: {reason}")


def _raise(error: Exception) -> NoReturn:
    raise error
