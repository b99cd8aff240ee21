"""The checked options of `python -m exporting.export`."""

from __future__ import annotations

import dataclasses
import re

from common.choices import RAW_MODELS
from common.config import quantity
from common.errors import InputError, unknown
from common.layout import RAW_SUFFIX, RunFolder

AUTO_SIZE = 0  # value of --max-batch-size that means: measure
# Memory of one model: two of them and the server fit into the 4 GiB of the service.
BUDGET = "1Gi"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """A request to export a trial: its run, its name and its options."""

    run: str
    """URI of the run's folder."""
    trial: str
    """Name of the trial whose best checkpoint is exported."""
    name: str
    """Name of the model, its folder in the repository and its service on a cluster."""
    opset: int
    max_batch_size: int = AUTO_SIZE
    memory_budget: str = BUDGET
    raw_model: str = RAW_MODELS[0]

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: If an option is invalid.
        """
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", self.name):
            raise InputError(
                f"'{self.name}' cannot name a service: use lower-case letters, digits and '-', a"
                " letter first, at most 63"
            )
        if self.max_batch_size < AUTO_SIZE:
            raise InputError(
                f"--max-batch-size must be at least 1, or {AUTO_SIZE} to measure it; it is"
                f" {self.max_batch_size}"
            )
        if self.raw_model not in RAW_MODELS:
            raise InputError(f"--raw-model: {unknown('choice', self.raw_model, RAW_MODELS)}")
        quantity("memory-budget", self.memory_budget)

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.run)

    @property
    def raw_name(self) -> str:
        """Name of the model that takes raw jets."""
        return f"{self.name}{RAW_SUFFIX}"
