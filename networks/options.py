"""Options of a network file and what each may be, stated as data, so that they can be checked
without building a network.

A network file says `OPTIONS = {"k": {"least": 1}, "dropout": {"least": 0.0, "below": 1.0}, "norm":
{"choices": ["batch", "none"]}}`, a literal that can also be read from the file's text. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import InputError, unknown


def check(rules: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, each in its rule's type. Raises InputError for a name without a rule, or a value
    that its rule does not allow.

    A rule is {"choices": [...]}, or {"least": a, "below": b} (b may be missing), whole numbers
    where `least` is one; a rule with "several" is for a list (or a single number) of such numbers
    and gives a tuple.
    """
    for name in values:
        if name not in rules:
            raise InputError(unknown("network option", name, rules))
    return {name: _checked(name, value, rules[name]) for name, value in values.items()}


def _checked(name: str, value: Any, rule: Mapping[str, Any]) -> Any:
    if "choices" in rule:
        return _chosen(name, value, rule["choices"])
    if rule.get("several"):
        return tuple(
            _number(name, one, rule)
            for one in (value if isinstance(value, (list, tuple)) else [value])
        )
    return _number(name, value, rule)


def _chosen(name: str, value: Any, choices: list) -> Any:
    for choice in choices:
        if value == choice:
            return choice
    *others, last = [str(choice) for choice in choices]
    raise InputError(
        f"network option '{name}' must be {', '.join(others)} or {last}, not {value!r}"
    )


def _number(name: str, value: Any, rule: Mapping[str, Any]) -> int | float:
    least, below = rule["least"], rule.get("below", float("inf"))
    kind = type(least)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value < below or (kind is int and value != int(value)):
        words = f"{'a whole number of ' if kind is int else ''}at least {least:g}" + (
            f" and below {below:g}" if "below" in rule else ""
        )
        raise InputError(f"network option '{name}' must be {words}, not {value!r}")
    return kind(value)
