"""Cron expressions of crontab, converted for Kubeflow."""

import pytest

from common.cron import five_fields, six_fields
from common.errors import InputError


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0 3 * * 1", "0 0 3 * * 1"),
        ("*/15 8-18 * * mon-fri", "0 */15 8-18 * * mon-fri"),
        ("30 0 3 * * MON", "30 0 3 * * MON"),
        ("0 0 1,15 * ?", "0 0 0 1,15 * ?"),
        # Kubeflow's Sunday is 0 alone
        ("0 3 * * 7", "0 0 3 * * 0"),
        ("0 3 * * 5-7", "0 0 3 * * 0,5,6"),
        ("0 3 29 2 *", "0 0 3 29 2 *"),
        # the 31st or a Monday
        ("0 3 31 2 1", "0 0 3 31 2 1"),
    ],
)
def test_six_fields_begins_with_the_second(text, fields):
    assert six_fields(text) == fields


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("", "0 fields"),
        ("@daily", "1 fields"),
        ("0 3 * *", "4 fields"),
        ("0 0 3 * * 1 2026", "7 fields"),
        ("60 3 * * 1", "minute 60"),
        ("0 24 * * 1", "hour 24"),
        ("0 3 0 * 1", "day 0"),
        ("0 3 * 13 1", "month 13"),
        ("0 3 * * 8", "weekday 8"),
        ("61 0 3 * * 1", "second 61"),
        ("0 3 * * monday", "'monday' is not a valid weekday"),
        ("-1 3 * * 1", "'' is not a valid minute"),
        ("*/0 3 * * 1", "'*/0'"),
        ("0 5-3 * * 1", "'5-3'"),
        ("0, 3 * * 1", "'' is not a valid minute"),
        ("² 3 * * 1", "'²' is not a valid minute"),
        ("0 3 31 2,4 *", "a date that no year has"),
    ],
)
def test_an_invalid_cron_expression_is_refused_with_an_example(text, fact):
    with pytest.raises(InputError) as error:
        six_fields(text)
    assert fact in str(error.value)
    assert "'0 3 * * 1'" in str(error.value)
    assert "\n" not in str(error.value)


def test_five_fields_has_no_second():
    assert five_fields("30 0 3 * * 1") == five_fields("0 3 * * 1") == "0 3 * * 1"
