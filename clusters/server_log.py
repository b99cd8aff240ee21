"""Why a model server ended, read from its log.

Triton names the model that it cannot load in error lines of glog's form, prints tables of models
and options after them, and unloads the other models: about 60 lines between the reason and the end
(seen with Triton 2.51).
"""

from __future__ import annotations

import re

# glog: E, month and day, time, thread, file:line]
ERROR_LINE = re.compile(r"E\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [^\]]+\] (?P<text>.*)")
LOAD_FAILURES = ("failed to load", "Poll failed", "failed to poll")


def load_failure(lines: list[str]) -> str:
    """What Triton says of the first model that it cannot load, in one line; empty if nothing.

    >>> load_failure(["E1129 09:25:10.741668 1 model.cc:642] failed to load 'x': no"])
    "failed to load 'x': no"
    """
    for text in filter(None, map(_error_text, lines)):
        if any(words in text for words in LOAD_FAILURES):
            # newer versions quote the text and write a line's end as \n
            return text.strip('"').split("\\n")[0].strip()
    return ""


def worth_reading(lines: list[str], count: int) -> list[str]:
    """The last `count` lines, and before them the error lines that stand further above."""
    above = [line for line in lines[:-count] if _error_text(line)]
    return above + lines[-count:]


def _error_text(line: str) -> str:
    match = ERROR_LINE.match(line)
    return match["text"] if match else ""
