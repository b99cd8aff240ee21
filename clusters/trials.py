"""Read Katib's Experiment and Trial objects: status, observations, optimal trial, progress."""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

from clusters import katib
from clusters.protocol import Manifest
from clusters.reasons import condition, is_true, name_of, reason_of, short
from common.records import Observation, Trial, TrialStatus, finite_number

# Katib's order of precedence: a trial that was killed may still have its earlier condition.
STATUSES: tuple[TrialStatus, ...] = (
    "Killed",
    "Failed",
    "Succeeded",
    "EarlyStopped",
    "MetricsUnavailable",
    "Running",
)

UNFINISHED: tuple[TrialStatus, ...] = ("Running", "Pending")
# statuses that Katib counts against maxFailedTrialCount
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
    """Return the status of a Katib Trial from its conditions."""
    for status in STATUSES:
        if is_true(trial, status):
            return status
    # before Katib 0.14 missing metrics were "Succeeded: False"
    if "MetricsUnavailable" in reason_of(trial, "Succeeded"):
        return "MetricsUnavailable"
    return "Pending"


def trial_of(trial: Manifest, pod_reason: str = "") -> Trial:
    """Convert a Katib Trial to a record.

    `pod_reason` is the reason from its pods, which replaces Katib's general message.
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
    """Return why a trial did not succeed; empty if it did, or has not ended."""
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
    """Return the values of metrics that Katib stores as text (min, max and latest).

    A metric with a value that is not finite is left out. Katib writes `unavailable` for a missing
    value and the empty string for one that it could not parse (`loss=nan`).
    """
    result = {}
    for metric in metrics:
        low, high, latest = [
            finite_number(metric.get(key) or "") for key in ("min", "max", "latest")
        ]
        if low is not None and high is not None and latest is not None:
            result[metric["name"]] = Observation(min=low, max=high, latest=latest)
    return result


def objective_value(experiment: Manifest, trial: Trial) -> float | None:
    """Return the value of a trial for the objective; None if the trial does not count."""
    if not trial.counts:
        return None
    return katib.objective_value(experiment, trial.metrics)


def best_trial(experiment: Manifest, trials: Sequence[Trial]) -> Trial | None:
    """Return the first trial with the best objective; None if none counts."""
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
    """Return Katib's optimal trial if it counts, else the best that does.

    Katib may call a trial optimal whose objective is not a number, because an empty value compares
    with nothing.
    """
    optimal_name = (experiment.get("status", {}).get("currentOptimalTrial") or {}).get(
        "bestTrialName"
    )
    for trial in trials:
        if trial.name == optimal_name and objective_value(experiment, trial) is not None:
            return trial
    return best_trial(experiment, trials)


def common_reasons(trials: Sequence[Trial], count: int = 3) -> list[str]:
    """Return the most common reasons why trials did not succeed, as lines '5 x reason'."""
    reasons = collections.Counter(trial.reason for trial in trials if trial.reason)
    return [f"{times} x {reason}" for reason, times in reasons.most_common(count)]


def progress_line(experiment: Manifest, trials: Sequence[Trial], waiting: int = 0) -> str:
    """Return a line like '12/30 trials, 3 running, 1 failed, best AvgLoss 0.0881 by NAME'.

    `waiting` of the running trials have no running pod yet.
    """
    spec = experiment["spec"]
    counts = collections.Counter(trial.status for trial in trials)
    # Katib calls a trial running as soon as its job exists; for users it is pending until a pod
    # runs.
    counts["Running"] -= waiting
    counts["Pending"] += waiting
    num_ended = sum(trial.status not in UNFINISHED for trial in trials)
    total = f"/{spec['maxTrialCount']}" if spec.get("maxTrialCount") else ""
    parts = [
        f"{num_ended}{total} trials",
        *(f"{counts[status]} {word}" for status, word in WORDS.items() if counts[status] > 0),
    ]
    if best := best_trial(experiment, trials):
        parts.append(
            f"best {spec['objective']['objectiveMetricName']}"
            f" {objective_value(experiment, best):.4g} by {best.name}"
        )
    return ", ".join(parts)
