"""Calibrate files: decode, run the model, and write, in parallel.

One thread decodes ahead, one thread per core runs the model on steps of files, and the calling
thread writes the results in the order of the files. Only a few steps are in memory at a time.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from common import scratch, storage
from common.errors import InputError, JecError, StorageError
from common.progress import Progress
from serving.calibration import batches, outputs
from serving.calibration.model import VALID, Model
from serving.calibration.outputs import FileInfo
from serving.calibration.sources import NTUPLE, Source, Step
from weaver.read.ahead import in_threads, lookahead
from weaver.read.files import Load
from weaver.read.jagged import Columns
from weaver.read.remote import AHEAD_BYTES, Readers

# steps in the queues; finishing a file takes as long as some steps
WAITING = 6
SCRATCH = "jec-calibrate-"
"""Prefix of folders for incomplete outputs."""
FILE_END = Load(list)  # the mark after the parts of each file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A file to calibrate, and the address of its output."""

    source: Source
    output: str
    forced: tuple[str, ...] = ()
    """Why the model does not fit the jets, overruled with --force."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of a file: its columns, or an error; neither at the end of the file."""

    number: int
    steps: Sequence[tuple[Columns, int]] = ()
    error: JecError | None = None
    is_end: bool = False


@dataclasses.dataclass(frozen=True)
class _Result:
    """A step with the outputs of the model by column, or an error, or the end of a file."""

    step: Step | None = None
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    invalid: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    error: JecError | None = None
    is_end: bool = False


def calibrate(
    tasks: Sequence[Task], model: Model, threads: int, check: Callable[[], None]
) -> tuple[list[FileInfo], list[JecError]]:
    """Write the outputs of all tasks.

    Args:
        tasks: The files.
        model: The model.
        threads: Number of threads that run the model.
        check: Called before an output is moved to its place; may raise.

    Returns:
        The records of the outputs, and the errors of files that failed and have no output.

    Raises:
        StorageError: If an output cannot be written.
        InputError: As StorageError.
        ClusterError: From a model on a server, or from `check`.
    """
    infos: list[FileInfo] = []
    failures: list[JecError] = []
    total = sum(task.source.file.num_entries for task in tasks)
    entries_are_jets = all(task.source.form == NTUPLE for task in tasks)
    jets = 0
    start = time.monotonic()

    def advance(step: Step, name: str) -> None:
        """Show the progress of a file; if entries are events, with the jets per second."""
        nonlocal jets
        jets += step.jets
        rate = jets / max(time.monotonic() - start, 1e-9)
        progress.advance(
            step.entries, note=name if entries_are_jets else f"{rate:,.0f} jets/s  {name}"
        )

    with (
        Progress(
            "calibrating", total=total, unit="jets" if entries_are_jets else "events"
        ) as progress,
        scratch.folder(SCRATCH) as folder,
        Readers() as readers,
        contextlib.closing(in_threads(_decode_jobs(tasks, readers), 1)) as parts,
        contextlib.closing(
            in_threads(_answer_jobs(tasks, model, parts), threads, more=WAITING)
        ) as step_results,
    ):
        results = iter(step_results)
        for number, task in enumerate(tasks):
            path = folder / f"{number}{Path(task.output).suffix}"
            of_file = itertools.takewhile(lambda part: not part.is_end, results)
            result = _write(task, model, path, of_file, advance)
            if isinstance(result, JecError):
                failures.append(result)
            else:
                check()
                storage.upload(path, task.output)
                infos.append(result)
            path.unlink(missing_ok=True)
    return infos, failures


def _write(
    task: Task,
    model: Model,
    path: Path,
    results: Iterable[_Result],
    advance: Callable[[Step, str], None],
) -> FileInfo | JecError:
    """Write the output of one file to a path on this machine.

    All results of the file are consumed, also after an error.

    Returns:
        The record of the output, or the first error.
    """
    source, description = task.source, model.description
    entries = jets = valid = 0
    invalid: collections.Counter[str] = collections.Counter()
    name = storage.name(source.file.entry.uri)
    valid_column = outputs.column_names(description, source.form)[VALID]
    with outputs.writing(path, source, outputs.types_of(description, source.form)) as friend:
        error: JecError | None = None
        for result in results:
            error = error or result.error
            step = result.step
            if error is not None or step is None:
                continue
            friend.append(step, result.columns)
            entries += step.entries
            jets += step.jets
            valid += int(np.count_nonzero(result.columns[valid_column]))
            invalid += result.invalid
            advance(step, name)
        if error is not None:
            return error
        info = FileInfo(
            source=source.file.entry.uri,
            source_size=source.file.entry.size,
            source_tag=source.file.entry.tag,
            tree=source.file.tree,
            form=source.form,
            entries=entries,
            jets=jets,
            valid=valid,
            invalid=dict(invalid),
            formula=outputs.formula(description, source.form),
            model=description.name,
            sha256=description.digest,
            run_id=description.run_id,
            forced=list(task.forced),
        )
        friend.finish(info)
    return info


# ---------------------------------------------------------------------------------------- threads


def _decode_jobs(tasks: Sequence[Task], readers: Readers) -> Iterator[Callable[[], _Part]]:
    """Yield the jobs that decode all files, one for each part, whose bytes are read ahead."""

    def parts() -> Iterator[tuple[int, Load]]:
        for number, task in enumerate(tasks):
            try:
                for load in task.source.loads(readers):
                    yield number, load
            except JecError as error:
                yield number, Load(functools.partial(_raise, error))
            yield number, FILE_END

    for number, load in lookahead(parts(), lambda part: part[1].num_bytes, AHEAD_BYTES):
        yield functools.partial(_decode, number, load)


def _raise(error: JecError) -> NoReturn:
    raise error


def _decode(number: int, load: Load) -> _Part:
    try:
        return _Part(number, list(load()), is_end=load is FILE_END)
    except (InputError, StorageError) as error:
        return _Part(number, error=error)


def _answer_jobs(
    tasks: Sequence[Task], model: Model, decoded: Iterable[_Part]
) -> Iterator[Callable[[], _Result]]:
    """Yield the jobs that run the model, one for each step."""
    for part in decoded:
        for columns, count in part.steps:
            yield functools.partial(_answer, tasks[part.number].source, model, columns, count)
        if part.error is not None or part.is_end:
            yield functools.partial(_Result, error=part.error, is_end=part.is_end)


def _answer(source: Source, model: Model, columns: Columns, count: int) -> _Result:
    """Run the model on one step.

    Errors of a server are raised and not returned, because all other files would fail likewise.
    """
    try:
        step = source.step(columns, count)
        answers, invalid = batches.answers(model, step.columns, step.jets, source.file.entry.uri)
    except (InputError, StorageError) as error:
        return _Result(error=error)
    names = outputs.column_names(model.description, source.form)
    answers_by_column = {column: answers[output] for output, column in names.items()}
    return _Result(step, answers_by_column, invalid)
