"""The trials that a run's storage holds whole, for a search whose Experiment is gone.

A trial writes its files after each epoch in this order: best.pt, checkpoint.pt, history.json,
options.json, metrics.log (weaver.fit.checkpoint). None of them says that the training has ended.
So a trial counts as finished if its history has the last epoch, by the rule of weaver itself, if
metrics.log, the last file, has a line of each epoch, and if options.json names the best epoch of
that history. Everything else was stopped on the way, and can go on from its checkpoint. A trial
that early stopping ended looks the same. It is known by Katib's rule.
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
"""What a trial that has ended well leaves; `failed` is the marker of one that did not."""


def finished_trials(run: Run, report: Report) -> list[Trial]:
    """The trials of a run that trained to their end, in the order in which they started.

    Each is as Katib would give it: Succeeded, with its assignments and the observation of its
    metrics file. Files that cannot be read are reported, and their trial does not count.
    """
    trials = []
    for name, files in _files_by_trial(run).items():
        if "failed" in files or not files.issuperset(FILES):
            continue
        try:
            trial = find_finished(run, name)
        except InputError as error:
            report(f"trial {name} does not count, because a file of it cannot be read: {error}")
            continue
        if trial is not None:
            trials.append(trial)
    return sorted(trials, key=lambda trial: (trial.started, trial.name))


def find_finished(run: Run, name: str) -> Trial | None:
    """The trial of that name as `finished_trials` gives it; None if it has not ended.

    Also None if it is of another search space. Raises InputError where a file is not of its form.
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
        started=_started(history),
        finished=history[-1].time,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnfinishedTrial:
    """A trial that began and has neither failed nor trained to its end."""

    name: str
    parameters: dict[str, str]
    """As Katib gave them; empty if they are not known."""
    epochs: int
    """How many it has trained."""
    started: str
    obstacle: str
    """Why it cannot or should not go on; empty if it can."""


def unfinished_trials(run: Run, known: Sequence[Trial]) -> list[UnfinishedTrial]:
    """The trials that have left files and are not known, those with the most epochs first.

    known: the trials that count, or have failed.
    """
    names = {trial.name for trial in known}
    rule = _stop_rule(run, known)
    trials = []
    for name, files in _files_by_trial(run).items():
        if "failed" not in files and name not in names:
            trials.append(_unfinished(run, name, files, rule))
    return sorted(trials, key=lambda trial: (-trial.epochs, trial.name))


def _unfinished(run: Run, name: str, files: set[str], rule: StopRule | None) -> UnfinishedTrial:
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
        obstacle = f"a file of it cannot be read: {error}"
    return UnfinishedTrial(
        name=name,
        parameters=parameters,
        epochs=len(history),
        started=_started(history),
        obstacle=obstacle,
    )


def _stop_rule(run: Run, known: Sequence[Trial]) -> StopRule | None:
    """The rule of early stopping for a trial that is made now; None without early stopping."""
    if run.config.early_stopping == NONE:
        return None
    succeeded = []
    for trial in known:
        if trial.status == "Succeeded":
            succeeded.append(katib.values(_metrics_text(run, trial.name), OBJECTIVE))
    return rule_for(experiment(run), succeeded)


def _parameters(run: Run) -> list[Parameter]:
    return for_network(load(run.config.search_space), run.config.network_config)


def _metrics_text(run: Run, name: str) -> str:
    """The content of a trial's metrics.log; empty where it is missing."""
    place = storage.join(run.folder.trial(name), "metrics.log")
    return storage.read_text(place) if storage.exists(place) else ""


def _files_by_trial(run: Run) -> dict[str, set[str]]:
    """Name of each trial that has a folder -> names of the files there."""
    start = f"{run.folder.trials}/"
    files: dict[str, set[str]] = {}
    for entry in storage.entries(run.folder.trials):
        trial, slash, file = entry.uri.removeprefix(start).partition("/")
        if slash:
            files.setdefault(trial, set()).add(file)
    return files


def _is_whole(options: TrialOptions, history: Sequence[EpochRecord], text: str) -> bool:
    """Whether the training has ended, and all of its files have been written since.

    text: content of metrics.log.
    """
    losses = [math.inf if epoch.val_loss is None else epoch.val_loss for epoch in history]
    settings = options.train_options or {}
    if not losses or "num_epochs" not in settings:
        return False
    best_epoch = losses.index(min(losses))
    ended = has_ended(settings["num_epochs"], settings.get("patience"), len(losses), best_epoch)
    return (
        ended
        and options.best_epoch == best_epoch
        and len(katib.values(text, OBJECTIVE)) == len(losses)
    )


def _assignments(options: TrialOptions, parameters: Sequence[Parameter]) -> dict[str, str] | None:
    """Parameter -> the text that was substituted; None if a value is not in the search space."""
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
    """The text of a parameter's value as a trial read it; None if the space has no such value.

    A list has the text itself: (0.16, 0.5) was read as a tuple, and JSON made a list of it.
    """
    for text in parameter.list:
        if _comparable(literal(text)) == _comparable(value) or text == value:
            return text
    if parameter.min is None or parameter.max is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A step may miss an end of the range by a rounding error.
    margin = 1e-9 * (parameter.max - parameter.min)
    if not parameter.min - margin <= value <= parameter.max + margin:
        return None
    return str(value)


def _comparable(value: object) -> object:
    """A value such that it equals the one that went through JSON, and that 1 is not true."""
    if isinstance(value, Mapping):
        return {str(key): _comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return (isinstance(value, bool), value)


def _started(history: Sequence[EpochRecord]) -> str:
    """When a training began, by its first epoch; empty where its history has no times."""
    if not history or not history[0].time:
        return ""
    first = history[0]
    ended = datetime.datetime.fromisoformat(first.time)
    began = ended - datetime.timedelta(seconds=first.seconds or 0.0)
    return began.isoformat(timespec="seconds")
