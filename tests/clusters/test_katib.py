"""Katib's rules, restated: reading metrics, substituting parameters, refusing experiments."""

import copy

import pytest

from clusters import katib
from common.errors import InputError
from common.records import Observation

EXPERIMENT = {
    "metadata": {"name": "exp", "labels": {"jec/run-id": "exp"}},
    "spec": {
        "objective": {"type": "minimize", "objectiveMetricName": "AvgLoss"},
        "algorithm": {"algorithmName": "random"},
        "parallelTrialCount": 1,
        "maxTrialCount": 2,
        "parameters": [
            {
                "name": "start-lr",
                "parameterType": "double",
                "feasibleSpace": {"min": "0.1", "max": "1"},
            }
        ],
        "trialTemplate": {
            "primaryContainerName": "pytorch",
            "trialParameters": [
                {"name": "startLr", "reference": "start-lr"},
                {"name": "trialName", "reference": "${trialSpec.Name}"},
            ],
            "trialSpec": {
                "kind": "PyTorchJob",
                "spec": {
                    "args": ["--lr=${trialParameters.startLr}/${trialParameters.trialName}"],
                    "n": 1,
                },
            },
        },
    },
}


def lines(*values, name="AvgLoss"):
    return "".join(f"2026-01-01T00:00:0{i}Z {name}={value}\n" for i, value in enumerate(values))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (lines("0.5", "0.25", "0.3"), Observation(min=0.25, max=0.5, latest=0.3)),
        (lines("1e-3", "2.5E-4"), Observation(min=2.5e-4, max=1e-3, latest=2.5e-4)),
        (lines("nan", "0.5"), Observation(min=0.5, max=0.5, latest=0.5)),
        (lines("-0.5"), Observation(min=-0.5, max=-0.5, latest=-0.5)),
        (lines("nan", "inf"), None),
        (lines("0.5", "nan"), None),
        (lines("0.5", name="Other"), None),
        ("no time and no metric\n", None),
        ("", None),
    ],
)
def test_observations(text, expected):
    assert katib.observations(text, ["AvgLoss"]).get("AvgLoss") == expected


def test_substitution_fills_every_reference_and_keeps_numbers():
    trial = katib.substitute(EXPERIMENT, {"start-lr": "0.5"}, "exp-001")
    assert trial["spec"] == {"args": ["--lr=0.5/exp-001"], "n": 1}
    assert trial["metadata"] == {"name": "exp-001", "labels": {"jec/run-id": "exp"}}
    assert "${" in EXPERIMENT["spec"]["trialTemplate"]["trialSpec"]["spec"]["args"][0], (
        "the template itself stays as it is"
    )


def test_the_objective_follows_its_strategy():
    metrics = {"AvgLoss": Observation(min=1, max=3, latest=2)}
    assert katib.objective_value(EXPERIMENT, metrics) == 1
    other = copy.deepcopy(EXPERIMENT)
    other["spec"]["objective"]["metricStrategies"] = [{"name": "AvgLoss", "value": "latest"}]
    assert katib.objective_value(other, metrics) == 2
    other["spec"]["objective"] = {"type": "maximize", "objectiveMetricName": "AvgLoss"}
    assert katib.objective_value(other, metrics) == 3
    assert katib.objective_value(other, {}) is None


def test_a_good_experiment_passes():
    katib.check_experiment(EXPERIMENT)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: e["metadata"].update(name="x" * 41), "41 characters"),
        (lambda e: e["spec"]["objective"].update(type="minimise"), "did you mean 'minimize'"),
        (lambda e: e["spec"]["algorithm"].update(algorithmName="rondom"), "did you mean 'random'"),
        (lambda e: e["spec"].update(parallelTrialCount=3), "more than maxTrialCount 2"),
        (
            lambda e: e["spec"].update(maxFailedTrialCount=3),
            "maxFailedTrialCount: 3 is more than maxTrialCount 2",
        ),
        (
            lambda e: e["spec"]["trialTemplate"].pop("primaryContainerName"),
            "primaryContainerName is missing",
        ),
        (
            lambda e: e["spec"]["trialTemplate"]["trialSpec"].update(metadata={"name": "mine"}),
            "Katib names the trials",
        ),
        (
            lambda e: e["spec"]["trialTemplate"]["trialParameters"][0].update(reference="start_lr"),
            "did you mean 'start-lr'",
        ),
        (lambda e: e["spec"]["trialTemplate"]["trialParameters"].pop(0), "no trial receives it"),
        (
            lambda e: e["spec"]["trialTemplate"]["trialSpec"]["spec"].update(
                more="${trialParameters.startLR}"
            ),
            "did you mean 'startLr'",
        ),
    ],
)
def test_experiments_that_katibs_webhook_refuses_are_refused(change, expected):
    experiment = copy.deepcopy(EXPERIMENT)
    change(experiment)
    with pytest.raises(InputError, match=expected):
        katib.check_experiment(experiment)
