"""Options of a network file and what each may be, stated as data.

So they can be checked without building a network. A network file says `OPTIONS = {"k": {"least":
1}, "dropout": {"least": 0.0, "below": 1.0}, "norm": {"choices": ["batch", "none"]}}`, a literal
that can also be read from the file's text. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import InputError, unknown

Rule = Mapping[str, Any]
"""What one option may be: {"choices": [...]}, or {"least": a, "below": b, "several": True}."""

ModelInfo = dict[str, Any]
"""The second result of get_model: input_names, input_shapes, output_names, dynamic_axes;
weaver-core and torch.onnx.export fix the names."""

Options = dict[str, Any]
"""Checked options of a network by name: numbers, words, or tuples of numbers."""


def check(rules: Mapping[str, Rule], values: Mapping[str, object]) -> Options:
    """Check the values of options, and give each the type of its rule.

    Raises InputError for a name without a rule, or a value that its rule does not allow.

    A rule is {"choices": [...]}, or {"least": a, "below": b} (b may be missing), whole numbers
    where `least` is one; a rule with "several" is for a list (or a single number) of such numbers
    and gives a tuple.
    """
    options: Options = {}
    for name, value in values.items():
        if name not in rules:
            raise InputError(unknown("network option", name, rules))
        rule = rules[name]
        if "choices" in rule:
            options[name] = _choice(name, value, rule["choices"])
        elif rule.get("several"):
            numbers = value if isinstance(value, list | tuple) else [value]
            options[name] = tuple(_number(name, number, rule) for number in numbers)
        else:
            options[name] = _number(name, value, rule)
    return options


def _choice(name: str, value: object, choices: Sequence[object]) -> object:
    """Return the choice that the value equals: 1 stands for True, as in a command line."""
    for choice in choices:
        if value == choice:
            return choice
    *others, last = [str(choice) for choice in choices]
    raise InputError(
        f"network option '{name}' must be {', '.join(others)} or {last}, not {value!r}"
    )


def _number(name: str, value: object, rule: Rule) -> int | float:
    least = rule["least"]
    below = rule.get("below", float("inf"))
    kind = type(least)
    # a bool is an int to Python, but no number of layers to anybody
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value < below:
        number = kind(value)
        if number == value:
            return number
    bounds = f"at least {least:g}"
    if "below" in rule:
        bounds += f" and below {below:g}"
    whole = "a whole number of " if kind is int else ""
    raise InputError(f"network option '{name}' must be {whole}{bounds}, not {value!r}")
