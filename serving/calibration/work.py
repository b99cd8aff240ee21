"""Calibrate files: decode, ask the model, and write, at the same time.

One thread decodes ahead, as many as there are cores ask the model for the steps of files, and the
caller's thread writes what they answered, in the order of the files. What is held in memory is a
few steps.
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

# steps that wait for a thread or to be written: the end of a file takes as long as some steps
WAITING = 6
SCRATCH = "jec-calibrate-"
"""Prefix of folders for outputs that are not complete."""
FILE_END = Load(list)  # comes behind the parts of each file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A file to calibrate, and where its output goes."""

    source: Source
    output: str
    forced: tuple[str, ...] = ()
    """What spoke against it."""


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """Part of a file: its columns, or what went wrong; neither at the file's end."""

    number: int
    steps: Sequence[tuple[Columns, int]] = ()
    error: JecError | None = None
    is_end: bool = False


@dataclasses.dataclass(frozen=True)
class _Answered:
    """A step with the model's answers by their columns; or an error; or a file's end."""

    step: Step | None = None
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    invalid: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    error: JecError | None = None
    is_end: bool = False


def calibrate(
    tasks: Sequence[Task], model: Model, threads: int, check: Callable[[], None]
) -> tuple[list[FileInfo], list[JecError]]:
    """Write the outputs of all tasks.

    threads: that ask the model at a time. check: is called before an output is put in place, and
    may raise. Returns what the outputs say of themselves, and the errors of files that failed,
    which have no output. Raises StorageError or InputError where an output cannot be written, what
    a served model raises, and what `check` does.
    """
    done: list[FileInfo] = []
    failures: list[JecError] = []
    total = sum(task.source.file.num_entries for task in tasks)
    of_jets = all(task.source.form == NTUPLE for task in tasks)
    jets = 0
    started = time.monotonic()

    def advance(step: Step, name: str) -> None:
        """Show a step of a file. Where entries are events, the jets a second stand behind."""
        nonlocal jets
        jets += step.jets
        rate = jets / max(time.monotonic() - started, 1e-9)
        progress.advance(step.entries, note=name if of_jets else f"{rate:,.0f} jets/s  {name}")

    with (
        Progress("calibrating", total=total, unit="jets" if of_jets else "events") as progress,
        scratch.folder(SCRATCH) as folder,
        Readers() as readers,
        contextlib.closing(in_threads(_decoding(tasks, readers), 1)) as decoded,
        contextlib.closing(
            in_threads(_answering(tasks, model, decoded), threads, more=WAITING)
        ) as answered,
    ):
        results = iter(answered)
        for number, task in enumerate(tasks):
            path = folder / f"{number}{Path(task.output).suffix}"
            of_file = itertools.takewhile(lambda one: not one.is_end, results)
            result = _write(task, model, path, of_file, advance)
            if isinstance(result, JecError):
                failures.append(result)
            else:
                check()
                storage.upload(path, task.output)
                done.append(result)
            path.unlink(missing_ok=True)
    return done, failures


def _write(
    task: Task,
    model: Model,
    path: Path,
    results: Iterable[_Answered],
    advance: Callable[[Step, str], None],
) -> FileInfo | JecError:
    """Write the output of one file to a path on this machine.

    Returns the first error where there is one; all results are taken in either case.
    """
    source, description = task.source, model.description
    entries = jets = valid = 0
    invalid: collections.Counter[str] = collections.Counter()
    name = storage.name(source.file.entry.uri)
    of_valid = outputs.column_names(description, source.form)[VALID]
    with outputs.writing(path, source, outputs.types_of(description, source.form)) as friend:
        error: JecError | None = None
        for answered in results:
            error = error or answered.error
            step = answered.step
            if error is not None or step is None:
                continue
            friend.append(step, answered.columns)
            entries += step.entries
            jets += step.jets
            valid += int(np.count_nonzero(answered.columns[of_valid]))
            invalid += answered.invalid
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


def _decoding(tasks: Sequence[Task], readers: Readers) -> Iterator[Callable[[], _Decoded]]:
    """The decoding of all files, a job for each part, whose bytes are on their way."""

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


def _decode(number: int, load: Load) -> _Decoded:
    try:
        return _Decoded(number, list(load()), is_end=load is FILE_END)
    except (InputError, StorageError) as error:
        return _Decoded(number, error=error)


def _answering(
    tasks: Sequence[Task], model: Model, decoded: Iterable[_Decoded]
) -> Iterator[Callable[[], _Answered]]:
    """The questions to the model, a job for each step."""
    for part in decoded:
        for columns, count in part.steps:
            yield functools.partial(_answer, tasks[part.number].source, model, columns, count)
        if part.error is not None or part.is_end:
            yield functools.partial(_Answered, error=part.error, is_end=part.is_end)


def _answer(source: Source, model: Model, columns: Columns, count: int) -> _Answered:
    """The answers to one step. What a server does wrong is raised: other files would fare alike."""
    try:
        step = source.step(columns, count)
        answers, invalid = batches.answers(model, step.columns, step.jets, source.file.entry.uri)
    except (InputError, StorageError) as error:
        return _Answered(error=error)
    names = outputs.column_names(model.description, source.form)
    named = {column: answers[output] for output, column in names.items()}
    return _Answered(step, named, invalid)
