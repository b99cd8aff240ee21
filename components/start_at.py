"""--start-at STEP: which steps of a job keep the results that a run has, and which do theirs again.

The command writes start_at.json into the run's folder before it starts the job, prepare notes the
job's id in it, and the steps of that job look at it. So the wish ends with its job: a later
`--resume`, or a clone in Kubeflow's UI, knows nothing of it.
"""

from __future__ import annotations

import contextlib
import dataclasses

from common import storage
from common.choices import START_STEPS
from common.errors import InputError, JecError
from common.layout import RunFolder
from common.records import ExportRecord, MetricsRecord, SearchRecord, StartRecord
from common.run import Run
from components import step
from components.steps import NAMES


def ask(run: Run, name: str) -> None:
    """Let the next job of a run start at a step.

    Raises InputError where the results of the steps before it are not there.
    """
    check(run, name)
    StartRecord(step=name).save(run.folder.start)


def forget(run: Run) -> None:
    """Let the next job of a run go on as it is."""
    # a storage that cannot be reached from here was not asked from here either
    with contextlib.suppress(JecError):
        if storage.exists(run.folder.start):
            storage.delete(run.folder.start)


def check(run: Run, name: str) -> None:
    """Raise InputError where the steps before this one have not left what it and they need."""
    folder = run.folder
    search = SearchRecord.find(folder.search)
    trial = search.optimal if search else ""
    results = {
        "search": [folder.search, folder.weights(trial)] if search else [folder.search],
        "export": [folder.export, folder.onnx(run.model_name)],
        "evaluate": [folder.metrics, folder.report],
    }
    for before, places in results.items():
        if before == name:
            break
        for place in places:
            if not storage.exists(place):
                raise InputError(
                    f"--start-at {name}: step {before} of run {run.id} has left no {place}; leave"
                    " --start-at out, and --resume does what is missing"
                )
    for before, of_trial in (("export", exported_trial(folder)), ("evaluate", measured(folder))):
        if NAMES.index(before) < NAMES.index(name) and of_trial != trial:
            raise InputError(
                f"--start-at {name}: step {before} of run {run.id} was done for trial"
                f" {of_trial or 'unknown'},"
                f" and the best one is {trial}; give --start-at export"
            )


def claim(run: Run, job_id: str) -> None:
    """Note the job whose wish start_at.json is; remove that of an earlier job."""
    record = StartRecord.find(run.folder.start)
    if record is None or (job_id and record.job_id == job_id):
        return
    if record.job_id or not job_id:
        storage.delete(run.folder.start)
        return
    dataclasses.replace(record, job_id=job_id).save(run.folder.start)
    step.say(f"starts at step {record.step}: the results of the steps before it are kept")


def keeps(run: Run, name: str, trial: str, job_id: str) -> bool:
    """Whether step `name` of this job keeps its results, which are there and of this trial."""
    start = _start(run, job_id)
    if start is None or NAMES.index(name) >= NAMES.index(start):
        return False
    of_trial = exported_trial(run.folder) if name == "export" else measured(run.folder)
    if of_trial != trial:
        step.say(f"the results of {name} are of trial {of_trial}: they are made again")
        return False
    step.say(f"{name} is kept as it was: the run starts at step {start}")
    return True


def repeats(run: Run, name: str, job_id: str) -> bool:
    """Whether this is the first attempt of a step that has to do its work again.

    A job on the cluster that has done it before is then removed. A later attempt goes on with the
    one that it finds.
    """
    start = _start(run, job_id)
    if start is None or NAMES.index(name) < NAMES.index(start):
        return False
    entry = step.read_status(run.uri).steps.get(name)
    return entry is None or entry.job_id != job_id or entry.attempts <= 1


def exported_trial(folder: RunFolder) -> str:
    """The trial whose model was exported; empty where none was."""
    record = ExportRecord.find(folder.export)
    return record.trial if record else ""


def measured(folder: RunFolder) -> str:
    """The trial whose model was measured on the test set; empty where none was."""
    record = MetricsRecord.find(folder.metrics)
    return (record.trial or "") if record else ""


def _start(run: Run, job_id: str) -> str | None:
    """The step that this job starts at; None where it does all steps as always."""
    record = StartRecord.find(run.folder.start)
    if record is None or not job_id or record.job_id != job_id or record.step not in START_STEPS:
        return None
    return record.step
