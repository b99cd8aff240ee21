"""--start-at STEP: decide which steps of a job keep their results, and which repeat their work.

The command writes start_at.json into the run's folder before it starts the job; prepare adds the
job's id, and the steps of that job read it. So it applies to one job only, not to a later
`--resume` or a clone in Kubeflow's UI.
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


def request(run: Run, name: str) -> None:
    """Request that the next job of a run starts at step `name`.

    Raises InputError if results of the earlier steps are missing.
    """
    check(run, name)
    StartRecord(step=name).save(run.folder.start)


def forget(run: Run) -> None:
    """Remove the request of an earlier command, if any."""
    # if the storage cannot be reached from here, no request was written from here either
    with contextlib.suppress(JecError):
        if storage.exists(run.folder.start):
            storage.delete(run.folder.start)


def check(run: Run, name: str) -> None:
    """Check that the results of all steps before `name` exist and belong to the best trial.

    Raises InputError otherwise.
    """
    folder = run.folder
    search = SearchRecord.find(folder.search)
    trial = search.optimal if search else ""
    results = {
        "search": [folder.search, folder.weights(trial)] if search else [folder.search],
        "export": [folder.export, folder.onnx(run.model_name)],
        "evaluate": [folder.metrics, folder.report],
    }
    for step_name, places in results.items():
        if step_name == name:
            break
        for place in places:
            if not storage.exists(place):
                raise InputError(
                    f"--start-at {name}: run {run.id} has no {place} of step {step_name}; leave"
                    " --start-at out, so that --resume runs the missing steps"
                )
    for step_name, of_trial in (
        ("export", exported_trial(folder)),
        ("evaluate", evaluated_trial(folder)),
    ):
        if NAMES.index(step_name) < NAMES.index(name) and of_trial != trial:
            raise InputError(
                f"--start-at {name}: step {step_name} of run {run.id} was done for trial"
                f" {of_trial or 'unknown'},"
                f" and the best one is {trial}; give --start-at export"
            )


def claim(run: Run, job_id: str) -> None:
    """Assign the request in start_at.json to this job; remove the request of an earlier job."""
    record = StartRecord.find(run.folder.start)
    if record is None or (job_id and record.job_id == job_id):
        return
    if record.job_id or not job_id:
        storage.delete(run.folder.start)
        return
    dataclasses.replace(record, job_id=job_id).save(run.folder.start)
    step.say(f"starts at step {record.step}: the results of the earlier steps are kept")


def keeps(run: Run, name: str, trial: str, job_id: str) -> bool:
    """Return whether step `name` of this job keeps its results, which must be of this trial."""
    start = _start(run, job_id)
    if start is None or NAMES.index(name) >= NAMES.index(start):
        return False
    of_trial = exported_trial(run.folder) if name == "export" else evaluated_trial(run.folder)
    if of_trial != trial:
        step.say(f"the results of {name} are of trial {of_trial}, so that it runs again")
        return False
    step.say(f"the results of {name} are kept, because the run starts at step {start}")
    return True


def repeats(run: Run, name: str, job_id: str) -> bool:
    """Return whether this is the first attempt of a step that must repeat its work.

    Such an attempt removes the step's old job from the cluster. Later attempts continue the new
    job.
    """
    start = _start(run, job_id)
    if start is None or NAMES.index(name) < NAMES.index(start):
        return False
    entry = step.read_status(run.uri).steps.get(name)
    return entry is None or entry.job_id != job_id or entry.attempts <= 1


def exported_trial(folder: RunFolder) -> str:
    """Return the trial whose model was exported; empty if none was."""
    record = ExportRecord.find(folder.export)
    return record.trial if record else ""


def evaluated_trial(folder: RunFolder) -> str:
    """Return the trial whose model was measured on the test set; empty if none was."""
    record = MetricsRecord.find(folder.metrics)
    return (record.trial or "") if record else ""


def _start(run: Run, job_id: str) -> str | None:
    """Return the step that this job starts at; None if it runs all steps."""
    record = StartRecord.find(run.folder.start)
    if record is None or not job_id or record.job_id != job_id or record.step not in START_STEPS:
        return None
    return record.step
