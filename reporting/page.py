"""Self-contained HTML pages from the templates in reporting/templates.

Pages have no scripts and load nothing, so that they open from a disk, in the sandboxed frame of the
Kubeflow UI, on a phone, in dark mode and on paper. Templates hold the markup and escape all values;
Python passes them text, tables and figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reporting import drawing

MISSING = "–"
"""Stands in a table for a missing value."""

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    # Names and values come from users.
    autoescape=True,
    # A template variable without a value is a bug; by default jinja2 would leave a gap.
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters["svg"] = drawing.svg


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text below a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    kind: str = "numbers"
    """The table's class in style.css."""
    highlighted: Collection[int] = ()
    """Indices of the highlighted rows."""
    words: Collection[str] = ()
    """Heads of the columns that hold sentences, whose text is wrapped."""


def render(template: str, **values: object) -> str:
    """Return a template filled with values.

    Raises:
        jinja2.UndefinedError: If the template uses a name that is not among the values.
    """
    return ENVIRONMENT.get_template(template).render(**values)


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings: names joined by spaces -> value as text.

    Lists of plain values become one line; the entries of other lists are numbered.
    """
    texts: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            texts |= flat(value, f"{key} ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for number, item in enumerate(value, 1):
                # A plain value in a list of objects is named by its number alone.
                content = item if isinstance(item, Mapping) else {"": item}
                texts |= flat(content, f"{key} {number} ")
        else:
            texts[key] = _plain(value)
    return texts


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "none" if value is None else str(value)


def short_number(value: str) -> str:
    """Return a number that is not whole with four significant digits; other text unchanged."""
    try:
        return value if value.lstrip("+-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value
