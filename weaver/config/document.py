"""The parsed YAML of a data config: typed access to its keys, and the expressions it defines.

Every refusal names the file, the section and the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import InputError, unknown
from weaver.config.expressions import Expression

Options = dict[str, Any]
"""A mapping of a data config as YAML gives it: key -> text, number, list, mapping or None."""

KEYS = frozenset(
    {
        "treename",
        "branch_magic",
        "file_magic",
        "selection",
        "test_time_selection",
        "preprocess",
        "new_variables",
        "inputs",
        "labels",
        "observers",
        "monitor_variables",
        "weights",
        "bucketing",
    }
)
"""The sections of a data config, those of weaver-core."""

_KINDS = {
    dict: "a mapping",
    list: "a list",
    str: "text",
    type(None): "nothing",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


class Document:
    """A data config's mapping, and `functions`: the expressions defined so far, by name.

    Raises InputError for what is no mapping, and for a section that does not exist.
    """

    def __init__(self, source: str, options: object) -> None:
        """Take the parsed YAML. Raises InputError if it is no mapping."""
        self.source = source
        if not isinstance(options, dict):
            raise InputError(
                f"{source} is no data config: expected a mapping with 'inputs' and 'labels', found"
                f" {kind(options)}"
            )
        self.options: Options = options
        self.functions: dict[str, Expression] = {}
        self.unknown_keys: dict[str, list[str]] = {}
        """Section -> what to say of its keys that have no effect, one text for each."""
        for key, value in options.items():
            if key not in KEYS and value is not None:  # weaver-core passes over an empty section
                raise self.refusal("", unknown("key", str(key), KEYS))

    def refusal(self, place: str, reason: str) -> InputError:
        """The error for a place in the file, such as "inputs:pf"; "" for the file as a whole."""
        # a key that is missing may only be misspelt
        hints = "".join(f" ({text})" for text in self.unknown_keys.get(place, []))
        return InputError(f"{self.source}: {place}{': ' if place else ''}{reason}{hints}")

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each key that has no effect."""
        lines = []
        for place, texts in self.unknown_keys.items():
            lines += [f"{self.source}: {place}: the key has no effect: {text}" for text in texts]
        return tuple(lines)

    def check_keys(self, place: str, section: Mapping, known: Iterable[str]) -> None:
        """Warn of keys of a section that do not exist: they have no effect, as in weaver-core."""
        for key in section:
            if key not in known:
                texts = self.unknown_keys.setdefault(place, [])
                texts.append(unknown("key", str(key), known))

    def define(self, name: object, text: object, section: str) -> None:
        """Add an expression under a name, unless it only repeats the name of a branch."""
        place = f"{self.source}:{section}:{name}"
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{place}: {name!r} cannot be the name of a variable")
        if not isinstance(text, str | int | float):
            raise InputError(f"{place}: expected an expression, found {kind(text)}")
        expression = Expression(str(text), place)
        if expression.canonical() != name:  # `x: x` only says that x is a branch
            self.functions[name] = expression

    def mapping(self, key: str) -> Options:
        """The mapping of a section; empty where it is left out."""
        value = self.options.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.refusal(key, f"expected a mapping, found {kind(value)}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """The list of names of a section, each once; empty where it is left out."""
        value = self.options.get(key)
        if value is None:
            return ()
        if not is_names(value):
            raise self.refusal(key, f"expected a list of names, found {kind(value)}")
        return tuple(dict.fromkeys(value))

    def text(self, key: str) -> str | None:
        """The text of a section; None where it is left out or empty."""
        value = self.options.get(key)
        if value is None or isinstance(value, str):
            return value or None
        raise self.refusal(key, f"expected text, found {kind(value)}")

    def number(self, value: object, place: str) -> float:
        """A number; also one as text, because YAML reads 1e-3 (without a point) as text."""
        try:
            if isinstance(value, bool):
                raise ValueError
            return value if isinstance(value, int | float) else float(str(value))
        except ValueError:
            raise self.refusal(place, f"expected a number, found {value!r}") from None


def is_names(value: object) -> bool:
    """True for a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def kind(value: object) -> str:
    """What a value is, in words, for an error."""
    words = _KINDS.get(type(value), type(value).__name__)
    return f"{words} ({value!r})" if isinstance(value, str | int | float) else words
