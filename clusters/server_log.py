"""Why a model server ended, read from its log.

Triton names the model that it cannot load in error lines of glog's format, then prints tables of
models and options, and unloads the other models: about 60 lines between the reason and the end
(seen with Triton 2.51).
"""

from __future__ import annotations

import re

ERROR_LINE = re.compile(
    r"^(?:E\d{4} [^\]]*\]|\[libprotobuf ERROR [^\]]*\]|error:) *(.*)", re.MULTILINE
)
# Triton reports CUDA errors on every machine without a GPU.
CUDA = "CudaDriverHelper"
TABLE = ("|", "+-")
LOAD_FAILURES = ("failed to load", "Poll failed")


def error_lines(text: str) -> str:
    """Return the error lines of a log: of Triton (severity E), its protobuf parser, and our own."""
    lines = []
    for line in ERROR_LINE.findall(text):
        if CUDA not in line:
            # Triton writes "At: file(line): function" of the Python backend into the same line.
            lines.append(line.split("\\n\\nAt:")[0].strip('"'))
    # These lines repeat the lines before them.
    loading = [line for line in lines if line.startswith("failed to load")]
    return "\n".join(dict.fromkeys(loading or lines))


def load_failure(lines: list[str]) -> str:
    """Return Triton's error for the first model that it cannot load; empty without one.

    >>> load_failure(["E1129 09:25:10.741668 1 model.cc:642] failed to load 'x': no", "+----+"])
    "failed to load 'x': no"
    """
    failures = [
        line
        for line in error_lines("\n".join(lines)).splitlines()
        if any(words in line for words in LOAD_FAILURES)
    ]
    return failures[0] if failures else ""


def useful_lines(lines: list[str], count: int) -> list[str]:
    """Return the error lines if a model cannot be loaded, else the last `count` lines.

    After these errors Triton only reports what it unloads. Its tables of options are left out.
    """
    if not load_failure(lines):
        text = [line for line in lines if line.strip() and not line.startswith(TABLE)]
        return text[-count:]
    return [line for line in lines if ERROR_LINE.match(line) and CUDA not in line]
