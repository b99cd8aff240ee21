"""Katib's medianstop: the limit, and when it is held against a trial."""

import pytest

from clusters.early_stopping import StopRule, rule_for, settings
from common.errors import InputError


def manifest(**settings):
    settings_list = [{"name": name, "value": str(value)} for name, value in settings.items()]
    return {
        "spec": {
            "earlyStopping": {"algorithmName": "medianstop", "algorithmSettings": settings_list}
        }
    }


def test_the_limit_is_the_mean_of_the_averages_of_the_first_values():
    rule = rule_for(
        manifest(min_trials_required=3, start_step=2), [[0.5, 0.3, 0.1], [0.2, 0.2], [0.9], []]
    )
    assert rule.value == pytest.approx((0.4 + 0.2 + 0.9) / 3), (
        "the mean, where a median would be 0.4"
    )


def test_there_is_no_limit_before_enough_trials_have_succeeded():
    assert rule_for(manifest(min_trials_required=3), [[0.5], [0.4]]) is None
    assert rule_for({"spec": {}}, [[0.5]] * 9) is None


@pytest.mark.parametrize(
    ("values", "objective", "stops"),
    [
        ([0.9], "minimize", False),
        ([0.9, 0.8], "minimize", True),
        ([0.9, 0.2], "minimize", False),
        ([0.2, 0.9, 0.9], "minimize", False),
        ([0.9, 0.8, 0.1], "minimize", True),
        ([0.3, 0.4], "maximize", True),
        ([0.3, 0.6], "maximize", False),
        ([0.5, 0.5], "minimize", False),
    ],
)
def test_a_trial_is_compared_with_the_limit_once_by_its_best_value(values, objective, stops):
    assert StopRule(value=0.5, start_step=2).stops(values, objective) is stops


def test_the_defaults_are_katibs():
    assert settings(manifest()) == {"min_trials_required": 3, "start_step": 4}


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"start_stop": 1}, "did you mean 'start_step'"), ({"start_step": 0}, "from 1 up")],
)
def test_settings_that_katib_refuses_are_refused(options, expected):
    with pytest.raises(InputError, match=expected):
        settings(manifest(**options))
