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
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from common import storage
from common.errors import JecError
from common.progress import Progress
from serving.calibration import batches, outputs
from serving.calibration.model import VALID, Model
from serving.calibration.outputs import FileInfo
from serving.calibration.sources import NTUPLE, Source, Step
from weaver.read.ahead import in_threads, lookahead
from weaver.read.files import Load
from weaver.read.jagged import Columns
from weaver.read.remote import AHEAD_BYTES, Readers

SHOWN = 0.5  # seconds, at least, between two notes of the progress bar


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
    """A step with the model's answers by the names of their columns."""

    number: int
    step: Step | None = None
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    invalid: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    error: JecError | None = None
    is_end: bool = False


def calibrate(
    tasks: Sequence[Task], model: Model, threads: int
) -> tuple[list[FileInfo], list[JecError]]:
    """Write the outputs of all tasks. threads: that ask the model at a time.

    Returns what the outputs say of themselves, and the errors of files that failed, which have no
    output. Raises StorageError or InputError where an output cannot be written.
    """
    done: list[FileInfo] = []
    failures: list[JecError] = []
    total = sum(task.source.file.num_entries for task in tasks)
    of_jets = all(task.source.form == NTUPLE for task in tasks)
    with (
        Progress("calibrating", total=total, unit="jets" if of_jets else "entries") as progress,
        tempfile.TemporaryDirectory(prefix="jec-calibrate-") as folder,
        Readers() as readers,
        contextlib.closing(in_threads(_decoding(tasks, readers), 1)) as decoded,
        contextlib.closing(in_threads(_answering(tasks, model, decoded), threads)) as answered,
    ):
        results = iter(answered)
        for number, task in enumerate(tasks):
            path = Path(folder) / f"{number}{Path(task.output).suffix}"
            try:
                info = _write(task, model, path, _of_file(results, number), progress)
            except _FileError as failure:
                failures.append(failure.error)
            else:
                storage.upload(path, task.output)
                done.append(info)
            path.unlink(missing_ok=True)
    return done, failures


class _FileError(Exception):
    """A file that cannot be calibrated further, on its way from `_of_file` to the loop."""

    def __init__(self, error: JecError) -> None:
        super().__init__(str(error))
        self.error = error


def _of_file(results: Iterator[_Answered], number: int) -> Iterator[_Answered]:
    """The answers for one file. Raises _FileError, once all of them came, where one is an error."""
    error: JecError | None = None
    for answered in results:
        assert answered.number == number
        if answered.is_end:
            break
        error = error or answered.error
        if error is None:
            yield answered
    if error is not None:
        raise _FileError(error)


def _write(
    task: Task, model: Model, path: Path, results: Iterable[_Answered], progress: Progress
) -> FileInfo:
    """Write the output of one file to a path on this machine."""
    source, description = task.source, model.description
    entries = jets = valid = 0
    invalid: collections.Counter[str] = collections.Counter()
    name = storage.name(source.file.entry.uri)
    of_valid = outputs.column_names(description, source.form)[VALID]
    with outputs.writing(path, source, outputs.types_of(description, source.form)) as friend:
        for answered in results:
            step = answered.step
            assert step is not None
            friend.append(step, answered.columns)
            entries += step.entries
            jets += step.jets
            valid += int(np.count_nonzero(answered.columns[of_valid]))
            invalid += answered.invalid
            progress.advance(step.entries, note=name)
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

    def parts() -> Iterator[tuple[int, Load | JecError | None]]:
        for number, task in enumerate(tasks):
            try:
                for load in task.source.loads(readers):
                    yield number, load
            except JecError as error:
                yield number, error
            yield number, None  # the end of the file

    def stored(part: tuple[int, Load | JecError | None]) -> int:
        return part[1].stored if isinstance(part[1], Load) else 0

    for number, part in lookahead(parts(), stored, AHEAD_BYTES):
        if isinstance(part, Load):
            yield functools.partial(_decode, number, part)
        else:
            ended = _Decoded(number, error=part, is_end=part is None)
            yield functools.partial(_same, ended)


def _same(decoded: _Decoded) -> _Decoded:
    return decoded


def _decode(number: int, load: Load) -> _Decoded:
    try:
        return _Decoded(number, list(load()))
    except JecError as error:
        return _Decoded(number, error=error)


def _answering(
    tasks: Sequence[Task], model: Model, decoded: Iterable[_Decoded]
) -> Iterator[Callable[[], _Answered]]:
    """The questions to the model, a job for each step."""
    for part in decoded:
        for columns, count in part.steps:
            yield functools.partial(_answer, part.number, tasks, model, columns, count)
        if part.error is not None or part.is_end:
            ended = _Answered(part.number, error=part.error, is_end=part.is_end)
            yield functools.partial(_ended, ended)


def _ended(answered: _Answered) -> _Answered:
    return answered


def _answer(
    number: int, tasks: Sequence[Task], model: Model, columns: Columns, count: int
) -> _Answered:
    source = tasks[number].source
    try:
        step = source.step(columns, count)
        answers, invalid = batches.answers(model, step.columns, step.jets, source.file.entry.uri)
    except JecError as error:
        return _Answered(number, error=error)
    names = outputs.column_names(model.description, source.form)
    named = {column: answers[output] for output, column in names.items()}
    return _Answered(number, step, named, invalid)
