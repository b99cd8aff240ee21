"""The table of `--check`: each line is ok, a warning, an error or not seen, with its cure.

'not seen' means that something could not be checked from here. An error makes the exit code 1.
"""

from __future__ import annotations

import dataclasses
import enum
import textwrap
from collections.abc import Collection, Iterable

WIDTH = 128  # characters of a printed line; a longer finding is wrapped within its column


class State(enum.StrEnum):
    """The state of a line of the table."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    NOT_SEEN = "not seen"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table."""

    state: State
    what: str
    """What was checked."""
    finding: str
    """The result, or why it could not be checked."""
    cure: str = ""
    """What to do or type about it."""


def ok(what: str, finding: str) -> Line:
    """Make a line for a check that passed."""
    return Line(State.OK, what, finding)


def warning(what: str, finding: str, cure: str = "") -> Line:
    """Make a warning: the run can start, but may not do what the user expects."""
    return Line(State.WARNING, what, finding, cure)


def error(what: str, finding: str, cure: str = "") -> Line:
    """Make an error: the run would fail."""
    return Line(State.ERROR, what, finding, cure)


def not_seen(what: str, why: str, cure: str = "") -> Line:
    """Make a line for something that could not be checked, with the reason."""
    return Line(State.NOT_SEEN, what, why, cure)


def as_text(line: Line) -> str:
    """Format a line: 'error     secret s3-secret        there is none'; the cure goes below it."""
    head = f"{line.state:<9} {line.what:<28} "
    indent = " " * len(f"{'':<9} {'':<28} ")
    texts = [line.finding]
    if line.cure:
        texts.append(f"-> {line.cure}")

    # Do not break addresses and commands: users copy them.
    parts: list[str] = []
    for text in texts:
        parts += textwrap.wrap(
            text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False
        )
    if not parts:
        return head.rstrip()
    return f"\n{indent}".join([head + parts[0], *parts[1:]])


def show(lines: Iterable[Line], hidden_states: Collection[State] = ()) -> list[Line]:
    """Print each line as soon as it is known, except those of hidden states; return all lines."""
    shown_lines = []
    for line in lines:
        if line.state not in hidden_states:
            print(as_text(line), flush=True)
        shown_lines.append(line)
    return shown_lines


def count(lines: Iterable[Line], state: State) -> int:
    """Return how many lines have this state."""
    return sum(line.state == state for line in lines)
