"""A table of findings: each line is ok, a warning, an error or not seen, with the cure.

The exit code of `--check` follows from the worst line.
"""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from collections.abc import Collection, Iterable

WIDTH = 128  # characters of a printed line; a longer finding continues below its column


class State(enum.StrEnum):
    """How a line of the table went."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    NOT_SEEN = "not seen"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table. `cure` says what to do or type about it."""

    state: State
    what: str
    finding: str
    cure: str = ""


def ok(what: str, finding: str) -> Line:
    """Make a line that is well."""
    return Line(State.OK, what, finding)


def warning(what: str, finding: str, cure: str = "") -> Line:
    """Make a warning."""
    return Line(State.WARNING, what, finding, cure)


def error(what: str, finding: str, cure: str = "") -> Line:
    """Make a line that lets the run fail."""
    return Line(State.ERROR, what, finding, cure)


def not_seen(what: str, why: str, cure: str = "") -> Line:
    """Make a line about something that could not be looked at."""
    return Line(State.NOT_SEEN, what, why, cure)


def as_text(line: Line) -> str:
    """Format a line: 'error     secret s3-secret        there is none'; the cure gets its own."""
    head = f"{line.state:<9} {line.what:<28} "
    indent = " " * len(f"{'':<9} {'':<28} ")
    texts = [line.finding]
    if line.cure:
        texts.append(f"-> {line.cure}")

    # Addresses and commands are never broken: they are copied from here.
    parts: list[str] = []
    for text in texts:
        parts += textwrap.wrap(
            text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False
        )
    if not parts:
        return head.rstrip()
    return f"\n{indent}".join([head + parts[0], *parts[1:]])


def show(lines: Iterable[Line], hidden: Collection[State] = ()) -> list[Line]:
    """Print each line as soon as it is known, except those of hidden states; return them all."""
    known = []
    for line in lines:
        if line.state not in hidden:
            print(as_text(line), flush=True)
        known.append(line)
    return known


def count(lines: Iterable[Line], state: State) -> int:
    """How many lines have this state."""
    return sum(line.state == state for line in lines)
