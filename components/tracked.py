"""Log a run to MLflow: its parameters, its trials, its end.

Trials log their epochs themselves, and the evaluation's job logs the models
(evaluating.mlflow_models). A failure of the server after prepare is only a warning.
"""

from __future__ import annotations

from common import storage, tracking
from common.config import RunConfig
from common.layout import RunFolder
from common.records import (
    MetricsRecord,
    SearchRecord,
    SummaryRecord,
    Trial,
    TrialStatus,
    find_history,
)
from common.run import Run
from components import step

GOES_ON = "the run goes on without it"
STATUS: dict[TrialStatus, str] = {
    "Succeeded": "FINISHED",
    "EarlyStopped": "FINISHED",
    "Failed": "FAILED",
    "MetricsUnavailable": "FAILED",
    "Killed": "KILLED",
}
"""How a trial ended -> MLflow's status."""
STATUS_OF_RUN = {
    "succeeded": "FINISHED",
    "not deployed": "FINISHED",
    "failed": "FAILED",
    "interrupted": "KILLED",
}


def connect(config: RunConfig, *, is_resumed: bool) -> tracking.Tracker | None:
    """Return the tracker of a run; None for a run that is not tracked.

    For a new run, raises InputError or UnreachableError if the server cannot be used. A resumed run
    continues without tracking, after a warning.
    """
    if not is_resumed:
        return tracking.of_run(config)
    with tracking.tolerate_failures(step.say, GOES_ON):
        return tracking.of_run(config)
    return None


def begin(tracker: tracking.Tracker | None, run: Run) -> None:
    """Log a run's parameters, the commit of the code, and the fingerprint of its data."""
    if tracker is None:
        return
    parameters = run.config.parameters()
    del parameters["search_space"]  # too long; run.json has it
    record = run.record
    tags = {
        "jec.commit": record.git_commit,
        "jec.data_fingerprint": record.data_fingerprint,
        "jec.folder": run.uri,
        "mlflow.source.git.commit": record.git_commit,
        "mlflow.source.name": "pipeline.py",
        "mlflow.user": run.config.user,
    }
    with tracking.tolerate_failures(step.say, GOES_ON):
        tracker.start(parameters, tags)
        _log_file(tracker, run.folder.run)
        step.say(f"MLflow: experiment {run.config.experiment_name}, run {tracker.parent}")


def log_search(run: Run, search: SearchRecord) -> None:
    """Log each trial's final status, and what an interrupted trial could not log itself."""
    with tracking.tolerate_failures(step.say, GOES_ON):
        tracker = tracking.of_run(run.config)
        if tracker is None:
            return
        for trial in search.trials:
            _log_trial(tracker, run, trial, is_best=trial.name == search.optimal)
        name = search.objective.name
        tracker.log_metrics(tracker.parent, {f"best_{name}": search.best_value})
        tracker.set_tags(tracker.parent, {"jec.best_trial": search.optimal})
        _log_file(tracker, run.folder.search_page)


def _log_trial(tracker: tracking.Tracker, run: Run, trial: Trial, *, is_best: bool) -> None:
    mlflow_run = tracker.trial(trial.name)
    tracker.log_parameters(mlflow_run, trial.parameters)
    history = run.folder.history(trial.name)
    find_history(history)  # refuses a file of another form
    tracker.log_epochs(mlflow_run, storage.find_json(history, []))
    tags = {
        tracking.STATUS: trial.status,
        "jec.best": str(is_best).lower(),
        "jec.commit": run.record.git_commit,
        "jec.data_fingerprint": run.record.data_fingerprint,
    }
    if trial.reason:
        tags["jec.reason"] = trial.reason[: tracking.LONGEST_TAG]
    tracker.set_tags(mlflow_run, tags)
    if trial.status in STATUS:
        tracker.set_status(mlflow_run, STATUS[trial.status])


def end(uri: str, summary: SummaryRecord) -> None:
    """Log a run's final state, report and metrics."""
    folder = RunFolder(uri)
    with tracking.tolerate_failures(step.say, GOES_ON):
        if summary.state not in STATUS_OF_RUN or not storage.exists(folder.run):
            return
        tracker = tracking.of_run(Run.load(uri).config)
        if tracker is None:
            return
        tags = {"jec.state": summary.state, "jec.reason": summary.reason[: tracking.LONGEST_TAG]}
        metrics = MetricsRecord.find(folder.metrics) if summary.gate is not None else None
        if metrics is not None:
            tags |= tracking.verdict(passed=metrics.passed, reasons=metrics.reasons)
            tracker.log_metrics(tracker.parent, metrics.headline)
            _log_file(tracker, folder.report)
        if summary.service:
            tags["jec.service"] = summary.service
        tracker.set_tags(tracker.parent, tags)
        tracker.set_status(tracker.parent, STATUS_OF_RUN[summary.state])


def _log_file(tracker: tracking.Tracker, uri: str) -> None:
    """Log a text file of the run's folder as an artifact of its MLflow run, if it exists."""
    if storage.exists(uri):
        text = storage.read_text(uri)
        tracker.client.log_text(tracker.parent, text, storage.name(uri))
