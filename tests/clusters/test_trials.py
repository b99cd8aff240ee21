"""Katib's objects in the words of the protocol."""

from __future__ import annotations

import pytest

from clusters import trials
from common.records import Observation, Trial


def katib_trial(
    *conditions: tuple[str, str],
    metrics: list[tuple[str, str, str, str]] = (),
    name: str = "x",
    message: str = "",
) -> dict:
    return {
        "metadata": {"name": name},
        "spec": {
            "parameterAssignments": [{"name": "lr", "value": "0.1"}],
            "objective": {"objectiveMetricName": "AvgLoss"},
        },
        "status": {
            "conditions": [
                {"type": kind, "status": value, "message": message, "reason": f"Trial{kind}"}
                for kind, value in conditions
            ],
            "observation": {
                "metrics": [
                    dict(zip(("name", "min", "max", "latest"), values, strict=True))
                    for values in metrics
                ]
            },
            "startTime": "2026-01-01T00:00:00Z",
            "completionTime": None,
        },
    }


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ([("Created", "True")], "Pending"),
        ([("Created", "True"), ("Running", "True")], "Running"),
        ([("Running", "False"), ("Succeeded", "True")], "Succeeded"),
        ([("Running", "False"), ("Failed", "True")], "Failed"),
        ([("Running", "True"), ("EarlyStopped", "True")], "EarlyStopped"),
        ([("Running", "True"), ("Killed", "True"), ("Succeeded", "True")], "Killed"),
        ([("Running", "False"), ("MetricsUnavailable", "True")], "MetricsUnavailable"),
    ],
    ids=str,
)
def test_status(conditions, status):
    assert trials.status_of(katib_trial(*conditions)) == status


def test_status_of_old_katib_without_metrics():
    trial = katib_trial(("Succeeded", "False"))
    trial["status"]["conditions"][0]["reason"] = "TrialMetricsUnavailable"
    assert trials.status_of(trial) == "MetricsUnavailable"


def test_a_trial_that_was_only_just_created_has_no_status_at_all():
    trial = katib_trial()
    del trial["status"]
    assert trials.trial_of(trial) == Trial(
        name="x", status="Pending", parameters={"lr": "0.1"}, metrics={}
    )


def test_observations_leave_out_values_that_are_not_finite():
    observations = trials.observations(
        [
            {"name": "AvgLoss", "min": "0.08", "max": "1.5e-1", "latest": "0.09"},
            {"name": "nan at the end", "min": "0.1", "max": "0.1", "latest": ""},
            {
                "name": "never seen",
                "min": "unavailable",
                "max": "unavailable",
                "latest": "unavailable",
            },
            {"name": "infinite", "min": "-inf", "max": "1", "latest": "1"},
            {"name": "old", "min": None, "max": None, "latest": "1"},
        ]
    )
    assert observations == {"AvgLoss": Observation(min=0.08, max=0.15, latest=0.09)}


@pytest.mark.parametrize(
    ("condition", "message", "pod_reason", "reason"),
    [
        (
            "Failed",
            "Trial has failed. Job message: PyTorchJob x has failed",
            "",
            "PyTorchJob x has failed",
        ),
        ("Failed", "Trial has failed", "", "Failed"),
        ("Failed", "Trial has failed", "exit code 1: no such file", "exit code 1: no such file"),
        ("Killed", "Trial is killed", "", "Trial is killed"),
        ("EarlyStopped", "Trial is early stopped", "", "Trial is early stopped"),
        (
            "MetricsUnavailable",
            "Metrics are not available",
            "",
            "no value of AvgLoss in its metrics",
        ),
        ("Succeeded", "Trial has succeeded", "", "AvgLoss is not a finite number"),
        ("Running", "Trial is running", "", ""),
    ],
)
def test_reason(condition, message, pod_reason, reason):
    trial = katib_trial((condition, "True"), message=message)
    assert trials.trial_of(trial, pod_reason).reason == reason


def trial(name: str, value: float | None, status: str = "Succeeded", reason: str = "") -> Trial:
    metrics = (
        {}
        if value is None
        else {"AvgLoss": Observation(min=value, max=value + 1, latest=value + 0.5)}
    )
    return Trial(name=name, status=status, parameters={}, metrics=metrics, reason=reason)


def experiment(kind: str = "minimize", optimal: str = "", **objective) -> dict:
    spec = {
        "maxTrialCount": 30,
        "objective": {"type": kind, "objectiveMetricName": "AvgLoss", **objective},
    }
    return {"spec": spec, "status": {"currentOptimalTrial": {"bestTrialName": optimal}}}


RESULTS = [
    trial("a", 0.3),
    trial("b", 0.1, "Failed"),
    trial("c", 0.2, "EarlyStopped"),
    trial("d", None),
    trial("e", 0.25),
]


@pytest.mark.parametrize(
    ("optimal", "kind", "name"),
    [
        pytest.param("e", "minimize", "e", id="Katib's word"),
        pytest.param("", "minimize", "c", id="none from Katib"),
        pytest.param("d", "minimize", "c", id="Katib chose one without a number"),
        pytest.param("b", "minimize", "c", id="Katib chose a failed one"),
        pytest.param("gone", "maximize", "a", id="Katib chose one that is gone"),
    ],
)
def test_optimal_trial(optimal, kind, name):
    assert trials.optimal_trial(experiment(kind, optimal), RESULTS).name == name


def test_no_optimal_trial_where_none_counts():
    assert (
        trials.optimal_trial(experiment(optimal="b"), [trial("b", 0.1, "Failed"), trial("d", None)])
        is None
    )


def test_the_objective_may_take_the_latest_value():
    strategies = [{"name": "AvgLoss", "value": "latest"}]
    assert trials.objective_value(experiment(metricStrategies=strategies), trial("a", 0.3)) == 0.8
    assert trials.objective_value(experiment("maximize"), trial("a", 0.3)) == 1.3


def test_progress_line():
    running = [trial("r", None, "Running")] * 3 + [trial("p", None, "Pending")]
    line = trials.progress_line(experiment(), [*RESULTS, *running], waiting=1)
    assert (
        line
        == "5/30 trials, 2 running, 2 pending, 1 failed, 1 stopped early, best AvgLoss 0.2 by c"
    )


def test_common_reasons():
    many = [trial(str(i), None, "Failed", reason) for i, reason in enumerate("aabbbcdddd")]
    assert trials.common_reasons(many) == ["4 x d", "3 x b", "2 x a"]
