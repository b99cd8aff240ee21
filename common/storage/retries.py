"""Retry a request after a temporary failure, with growing pauses."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from time import sleep
from typing import TypeVar

from common.errors import StorageError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 20.0)
"""Longest pause before each further attempt, in seconds: about half a minute in all."""
QUICK_PAUSES = (1.0, 1.0)
"""The same within `quick`, where a user waits for a table."""
_quick = threading.Event()

Result = TypeVar("Result")


class PassingError(StorageError):
    """A temporary failure: a lost connection, an overloaded server."""


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Repeat failed requests twice only within the block, in all threads."""
    _quick.set()
    try:
        yield
    finally:
        _quick.clear()


def s3_attempts() -> int:
    """Return how often boto3 sends a request; it makes pauses of its own between them."""
    return 1 + len(QUICK_PAUSES) if _quick.is_set() else 9


def retry(request: Callable[[], Result]) -> Result:
    """Return the request's result; repeat it up to len(PAUSES) times if it raises PassingError.

    The pauses are random, so that many readers do not repeat their requests at the same moment.
    """
    for longest in QUICK_PAUSES if _quick.is_set() else PAUSES:
        try:
            return request()
        except PassingError:
            sleep(random.uniform(0, longest))
    return request()
