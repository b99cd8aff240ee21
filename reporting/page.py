"""Self-contained HTML pages, made of the templates in reporting/templates.

No script, no address, no font from elsewhere: a page opens from a disk, in the Kubeflow UI's
sandboxed frame, on a phone, in dark mode and on paper. Templates hold the markup and escape all
that is put into them; Python hands them text, tables and figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from reporting import drawing

MISSING = "–"
"""What stands in a table for a value that there is none of."""

ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    # Names and values come from the user.
    autoescape=True,
    # A name that Python does not fill is a fault of ours; jinja2 would leave a gap.
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
    marked: Collection[int] = ()
    """Numbers of the rows that stand out, from 0."""
    words: Collection[str] = ()
    """Heads of the columns that hold sentences, which are broken into lines."""


def render(template: str, **values: object) -> str:
    """The text of a template filled with values.

    Raises jinja2.UndefinedError for a name that the template uses and nobody gave.
    """
    return ENVIRONMENT.get_template(template).render(**values)


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested names joined by spaces -> value as text.

    Lists of plain values stand on one line; those of objects are numbered.
    """
    texts: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            texts |= flat(value, f"{key} ")
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value, 1):
                # A plain value among objects has its number alone for a name.
                content = one if isinstance(one, Mapping) else {"": one}
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
    """A number that is not whole with four significant digits; any other text as it is."""
    try:
        return value if value.lstrip("+-").isdigit() else f"{float(value):.4g}"
    except ValueError:
        return value
