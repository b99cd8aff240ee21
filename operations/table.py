"""A table of findings: every line ok, warning, error or not seen, with the cure; the exit code
follows from the worst.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable
from typing import Literal

State = Literal["ok", "warning", "error", "not seen"]
WIDTH = 128  # of a printed line; a longer finding goes on below its column


@dataclasses.dataclass(frozen=True)
class Line:
    """One finding. `cure` says what to do or type about it."""

    state: State
    what: str
    found: str
    cure: str = ""


def ok(what: str, found: str) -> Line:
    return Line("ok", what, found)


def warning(what: str, found: str, cure: str = "") -> Line:
    return Line("warning", what, found, cure)


def error(what: str, found: str, cure: str = "") -> Line:
    return Line("error", what, found, cure)


def not_seen(what: str, why: str, cure: str = "") -> Line:
    return Line("not seen", what, why, cure)


def as_text(line: Line) -> str:
    """'error     secret s3-secret        there is none', the cure on a line of its own."""
    head = f"{line.state:<9} {line.what:<28} "
    rest = " " * len(f"{'':<9} {'':<28} ")
    texts = [line.found, *([f"-> {line.cure}"] if line.cure else [])]
    wrapped = [
        part
        for text in texts
        for part in textwrap.wrap(
            text, WIDTH - len(rest), break_long_words=False, break_on_hyphens=False
        )
    ]
    return (
        "\n".join([head + wrapped[0], *(rest + part for part in wrapped[1:])])
        if wrapped
        else head.rstrip()
    )


def show(lines: Iterable[Line]) -> list[Line]:
    """Print each line as it is found; returns them all."""
    shown = []
    for line in lines:
        print(as_text(line), flush=True)
        shown.append(line)
    return shown


def count(lines: Iterable[Line], state: State) -> int:
    return sum(line.state == state for line in lines)
