"""How reports read the records of a run, and above all the trials of a search (search.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Record: TypeAlias = Mapping[str, Any]
"""The content of metrics.json, search.json and their like, or a part of it."""

COUNTED = ("Succeeded", "EarlyStopped")
"""The statuses of trials whose objective counts, as for Katib."""

STATUS_WORDS = {
    "Succeeded": "succeeded",
    "EarlyStopped": "stopped early",
    "Failed": "failed",
    "MetricsUnavailable": "without metrics",
    "Killed": "killed",
}


def maximises(search: Record) -> bool:
    """Whether the largest value of the objective is the best."""
    return bool(search["objective"]["type"] == "maximize")


def objective_value(trial: Record, search: Record) -> float | None:
    """The objective's value of a trial as the search takes it: the best it ever had.

    None for a trial without any, and for one that failed, as its values do not count.
    """
    observed = trial["metrics"].get(search["objective"]["name"])
    if trial["status"] not in COUNTED or observed is None:
        return None
    return float(observed["max" if maximises(search) else "min"])


def counted(search: Record) -> list[tuple[Record, float]]:
    """The trials that have a value of the objective, each with it, in the order of the search."""
    pairs = [(trial, objective_value(trial, search)) for trial in search["trials"]]
    return [(trial, value) for trial, value in pairs if value is not None]


def best_first(search: Record) -> list[Record]:
    """All trials by their objective, those without a value last."""
    values = sorted(counted(search), key=lambda pair: pair[1], reverse=maximises(search))
    rest = [trial for trial in search["trials"] if objective_value(trial, search) is None]
    return [trial for trial, _ in values] + rest


def optimal_trial(search: Record) -> Record:
    """The trial that the search calls optimal."""
    return next(trial for trial in search["trials"] if trial["name"] == search["optimal"])


def parameter_names(search: Record) -> list[str]:
    """The parameters of all trials, in the order of the search space."""
    return list(dict.fromkeys(name for trial in search["trials"] for name in trial["parameters"]))
