"""The client's exceptions, and functions that word error messages.

JecError                 reported as one clear sentence, without a traceback (exit code 1)
├── InputError           an argument cannot be used; raised before it is sent (exit code 2)
└── ServerError          the server or its model failed
    ├── Unreachable      no server answers at that address (yet)
    ├── NotServing       the server answers, but does not serve this model (now)
    └── Refused          the server refused a request; the text is the server's own
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LOGIN = re.compile(r"(?<=://)[^/\s@]*@")
"""User and password in front of the server; a token may stand there alone."""
SIGNATURE = re.compile(
    r"([?&][\w.%-]*(?:sig|signature|token|credential|authz?|bearer|jwt|passw(?:or)?d|secret|api_?key"
    r"|access_?key)=)[^&\s'\"]+",
    re.IGNORECASE,
)
"""A parameter of an address that grants access: the signature of a presigned address, a token."""

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that change what a terminal shows; a line break is left to texts of several lines."""


def without_secrets(text: str) -> str:
    """Return the text without the logins and signatures of the addresses in it."""
    return SIGNATURE.sub(r"\1...", LOGIN.sub("", text))


class JecError(Exception):
    """Base of all errors whose text is meant to be read by the user, without a traceback."""

    exit_code = 1
    retryable = False
    """Whether another attempt may succeed, although nobody has changed anything."""

    def __str__(self) -> str:
        """Return the text without userinfo and signatures of addresses, and safe for terminals."""
        text = without_secrets(super().__str__())
        return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


class InputError(JecError):
    """The user's input cannot be used; nothing was started."""

    exit_code = 2


class ServerError(JecError):
    """The server or its model refused or failed a request; the text has the server's reason."""


class Unreachable(ServerError):
    """No server answers at that address (yet)."""

    retryable = True


class NotServing(ServerError):
    """The model cannot be asked now; asking again may help.

    The server answers 429, 502, 503 or 504, or an ingress has no route.
    """


class Refused(ServerError):
    """An error of the model server itself, in its words; code: that of HTTP."""

    def __init__(self, text: str, code: int) -> None:
        """Keep the HTTP status code beside the text."""
        super().__init__(text)
        self.code = code


LONGEST_NAME = 200
"""Characters of a name that an error shows."""


def nearest(name: object, choices: Iterable[str], count: int = 3) -> list[str]:
    """The names among `choices` that look most like `name`, best first; empty if none does."""
    lower_name = str(name)[:LONGEST_NAME].lower()
    sorted_choices = sorted({str(choice) for choice in choices})
    by_lower_case = {choice.lower(): choice for choice in reversed(sorted_choices)}
    matches = difflib.get_close_matches(lower_name, by_lower_case, n=count, cutoff=0.5)
    return [by_lower_case[match] for match in matches]


def unknown(what: str, name: object, choices: Iterable[str]) -> str:
    """The sentence for a name that does not exist, with the nearest names or all of them.

    name: may be any value of a user's file, such as a number.
    """
    text = str(name)
    shown = text[:LONGEST_NAME] + ("..." if len(text) > LONGEST_NAME else "")
    shown = shown if shown.isprintable() else repr(shown)[1:-1]
    sorted_choices = sorted({str(choice) for choice in choices})
    near = nearest(name, sorted_choices)
    if near:
        return f"unknown {what} '{shown}'; did you mean {' or '.join(repr(n) for n in near)}?"
    first_names = ", ".join(sorted_choices[:20]) + (", ..." if len(sorted_choices) > 20 else "")
    return f"unknown {what} '{shown}'; there are: {first_names or 'none'}"
