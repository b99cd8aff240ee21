"""`_logger`, at the path where network files written for weaver-core import it from."""

from __future__ import annotations

import logging
from typing import Any


class _Logger:
    """The logger "weaver"; the keyword `color` of weaver-core's methods has no effect."""

    # No subclass of logging.Logger: that refuses an unknown keyword.
    def __init__(self) -> None:
        self.logger = logging.getLogger("weaver")

    def debug(self, message: Any, *values: Any, color: str | None = None) -> None:
        self.logger.debug(message, *values)

    def info(self, message: Any, *values: Any, color: str | None = None) -> None:
        self.logger.info(message, *values)

    def warning(self, message: Any, *values: Any, color: str | None = None) -> None:
        self.logger.warning(message, *values)

    def error(self, message: Any, *values: Any, color: str | None = None) -> None:
        self.logger.error(message, *values)


_logger = _Logger()
