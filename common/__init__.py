"""What all other packages use: errors, storage, records, progress, a run's configuration.

Imports no torch, kfp or kubernetes.
"""

import os
import sys
from types import TracebackType

# From 1.32 on, ONNX Runtime reports its use to Microsoft, with an identifier that it keeps in
# ~/.cache, unless this is set before its import (its Privacy.md). Servers inherit it from us.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def _report_interrupt(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Report Ctrl-C in one line: while a program imports its modules, nothing else catches it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _is_own_program() -> bool:
    """Whether this process runs a program of this project, not a script that imports it."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        return os.path.abspath(sys.argv[0]).startswith(root + os.sep)
    except (OSError, AttributeError, IndexError):  # no working folder; an embedded Python
        return False


if sys.excepthook is sys.__excepthook__ and _is_own_program():
    sys.excepthook = _report_interrupt
