"""The one exception tree, and the words of an error.

    JecError                     reported as one clear sentence, without a traceback (exit code 1)
    ├── InputError               refused before work starts: the input cannot be used (exit code 2)
    │   ├── DamagedFile          a data file cannot be read to its end      (weaver.read.opening)
    │   ├── MissingFile          a web server has no such file        (common.storage.http)
    │   ├── WebPage              a web page came in place of data     (common.storage.http)
    │   ├── AuthError            no valid login for Kubeflow                (operations.auth)
    │   └── NoCluster            no Kubernetes cluster is configured        (clusters.api)
    ├── StorageError             the storage did not do as asked
    │   └── PassingError         ... for a reason that may pass       (common.storage.retries)
    ├── ClusterError             a job, an experiment or a service did not end well
    │   ├── DeadlineError        ... within its deadline
    │   ├── NoNodeError          no node takes a service's pods  (clusters.kubernetes_service)
    │   ├── UnreachableError     nobody answers at an address (yet)
    │   │   └── Unreachable      ... of a model server                      (serving.client)
    │   ├── NotServing           a model server answers, but not for this model  (serving.client)
    │   ├── ServerEnded          a model server ended before it was ready        (serving.triton)
    │   ├── PortInUse            another process has the port that was asked for (serving.triton)
    │   └── _Refused             a model server refuses a request           (serving.client)
    ├── TrainingError            training cannot go on and would fail again in the same way
    ├── GateError                a finished model did not pass a gate
    ├── StepFailed               a step of a local run ended with an error  (components.host_runner)
    └── InterruptedRun           stopped by the user or by the system (exit code 130)

Two exceptions outside the tree never reach a user: Unusual (weaver.read.root.root_tree: this file
is left to uproot) and _PortTakenError (serving.triton: another port is tried).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*@")
SIGNATURE = re.compile(
    r"([?&][\w.%-]*(?:sig|signature|token|credential|authz?|bearer|jwt|passw(?:or)?d|secret|api_?key"
    r"|access_?key)=)[^&\s'\"]+",
    re.IGNORECASE,
)
"""A parameter of an address that opens the door: a presigned one's signature, a token."""


def without_secrets(text: str) -> str:
    """The text without the passwords and signatures of the addresses in it."""
    return SIGNATURE.sub(r"\1...", PASSWORD.sub("", text))


class JecError(Exception):
    """Base of all errors whose text is meant to be read by the user, without a traceback."""

    exit_code = 1
    retryable = False
    """Whether another attempt may succeed, although nobody has changed anything."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class InputError(JecError):
    """What the user gave cannot be used; nothing was started."""

    exit_code = 2


class StorageError(JecError):
    """A read or write in the storage failed, in spite of the client's own retries."""

    retryable = True


class ClusterError(JecError):
    """A job, an experiment or a service failed.

    The text gives the reason that its pods or processes gave.
    """


class DeadlineError(ClusterError):
    """A wait ended by its deadline; the text says what was waited for."""


class UnreachableError(ClusterError):
    """Nobody answers at that address (yet)."""

    retryable = True


class TrainingError(JecError):
    """Training failed for a reason that will repeat.

    Such as a non-finite loss, or an option that the network refuses.
    """


class GateError(JecError):
    """A finished model did not pass a gate (parity, resolution, closure)."""


class InterruptedRun(JecError):
    """The run was told to stop."""

    exit_code = 130


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """The names among `choices` that look most like `name`, best first; empty if none does."""
    known = sorted({str(choice) for choice in choices})
    lowered = {choice.lower(): choice for choice in reversed(known)}
    found = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)
    return [lowered[match] for match in found]


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """The sentence for a name that does not exist, with the nearest names or all of them."""
    known = sorted({str(choice) for choice in choices})
    near = nearest(name, known)
    if near:
        return f"unknown {what} '{name}'; did you mean {' or '.join(repr(n) for n in near)}?"
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return f"unknown {what} '{name}'; there are: {listed or 'none'}"
