"""The parsed YAML of a data config: typed access to its keys, and the expressions it defines.

Every error names the file, the section and the key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from common.errors import InputError, unknown
from common.yaml_text import kind_of
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


class Document:
    """A data config's mapping, and `functions`: the expressions defined so far, by name."""

    def __init__(self, source: str, options: object) -> None:
        """Take the parsed YAML of the file `source`.

        Raises InputError if it is not a mapping, or has a section that does not exist.
        """
        self.source = source
        if not isinstance(options, dict):
            raise InputError(
                f"{source} is not a data config: expected a mapping with 'inputs' and 'labels',"
                f" found {kind(options)}"
            )
        self.options: Options = options
        self.functions: dict[str, Expression] = {}
        self.unknown_keys: dict[str, list[str]] = {}
        """Section -> a message for each of its keys that have no effect."""
        for key, value in options.items():
            if key not in KEYS and value is not None:  # weaver-core ignores an empty section
                raise self.error("", unknown("key", str(key), KEYS))

    def error(self, place: str, reason: str) -> InputError:
        """Return the error for a place in the file, such as "inputs:pf".

        "" for the file as a whole.
        """
        # a key that seems to be missing may be misspelt
        hints = "".join(f" ({hint})" for hint in self.unknown_keys.get(place, []))
        return InputError(f"{self.source}: {place}{': ' if place else ''}{reason}{hints}")

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each key that has no effect."""
        lines = []
        for place, hints in self.unknown_keys.items():
            lines += [f"{self.source}: {place}: the key has no effect: {text}" for text in hints]
        return tuple(lines)

    def check_keys(self, place: str, section: Mapping, known_keys: Iterable[str]) -> None:
        """Warn of keys that are not in `known_keys`; as in weaver-core, they have no effect."""
        for key in section:
            if key not in known_keys:
                hints = self.unknown_keys.setdefault(place, [])
                hints.append(unknown("key", str(key), known_keys))

    def define(self, name: object, text: object, section: str) -> None:
        """Add an expression under a name, unless it only repeats the name of a branch.

        Raises InputError for a name that is not an identifier, and for a faulty expression.
        """
        place = f"{self.source}:{section}:{name}"
        if not isinstance(name, str) or not name.isidentifier():
            raise InputError(f"{place}: {name!r} cannot be the name of a variable")
        if not isinstance(text, str | int | float):
            raise InputError(f"{place}: expected an expression, found {kind(text)}")
        expression = Expression(str(text), place)
        if expression.canonical() != name:  # `x: x` defines nothing: x is a branch
            self.functions[name] = expression

    def mapping(self, key: str) -> Options:
        """Return the mapping of a section; empty without it. Raises InputError for other types."""
        value = self.options.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(key, f"expected a mapping, found {kind(value)}")
        return value

    def names(self, key: str) -> tuple[str, ...]:
        """Return the names that a section lists, each once; empty without the section.

        Raises InputError for other types.
        """
        value = self.options.get(key)
        if value is None:
            return ()
        if not is_names(value):
            raise self.error(key, f"expected a list of names, found {kind(value)}")
        return tuple(dict.fromkeys(value))

    def text(self, key: str) -> str | None:
        """Return the text of a section.

        None without it or if empty. Raises InputError for other types.
        """
        value = self.options.get(key)
        if value is None or isinstance(value, str):
            return value or None
        raise self.error(key, f"expected text, found {kind(value)}")

    def number(self, value: object, place: str) -> float:
        """Convert a value to a number; `place` names it in the error.

        Text is allowed, because YAML reads 1e-3 (without a point) as text. Raises InputError.
        """
        try:
            if isinstance(value, bool):
                raise ValueError
            return value if isinstance(value, int | float) else float(str(value))
        except ValueError:
            raise self.error(place, f"expected a number, found {value!r}") from None


def is_names(value: object) -> bool:
    """Return True for a list of strings."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def kind(value: object) -> str:
    """Describe the type of a value in words, for an error."""
    words = kind_of(value)
    return f"{words} ({value!r})" if isinstance(value, str | int | float) else words
