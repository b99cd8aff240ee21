"""Find finished and unfinished trials in the storage of a run whose Experiment is gone.

A trial writes its files after each epoch in this order: best.pt, checkpoint.pt, history.json,
options.json, metrics.log (weaver.fit.checkpoint). None of them records that the training has ended.
So a trial counts as finished if its history has the last epoch, by the rule of weaver itself, if
metrics.log, the last file, has a line of each epoch, and if options.json names the best epoch of
that history. All other trials were interrupted and can resume from their checkpoint. A trial that
early stopping ended looks the same as an interrupted one; it is recognised by Katib's rule.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Mapping, Sequence

from clusters import katib
from clusters.early_stopping import StopRule, rule_for
from clusters.protocol import Report
from common import storage
from common.config import NONE
from common.errors import InputError
from common.records import EpochRecord, Trial, TrialOptions, find_history
from common.run import Run
from training.experiment import ADDITIONAL_METRICS, OBJECTIVE, experiment
from training.search_space import Parameter, for_network, load
from weaver.fit.ending import has_ended
from weaver.fit.options import TRAIN_FLAGS, literal

CHECKPOINT = "checkpoint.pt"
FILES = ("best.pt", "history.json", "options.json", "metrics.log")
"""Files of a trial that ended well. A trial that failed has a marker file named `failed`."""


def finished_trials(run: Run, report: Report) -> list[Trial]:
    """Return the trials of a run that trained to their end, in the order of their start.

    Each is as Katib would report it: Succeeded, with its assignments and the observation of its
    metrics file. A trial with unreadable files does not count; `report` gets the reason.
    """
    trials = []
    for name, files in _files_by_trial(run).items():
        if "failed" in files or not files.issuperset(FILES):
            continue
        try:
            trial = finished_trial(run, name)
        except InputError as error:
            report(f"trial {name} does not count, because one of its files cannot be read: {error}")
            continue
        if trial is not None:
            trials.append(trial)
    return sorted(trials, key=lambda trial: (trial.started, trial.name))


def finished_trial(run: Run, name: str) -> Trial | None:
    """Return the trial of this name as `finished_trials` does.

    None if it has not ended or belongs to another search space.

    Raises:
        InputError: If a file does not have its form.
    """
    options = TrialOptions.find(run.folder.options(name)) or TrialOptions()
    history = find_history(run.folder.history(name))
    text = _metrics_text(run, name)
    if not _is_whole(options, history, text):
        return None
    assignments = _assignments(options, _parameters(run))
    metrics = katib.observations(text, [OBJECTIVE, *ADDITIONAL_METRICS])
    if assignments is None or OBJECTIVE not in metrics:
        return None
    return Trial(
        name=name,
        status="Succeeded",
        parameters=assignments,
        metrics=metrics,
        started=_start_of(history),
        finished=history[-1].time,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnfinishedTrial:
    """A trial that started and has neither failed nor trained to its end."""

    name: str
    parameters: dict[str, str]
    """Values as Katib assigned them; empty if they are not known."""
    epochs: int
    """Number of epochs that it has trained."""
    started: str
    obstacle: str
    """Why it cannot or should not resume; empty if it can."""


def unfinished_trials(run: Run, other_trials: Sequence[Trial]) -> list[UnfinishedTrial]:
    """Return the trials with files that are not among `other_trials`, most epochs first.

    Args:
        run: The run.
        other_trials: Trials that count, or have failed.
    """
    names = {trial.name for trial in other_trials}
    rule = _stop_rule(run, other_trials)
    trials = []
    for name, files in _files_by_trial(run).items():
        if "failed" not in files and name not in names:
            trials.append(_unfinished_trial(run, name, files, rule))
    return sorted(trials, key=lambda trial: (-trial.epochs, trial.name))


def _unfinished_trial(
    run: Run, name: str, files: set[str], rule: StopRule | None
) -> UnfinishedTrial:
    parameters: dict[str, str] = {}
    history: list[EpochRecord] = []
    try:
        options = TrialOptions.find(run.folder.options(name)) or TrialOptions()
        history = find_history(run.folder.history(name))
        assignments = _assignments(options, _parameters(run))
        values = katib.values(_metrics_text(run, name), OBJECTIVE)
        if CHECKPOINT not in files:
            obstacle = f"it has no {CHECKPOINT}"
        elif assignments is None:
            obstacle = "its parameters are not of the search space"
        elif rule and rule.stops(values, "minimize"):
            obstacle = f"{run.config.early_stopping} stops it"
        else:
            obstacle, parameters = "", assignments
    except InputError as error:
        obstacle = f"one of its files cannot be read: {error}"
    return UnfinishedTrial(
        name=name,
        parameters=parameters,
        epochs=len(history),
        started=_start_of(history),
        obstacle=obstacle,
    )


def _stop_rule(run: Run, other_trials: Sequence[Trial]) -> StopRule | None:
    """Return the early-stopping rule for a trial that starts now; None without early stopping."""
    if run.config.early_stopping == NONE:
        return None
    losses_of_trials = []
    for trial in other_trials:
        if trial.status == "Succeeded":
            losses_of_trials.append(katib.values(_metrics_text(run, trial.name), OBJECTIVE))
    return rule_for(experiment(run), losses_of_trials)


def _parameters(run: Run) -> list[Parameter]:
    return for_network(load(run.config.search_space), run.config.network_config)


def _metrics_text(run: Run, name: str) -> str:
    """Return the content of the metrics.log of a trial; empty where it is missing."""
    place = storage.join(run.folder.trial(name), "metrics.log")
    return storage.read_text(place) if storage.exists(place) else ""


def _files_by_trial(run: Run) -> dict[str, set[str]]:
    """Return the names of the files in the folder of each trial, by trial."""
    start = f"{run.folder.trials}/"
    files: dict[str, set[str]] = {}
    for entry in storage.entries(run.folder.trials):
        trial, slash, file = entry.uri.removeprefix(start).partition("/")
        if slash:
            files.setdefault(trial, set()).add(file)
    return files


def _is_whole(options: TrialOptions, history: Sequence[EpochRecord], text: str) -> bool:
    """Return whether the training has ended and all its files have been written since.

    Args:
        options: Content of options.json.
        history: Content of history.json.
        text: Content of metrics.log.
    """
    losses = [math.inf if epoch.val_loss is None else epoch.val_loss for epoch in history]
    settings = options.train_options or {}
    if not losses or "num_epochs" not in settings:
        return False
    best_epoch = losses.index(min(losses))
    is_last_epoch = has_ended(
        settings["num_epochs"], settings.get("patience"), len(losses), best_epoch
    )
    return (
        is_last_epoch
        and options.best_epoch == best_epoch
        and len(katib.values(text, OBJECTIVE)) == len(losses)
    )


def _assignments(options: TrialOptions, parameters: Sequence[Parameter]) -> dict[str, str] | None:
    """Return the text assigned to each parameter; None if a value is not in the search space."""
    network_options = options.network_options or {}
    train_options = options.train_options or {}
    assignments = {}
    for parameter in parameters:
        place = train_options if parameter.flag in TRAIN_FLAGS else network_options
        value = _text(parameter, place.get(parameter.option))
        if value is None:
            return None
        assignments[parameter.name] = value
    return assignments


def _text(parameter: Parameter, value: object) -> str | None:
    """Return the text from which a trial read this value of a parameter.

    None if the search space has no such value. Lists compare equal to tuples, since JSON stores
    (0.16, 0.5) as a list.
    """
    for text in parameter.list:
        if _comparable(literal(text)) == _comparable(value) or text == value:
            return text
    if parameter.min is None or parameter.max is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # The last step may exceed the end of the range by a rounding error.
    margin = 1e-9 * (parameter.max - parameter.min)
    if not parameter.min - margin <= value <= parameter.max + margin:
        return None
    return str(value)


def _comparable(value: object) -> object:
    """Return a value that compares equal after a round trip through JSON, with 1 unlike true."""
    if isinstance(value, Mapping):
        return {str(key): _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return (isinstance(value, bool), value)


def _start_of(history: Sequence[EpochRecord]) -> str:
    """Return when a training started, from its first epoch; empty without times in its history."""
    if not history or not history[0].time:
        return ""
    first = history[0]
    end = datetime.datetime.fromisoformat(first.time)
    start = end - datetime.timedelta(seconds=first.seconds or 0.0)
    return start.isoformat(timespec="seconds")
