"""Katib's Experiment and Trial objects in the words of the protocol: statuses, observations, the
optimum, one line of progress.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from clusters import katib
from clusters.protocol import Observation, Trial, TrialStatus
from clusters.reasons import condition, is_true, short

# Katib's own order of precedence: a trial that was killed may carry the condition of what it was
# before.
STATUSES: tuple[TrialStatus, ...] = (
    "Killed",
    "Failed",
    "Succeeded",
    "EarlyStopped",
    "MetricsUnavailable",
    "Running",
)
COUNTED: tuple[TrialStatus, ...] = ("Succeeded", "EarlyStopped")  # trials whose objective counts
UNFINISHED: tuple[TrialStatus, ...] = ("Running", "Pending")
# what Katib counts against maxFailedTrialCount
FAILED: tuple[TrialStatus, ...] = ("Failed", "MetricsUnavailable")
WORDS = {
    "Running": "running",
    "Pending": "pending",
    "Failed": "failed",
    "EarlyStopped": "stopped early",
    "Killed": "killed",
    "MetricsUnavailable": "without metrics",
}


def status_of(trial: dict) -> TrialStatus:
    """The status of a Katib Trial by its conditions."""
    for status in STATUSES:
        if is_true(trial, status):
            return status
    # before Katib 0.14 missing metrics were "Succeeded: False"
    succeeded = condition(trial, "Succeeded")
    if succeeded and "MetricsUnavailable" in succeeded.get("reason", ""):
        return "MetricsUnavailable"
    return "Pending"


def trial_of(trial: dict, reason: str = "") -> Trial:
    """A Katib Trial as the protocol's;

    `reason` is what its pods told, in place of Katib's general words.
    """
    status, spec, state = status_of(trial), trial["spec"], trial.get("status", {})
    metrics = observations((state.get("observation") or {}).get("metrics") or [])
    return Trial(
        name=trial["metadata"]["name"],
        status=status,
        metrics=metrics,
        parameters={
            one["name"]: str(one["value"]) for one in spec.get("parameterAssignments") or []
        },
        reason=_reason(trial, status, spec["objective"]["objectiveMetricName"], metrics, reason),
        started=state.get("startTime") or "",
        finished=state.get("completionTime") or "",
    )


def _reason(
    trial: dict, status: TrialStatus, objective: str, metrics: dict[str, Observation], told: str
) -> str:
    if status in UNFINISHED:
        return ""
    if status == "Succeeded":
        return "" if objective in metrics else f"{objective} is not a finite number"
    if status == "MetricsUnavailable":
        return f"no value of {objective} in its metrics"
    said = (condition(trial, status) or {}).get("message", "")
    return (
        told
        or short(said.removeprefix("Trial has failed").lstrip(". ").removeprefix("Job message: "))
        or status
    )


def observations(metrics: Sequence[dict]) -> dict[str, Observation]:
    """Metrics as Katib keeps them (min, max, latest as text) -> numbers; one with a value that is
    not finite is left out.

    Katib writes `unavailable` for what it did not find and the empty string for what it could not
    read (`loss=nan`).
    """
    found = {}
    for metric in metrics:
        values = {key: _number(metric.get(key)) for key in ("min", "max", "latest")}
        if all(math.isfinite(value) for value in values.values()):
            found[metric["name"]] = Observation(**values)
    return found


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def objective_value(experiment: dict, trial: Trial) -> float | None:
    """The number that an experiment's objective takes from a trial;

    None if the trial does not count.
    """
    return katib.objective_value(experiment, trial.metrics) if trial.status in COUNTED else None


def best_trial(experiment: dict, trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best objective, the first of equals; None if none counts."""
    sign = 1 if experiment["spec"]["objective"]["type"] == "minimize" else -1
    values = [
        (sign * value, trial)
        for trial in trials
        if (value := objective_value(experiment, trial)) is not None
    ]
    return min(values, key=lambda pair: pair[0], default=(0, None))[1]


def optimal_trial(experiment: dict, trials: Sequence[Trial]) -> Trial | None:
    """Katib's optimal trial if it counts, else the best that does.

    Katib calls a trial optimal whose objective is not a number (an empty value compares with
    nothing), so its word is checked.
    """
    named = (experiment.get("status", {}).get("currentOptimalTrial") or {}).get("bestTrialName")
    for trial in trials:
        if trial.name == named and objective_value(experiment, trial) is not None:
            return trial
    return best_trial(experiment, trials)


def common_reasons(trials: Sequence[Trial], count: int = 3) -> list[str]:
    """The most common reasons why trials did not succeed, as lines '5 x reason'."""
    reasons = collections.Counter(trial.reason for trial in trials if trial.reason)
    return [f"{times} x {reason}" for reason, times in reasons.most_common(count)]


def progress_line(experiment: dict, trials: Sequence[Trial], waiting: int = 0) -> str:
    """'12/30 trials, 3 running, 1 failed, best AvgLoss 0.0881 by NAME';

    `waiting` of the running have no running pod yet.
    """
    spec, counts = experiment["spec"], collections.Counter(trial.status for trial in trials)
    # Katib calls a trial running as soon as its job exists; for the user it is pending until a pod
    # runs.
    counts["Running"] -= waiting
    counts["Pending"] += waiting
    done = sum(trial.status not in UNFINISHED for trial in trials)
    of = f"/{spec['maxTrialCount']}" if spec.get("maxTrialCount") else ""
    parts = [
        f"{done}{of} trials",
        *(f"{counts[status]} {word}" for status, word in WORDS.items() if counts[status] > 0),
    ]
    if best := best_trial(experiment, trials):
        parts.append(
            f"best {spec['objective']['objectiveMetricName']}"
            f" {objective_value(experiment, best):.4g} by {best.name}"
        )
    return ", ".join(parts)
