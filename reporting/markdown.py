"""Markdown for the panel beside a step in the Kubeflow UI: tables, values and blocks.

The UI of KFP 2.15.0 renders it with markdown-to-jsx 6 and shows HTML as text. It has no scroll bar
for lines wider than the panel. So the text has no "<", and blocks are wrapped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

WIDTH = 50
"""Characters of a line of a block that fit into the panel in a window of 1,400 pixels."""
UNBROKEN = re.compile(r"((?:[^\s-]{,35}/|[^\s-]{36}))(?=[^\s-])")
"""A piece of text that fits into a cell without a line break.

Browsers break lines at blanks and hyphens, not at slashes; addresses are cut after a slash.
"""
TOO_LONG = re.compile(r"[^\s-]{37,}")
"""Text that must be cut into such pieces."""
MARKS = ("`", "*", "_", "~", "#", "\\", "](", "://")
"""Characters that Markdown would take for markup or a link."""


def text(value: object) -> str:
    """Return a value as one line of a paragraph or table cell; as code where it contains markup."""
    line = without_tags(" ".join(str(value).split())).replace("|", "¦")
    return code(line) if any(mark in line for mark in MARKS) else line


def code(value: object) -> str:
    """Return a value as code, cut into pieces where it has no blank or hyphen for long."""
    line = without_tags(" ".join(str(value).split())).replace("|", "¦").replace("`", "'")
    pieces = TOO_LONG.sub(lambda long: UNBROKEN.sub(r"\1` `", long[0]), line)
    return f"`{pieces}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose cells are Markdown already, from `text` or `code`."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def block(value: str, language: str = "", *, wrap: bool = True) -> str:
    """Return lines as a code block; wrap long lines if `wrap`."""
    lines: list[str] = []
    for line in without_tags(value).replace("```", "'''").splitlines():
        lines += textwrap.wrap(line, WIDTH, subsequent_indent="  ") if wrap else [line]
    return "\n".join([f"```{language}", *lines, "```", ""])


def without_tags(value: str) -> str:
    """Replace angle brackets, so that the text cannot be taken for HTML."""
    return value.replace("<", "‹")
