"""Check cron expressions of users, and convert them to the six fields of Kubeflow Pipelines.

crontab has five fields: minute, hour, day, month, weekday. Kubeflow Pipelines has the second in
front of them. It also accepts five fields, but takes the first as the second and assumes that the
weekday is missing: '0 3 * * 1', Mondays at 3:00 in crontab, would run at 3 minutes past every hour
in January (robfig/cron 1.2.0 parser.go, `Parse`; kfp 2.15.0
backend/src/apiserver/server/api_converter.go:1974).
"""

from __future__ import annotations

import dataclasses

from common.errors import InputError

MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
LONGEST_MONTH = dict(enumerate((31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), start=1))


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a cron expression, and the numbers that it may hold."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()
    """What may be written for the numbers from `low` on."""


SECOND = Field("second", 0, 59)
FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day", 1, 31),
    Field("month", 1, 12, tuple(MONTHS)),
    Field("weekday", 0, 7, tuple(WEEKDAYS)),
)


def six_fields(text: str) -> str:
    """Convert a cron expression of five or six fields to Kubeflow's six.

    Sunday may be 0 or 7. Raises InputError for an invalid expression, and for one whose date does
    not exist in any year, such as 30 February.

    >>> six_fields("0 3 * * 1")
    '0 0 3 * * 1'
    """
    words = text.split()
    if len(words) == len(FIELDS):
        words = ["0", *words]
    if len(words) != len(FIELDS) + 1:
        raise _refusal(text, f"it has {len(words)} fields")
    numbers = {}
    for field, word in zip((SECOND, *FIELDS), words, strict=True):
        numbers[field.name] = _numbers(field, word, text)
    never = all(min(numbers["day"]) > LONGEST_MONTH[month] for month in numbers["month"])
    # where both the day and the weekday are restricted, either will do
    if never and words[-1][0] in "*?":
        raise _refusal(text, "it names a date that no year has")
    if 7 in numbers["weekday"] and words[-1][0] not in "*?":
        words[-1] = ",".join(str(day) for day in sorted({day % 7 for day in numbers["weekday"]}))
    return " ".join(words)


def five_fields(text: str) -> str:
    """Return the expression without seconds, for crontab. Raises InputError as `six_fields`."""
    six_fields(text)
    return " ".join(text.split()[-len(FIELDS) :])


def _numbers(field: Field, word: str, text: str) -> set[int]:
    """Return the numbers that a field selects: comma-separated ranges, with optional steps."""
    numbers: set[int] = set()
    for part in word.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(field, step_text, text, names=False) if slash else 1
        first, dash, last = span.partition("-")
        if span in ("*", "?"):
            low, high = field.low, field.high
        else:
            low = _number(field, first, text)
            high = _number(field, last, text) if dash else low
            if slash and not dash:
                high = field.high
        if low < field.low or high > field.high:
            wrong = low if low < field.low else high
            raise _refusal(
                text, f"{field.name} {wrong} is not between {field.low} and {field.high}"
            )
        if step < 1 or low > high:
            raise _refusal(text, f"{field.name} '{part}' holds no number")
        numbers.update(range(low, high + 1, step))
    return numbers


def _number(field: Field, word: str, text: str, *, names: bool = True) -> int:
    if names and word.lower() in field.names:
        return field.low + field.names.index(word.lower())
    if word.isascii() and word.isdigit():
        return int(word)
    raise _refusal(text, f"'{word}' is not a valid {field.name}")


def _refusal(text: str, reason: str) -> InputError:
    return InputError(
        f"'{text}' is not a cron expression: {reason}; write minute, hour, day, month and"
        " weekday, as '0 3 * * 1' for Mondays at 3:00, with an optional field for seconds in front"
    )
