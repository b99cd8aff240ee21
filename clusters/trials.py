"""Read Katib's Experiment and Trial objects: statuses, observations, the optimum, progress.

The answers are the dataclasses of clusters.protocol.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from clusters import katib
from clusters.protocol import Manifest
from clusters.reasons import condition, is_true, name_of, reason_of, short
from common.records import Observation, Trial, TrialStatus

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

UNFINISHED: tuple[TrialStatus, ...] = ("Running", "Pending")
# what Katib counts against maxFailedTrialCount
FAILED: tuple[TrialStatus, ...] = ("Failed", "MetricsUnavailable")
WORDS: dict[TrialStatus, str] = {
    "Running": "running",
    "Pending": "pending",
    "Failed": "failed",
    "EarlyStopped": "stopped early",
    "Killed": "killed",
    "MetricsUnavailable": "without metrics",
}


def status_of(trial: Manifest) -> TrialStatus:
    """The status of a Katib Trial by its conditions."""
    for status in STATUSES:
        if is_true(trial, status):
            return status
    # before Katib 0.14 missing metrics were "Succeeded: False"
    if "MetricsUnavailable" in reason_of(trial, "Succeeded"):
        return "MetricsUnavailable"
    return "Pending"


def trial_of(trial: Manifest, pod_reason: str = "") -> Trial:
    """The protocol's Trial of a Katib Trial.

    `pod_reason` is what its pods gave as the reason, in place of Katib's general words.
    """
    spec = trial["spec"]
    state = trial.get("status", {})
    metrics = observations((state.get("observation") or {}).get("metrics") or [])
    assignments = spec.get("parameterAssignments") or []
    return Trial(
        name=name_of(trial),
        status=status_of(trial),
        metrics=metrics,
        parameters={entry["name"]: str(entry["value"]) for entry in assignments},
        reason=_reason(trial, metrics, pod_reason),
        started=state.get("startTime") or "",
        finished=state.get("completionTime") or "",
    )


def _reason(trial: Manifest, metrics: dict[str, Observation], pod_reason: str) -> str:
    """Why a trial did not succeed; empty if it did, or has not ended."""
    status = status_of(trial)
    objective = trial["spec"]["objective"]["objectiveMetricName"]
    if status in UNFINISHED:
        return ""
    if status == "Succeeded":
        return "" if objective in metrics else f"{objective} is not a finite number"
    if status == "MetricsUnavailable":
        return f"no value of {objective} in its metrics"
    message: str = (condition(trial, status) or {}).get("message", "")
    message = message.removeprefix("Trial has failed").lstrip(". ").removeprefix("Job message: ")
    return pod_reason or short(message) or status


def observations(metrics: Sequence[Manifest]) -> dict[str, Observation]:
    """The numbers of metrics as Katib keeps them (min, max and latest as text).

    A metric with a value that is not finite is left out.

    Katib writes `unavailable` for what it did not find and the empty string for what it could not
    read (`loss=nan`).
    """
    observed = {}
    for metric in metrics:
        values = {key: _number(metric.get(key)) for key in ("min", "max", "latest")}
        if all(math.isfinite(value) for value in values.values()):
            observed[metric["name"]] = Observation(**values)
    return observed


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def objective_value(experiment: Manifest, trial: Trial) -> float | None:
    """The number that an experiment's objective takes from a trial.

    None if the trial does not count.
    """
    if not trial.counts:
        return None
    return katib.objective_value(experiment, trial.metrics)


def best_trial(experiment: Manifest, trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best objective, the first of equals; None if none counts."""
    sign = 1 if experiment["spec"]["objective"]["type"] == "minimize" else -1
    best = None
    lowest = math.inf
    for trial in trials:
        value = objective_value(experiment, trial)
        if value is not None and sign * value < lowest:
            best = trial
            lowest = sign * value
    return best


def optimal_trial(experiment: Manifest, trials: Sequence[Trial]) -> Trial | None:
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


def progress_line(experiment: Manifest, trials: Sequence[Trial], waiting: int = 0) -> str:
    """As '12/30 trials, 3 running, 1 failed, best AvgLoss 0.0881 by NAME'.

    `waiting` of the running trials have no running pod yet.
    """
    spec = experiment["spec"]
    counts = collections.Counter(trial.status for trial in trials)
    # Katib calls a trial running as soon as its job exists. For the user it is pending until a pod
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
