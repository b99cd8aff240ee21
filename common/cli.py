"""Parse command lines, and turn errors into one sentence and an exit code.

A misspelt flag or value is answered with the nearest one that exists.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common import storage
from common.errors import (
    FULL_DISK,
    PASSING_FAILURE,
    FullDiskError,
    InputError,
    InterruptedRun,
    JecError,
    nearest,
    without_secrets,
)
from common.project import ROOT
from common.storage import space
from common.storage.addresses import CONTROL, check_text, check_url
from common.storage.local import check_path, check_writable_file, check_writable_folder

UNEXPECTED = 70
"""Exit code of an unexpected exception: EX_SOFTWARE of sysexits.h."""
AGE_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
"""Letter of a duration -> seconds."""
SIZE_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
"""Letter of a size -> bytes."""
TRACEBACK = "jec-traceback-"
"""Prefix of the names of files with tracebacks, in the temporary folder."""
TRACEBACK_SECONDS = 30 * 86400.0
NO_WORKING_FOLDER = "the working folder was removed; change to another one, as cd ~"
BROKEN_PIPE = 141
"""Exit code if the reader of our output has ended (`| head`): what shells show for SIGPIPE."""


class Parser(argparse.ArgumentParser):
    """argparse, whose errors also name the nearest flag or value.

    Abbreviated flags are refused: a later version may have two flags with the same beginning. So
    are an empty text and one with control characters, unless the flag has a `type=`; `type=str`
    takes any text.
    """

    def __init__(self, **options: Any) -> None:
        """Create the parser with argparse's options; line breaks of a description are kept."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)
        self.register("type", int, whole_number)
        self.register("type", float, real_number)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse; refuse words that cannot be written in UTF-8."""
        if not _has_working_folder():  # the checks of paths need it
            self.error(NO_WORKING_FOLDER)
        words: Sequence[str] = sys.argv[1:] if args is None else args
        for word in words:
            try:
                word.encode()
            except UnicodeEncodeError:
                self.error(f"argument {word!r} is not text in UTF-8")
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        super()._check_value(action, value)
        if action.type is None and isinstance(value, str):
            try:
                check_text(value)
            except InputError as error:
                raise argparse.ArgumentError(action, str(error)) from None

    def error(self, message: str) -> NoReturn:
        """End with one sentence and the nearest flag or value, exit code 2."""
        # Addresses are hidden: they may hold secrets, and this may go to the log of a pod.
        text = re.sub(r"\b\w+://\S+", "(an address)", message)
        # a line break of a word would end the sentence
        text = CONTROL.sub(lambda match: repr(match[0])[1:-1], text)
        self.exit(2, f"error: {text}{self._hint(text)}\nsee: {self.prog} --help\n")

    def _hint(self, message: str) -> str:
        flags = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized") else []
        near = [
            match for flag in flags for match in nearest(flag, self._option_string_actions, count=1)
        ]
        choice = re.search(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)", message)
        if choice:
            near = nearest(choice[1], re.findall(r"[\w.+-]+", choice[2]), count=1)
        return f"; did you mean {' or '.join(near)}?" if near else ""


def local_path(text: str) -> Path:
    """Check that an argument is a path on this machine's disks. Raises ArgumentTypeError.

    argparse reports an address, which would otherwise become a folder of that name.
    """
    try:
        check_text(text)
        if storage.is_local(text):
            is_relative = not text.startswith(("file:", "~"))
            path = Path(text) if is_relative else Path(storage.absolute(text))
            check_path(str(path))
            return path
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    raise argparse.ArgumentTypeError(f"'{text}' is an address; a path on this machine is needed")


def output_folder(text: str) -> Path:
    """Return a folder on this machine's disks that can be made and written to; nothing is made."""
    path = local_path(text)
    try:
        check_writable_folder(str(path))
    except JecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def output_file(text: str) -> Path:
    """Return a file on this machine's disks that can be written; nothing is written."""
    path = local_path(text)
    try:
        check_writable_file(str(path))
    except JecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def output_address(text: str) -> str:
    """Return a file to be written, as a path or an address.

    A path is checked as by `output_file`.
    """
    try:
        check_text(text)
        if storage.is_local(text):
            check_writable_file(storage.absolute(text))
    except JecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def output_place(text: str) -> str:
    """Return a folder to be written to, as a path or an address; a path as by `output_folder`."""
    try:
        check_text(text)
        if storage.is_local(text):
            check_writable_folder(storage.absolute(text))
    except JecError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def word(text: str) -> str:
    """Return a name, such as a run's id: neither empty nor with control characters."""
    try:
        check_text(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def age(text: str) -> float:
    """Return the seconds of a duration such as 30d, 12h or 2w; the type of --older-than."""
    return _quantity(text, AGE_UNITS, "30d, 12h or 2w")


def size(text: str) -> float:
    """Return the bytes of a size such as 1G or 500M; the type of --larger-than."""
    return _quantity(text, SIZE_UNITS, "1G or 500M")


def _quantity(text: str, units: dict[str, float], examples: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([A-Za-z])", text)
    if match is None or match[2] not in units:
        raise argparse.ArgumentTypeError(f"'{text}' is none; give for example {examples}")
    return float(match[1]) * units[match[2]]


def whole_number(text: str) -> int:
    """Read a whole number, the type `int` of `Parser`. Raises ArgumentTypeError for another text.

    int() also takes blanks, underscores and the digits of other scripts, which no other program of
    the chain reads.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number; write digits, as 12")
    return int(text)


def real_number(text: str) -> float:
    """Read a number, the type `float` of `Parser`. Raises ArgumentTypeError for another text."""
    if not is_number(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number; write one as 12, 0.5 or 1e-3")
    return float(text)


def is_whole(text: str) -> bool:
    """Return whether a text is a whole number, of at most 18 digits of ASCII, which int64 holds."""
    return re.fullmatch(r"[0-9]{1,18}", text) is not None


def is_number(text: str) -> bool:
    """Return whether a text is a finite number in ASCII, as JSON, YAML and Katib write it."""
    form = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
    return re.fullmatch(form, text) is not None and math.isfinite(float(text))


def port_number(text: str) -> int:
    """Read a TCP port. Raises ArgumentTypeError for another text."""
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not a port; write a number from 1 to 65535")
    return int(text)


def seconds(text: str) -> float:
    """Read a finite number of seconds above 0. Raises ArgumentTypeError for another text."""
    number = float(text) if is_number(text) else math.nan
    if not 0 < number <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not a time; write seconds above 0 and at most {LONGEST_SECONDS:.0f}"
        )
    return number


LONGEST_SECONDS = 86_400.0  # the longest wait that a flag may ask for: a day


def truth(text: str) -> bool:
    """Return the value of true, yes, 1, false, no or 0, in upper or lower case.

    Raises ValueError for another text.
    """
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(text).lower() not in words:
        raise ValueError(f"'{text}' is not true or false")
    return words[str(text).lower()]


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a command; SIGHUP (closed terminal) unless nohup ignores it."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def run_main(body: Callable[[], int | None]) -> int:
    """Run a program's body and return the exit code.

    A JecError becomes `error: ...` on stderr and its own exit code, Ctrl-C becomes 130. Any other
    exception becomes one line as well, and UNEXPECTED: its traceback is kept in a file.
    """
    # Figures are drawn into files. Below a notebook's kernel the variable names its own backend,
    # which matplotlib refuses where the notebook's packages are not installed.
    os.environ["MPLBACKEND"] = "agg"
    _prepare_standard_streams()
    if not _has_working_folder():
        _complain(f"error: {NO_WORKING_FOLDER}")
        return InputError.exit_code
    try:
        with space.catch_full_disk():
            code = body() or 0
            sys.stdout.flush()  # here a full disk below it is an error like others
            return code
    except JecError as error:
        _complain(f"{'stopped' if isinstance(error, InterruptedRun) else 'error'}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The interpreter would report the same once more when it flushes stdout at its end.
        _discard(sys.stdout)
        return BROKEN_PIPE
    except ModuleNotFoundError as error:
        return report_missing_package(error)
    except Exception as error:
        return report_unexpected(error)


def run_job(body: Callable[[], int | None]) -> int:
    """Run the program of a trial or a job as `run_main` does, with more specific exit codes.

    They are FULL_DISK for a full disk, and PASSING_FAILURE for another retryable error. The step
    that waits for the program needs them, because a full disk may have kept the error message out
    of the log.
    """

    def with_exit_code() -> int | None:
        try:
            with space.catch_full_disk():
                return body()
        except JecError as error:
            if isinstance(error, FullDiskError):
                error.exit_code = FULL_DISK
            elif error.retryable:
                error.exit_code = PASSING_FAILURE
            raise

    return run_main(with_exit_code)


def _prepare_standard_streams() -> None:
    """Open /dev/null as each standard stream that the caller has closed (`>&-`).

    Otherwise sys.stdout is None, and the next file that the process opens becomes its stdout, into
    which libraries and child processes then write.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # the lowest free number, which is this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (never closed)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (never closed)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (never closed)
    # where the locale is not UTF-8, as stderr always does
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _has_working_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _complain(text: str) -> None:
    """Write a line to stderr, unless its disk is full.

    The interpreter would otherwise end with an exit code of its own when it flushes at its end.
    """
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)


def _discard(stream: Any) -> None:
    """Redirect a stream to /dev/null, so that flushing it at exit cannot fail."""
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def report_missing_package(error: ModuleNotFoundError) -> int:
    """Report a missing package with its Python and the project's; return the exit code.

    A missing module of ours is a fault of the program, and in a pod the image is at fault.
    """
    package = (error.name or "").partition(".")[0]
    if in_pod() or not package or (ROOT / package).is_dir():
        return report_unexpected(error)
    _complain(
        f"error: {sys.executable} has no package '{package}'; type: . .venv/bin/activate (in the"
        " checkout; make setup creates it)"
    )
    return InputError.exit_code


def report_unexpected(error: Exception) -> int:
    """Print one line about an unexpected exception and its traceback file; return UNEXPECTED.

    The traceback is printed only in a pod, whose files are lost when it ends, and where no file can
    be written.
    """
    trace = without_secrets("".join(traceback.format_exception(error)))
    reason = without_secrets(" ".join(str(error).split()))[:300]
    line = f"error: unexpected {type(error).__name__}: {reason}".rstrip(": ")
    if in_pod():
        print(trace + line, file=sys.stderr, flush=True)
        return UNEXPECTED
    try:
        _remove_old_tracebacks()
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=TRACEBACK, suffix=".txt", delete=False, errors="replace"
        ) as file:
            file.write(f"{sys.argv}\n{trace}")
    except OSError:
        print(trace + line, file=sys.stderr, flush=True)
        return UNEXPECTED
    print(
        f"{line}; this is a fault of the program: its traceback is in {file.name}, which a report"
        " of it needs",
        file=sys.stderr,
        flush=True,
    )
    return UNEXPECTED


def _remove_old_tracebacks() -> None:
    """Remove this user's traceback files that are older than TRACEBACK_SECONDS."""
    for path in Path(tempfile.gettempdir()).glob(f"{TRACEBACK}*.txt"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > TRACEBACK_SECONDS:
                path.unlink()


def in_pod() -> bool:
    """Return whether this is a pod of a job; a Kubeflow notebook, whose files stay, is none."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and "NB_PREFIX" not in os.environ


def require_url(flag: str, text: str) -> None:
    """Raise InputError, which names the flag, if the text is not the address of an HTTP server.

    It is called after parsing. As a `type=` of argparse it would lose the address in its message,
    because `Parser.error` hides addresses.
    """
    try:
        check_url(text)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None


def require(condition: bool, message: str) -> None:
    """Raise InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)
