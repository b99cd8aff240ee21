"""Markdown as the Kubeflow UI shows it beside a step: tables, values, blocks.

The UI of KFP 2.15.0 renders it with markdown-to-jsx 6 and shows HTML as text. It draws no bar for
what is wider than its panel. So nothing here has a "<", and blocks are wrapped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

WIDTH = 50
"""Characters of a line in a block that the panel holds in a window of 1,400 pixels."""
UNBROKEN = re.compile(r"([^\s/-]{36})(?=[^\s/-])")
"""What a cell of the panel holds without a place to break the line, as a digest has none."""
MARKS = ("`", "*", "_", "~", "#", "\\", "](", "://")
"""What changes how text is shown, or makes a link of it."""


def text(value: object) -> str:
    """A value in one line of a paragraph or a cell of a table, whatever characters it has.

    It becomes code where it has marks.
    """
    line = without_tags(" ".join(str(value).split())).replace("|", "¦")
    return code(line) if any(mark in line for mark in MARKS) else line


def code(value: object) -> str:
    """A value as code, in pieces where it has no blank, hyphen or slash for long."""
    line = without_tags(" ".join(str(value).split())).replace("|", "¦").replace("`", "'")
    pieces = UNBROKEN.sub(r"\1` `", line)
    return f"`{pieces}`"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are Markdown, as `text` and `code` write it."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def block(value: str, language: str = "", *, wrap: bool = True) -> str:
    """Lines as they are in a block of their own, the long ones wrapped if `wrap`."""
    lines: list[str] = []
    for line in without_tags(value).replace("```", "'''").splitlines():
        lines += textwrap.wrap(line, WIDTH, subsequent_indent="  ") if wrap else [line]
    return "\n".join([f"```{language}", *lines, "```", ""])


def without_tags(value: str) -> str:
    """Text that cannot be taken for HTML."""
    return value.replace("<", "‹")
