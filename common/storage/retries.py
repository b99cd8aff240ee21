"""Retry a request after a temporary failure, with growing pauses."""

from __future__ import annotations

import random
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from common.errors import StorageError

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 20.0)
"""Longest pause before each further attempt, in seconds: about half a minute in all."""

Result = TypeVar("Result")


class PassingError(StorageError):
    """A temporary failure: a lost connection, an overloaded server."""


def retry(request: Callable[[], Result]) -> Result:
    """Return the request's result; repeat it up to len(PAUSES) times if it raises PassingError.

    The pauses are random, so that many readers do not repeat their requests at the same moment.
    """
    for longest in PAUSES:
        try:
            return request()
        except PassingError:
            sleep(random.uniform(0, longest))
    return request()
