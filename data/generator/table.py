"""Tables of arrays: particles, candidates, inputs of a clustering, variables of jets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Table:
    """A dataclass whose fields are arrays (N,) or tables of N rows.

    One row is a particle, a candidate or a jet.
    """

    def __getitem__(self, rows: np.ndarray) -> Self:
        """Return the rows of an index array or a mask, in its order."""
        columns = [getattr(self, field.name)[rows] for field in dataclasses.fields(self)]
        return type(self)(*columns)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts, one part after the other."""
        columns = []
        for field in dataclasses.fields(cls):
            values = [getattr(part, field.name) for part in parts]
            join = values[0].join if isinstance(values[0], Table) else np.concatenate
            columns.append(join(values))
        return cls(*columns)
