"""What an evaluation reads of a run's folder: its records, and its test jets."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.config import AUTO
from common.layout import RunFolder
from common.records import (
    EpochRecord,
    ExportRecord,
    MetricsRecord,
    SearchRecord,
    ServiceRecord,
    TrialOptions,
    find_history,
)
from common.run import Run
from physics.response import Floats
from reporting.report import Documents
from weaver.config.expressions import Expression

if TYPE_CHECKING:
    from weaver.config.data_config import DataConfig

Columns: TypeAlias = Mapping[str, NDArray[Any]]
"""Observers of the test jets: name -> one number a jet, (N,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """The records of a run before its evaluation; all but the run itself may be missing."""

    run: Run
    search: SearchRecord | None
    trial: str | None
    """The trial that was exported; None where no search is recorded."""
    history: Sequence[EpochRecord]
    options: TrialOptions | None
    export: ExportRecord | None
    service: ServiceRecord | None

    @property
    def data_fraction(self) -> float:
        """The share of the training jets that the exported trial was trained on."""
        settings = (self.options.train_options if self.options else None) or {}
        return float(settings.get("data_fraction", self.run.config.data_fraction))

    def documents(self, metrics: MetricsRecord) -> Documents:
        """What the report is made of."""
        return Documents(
            metrics=metrics,
            run=self.run,
            search=self.search,
            history=self.history,
            options=self.options,
            export=self.export,
            service=self.service,
        )


def read_inputs(uri: str, trial: str = AUTO) -> Inputs:
    """The records of the run in the folder `uri`.

    trial: the one that was exported, 'auto' for the search's best. Raises InputError without a
    run.json, or where a record is not of its form.
    """
    folder = RunFolder(uri)
    run = Run.load(uri)
    search = SearchRecord.find(folder.search)
    name: str | None = trial
    if trial == AUTO:
        name = search.optimal if search else None
    return Inputs(
        run=run,
        search=search,
        trial=name,
        history=find_history(folder.history(name)) if name else [],
        options=TrialOptions.find(folder.options(name)) if name else None,
        export=ExportRecord.find(folder.export),
        service=ServiceRecord.find_readable(folder.service),
    )


class Batch(Protocol):
    """Some jets as a network takes them."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Name -> tensor, (jets, ...)."""

    @property
    def observers(self) -> Mapping[str, Any]:
        """Observer -> (jets,)."""


class TestSet(Protocol):
    """The test jets of a run (weaver.feed.dataset.Dataset)."""

    @property
    def data_config(self) -> DataConfig:
        """The data config, with the standardisation of the inputs."""

    def __len__(self) -> int:
        """Return the number of jets."""

    def observers(self) -> Columns:
        """The observers that the data config lists."""

    def label(self, name: str) -> NDArray[Any]:
        """One label of all jets, (N,) or (N, k)."""

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The jets of these numbers."""


def open_test_set(uri: str) -> TestSet:
    """The test jets of the run in the folder `uri`, prepared before."""
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset

    folder = RunFolder(uri)
    return Dataset.open(folder.data("test"), DataConfig.load(folder.data_config))


def label_values(labels: Mapping[str, str], columns: Columns, test: TestSet) -> Floats | None:
    """A model's one label for the test jets, (N,); None where it cannot be told.

    It is what its expression gives for the observers, or what the test set holds under the same
    expression.
    """
    if len(labels) != 1:
        return None
    ((name, text),) = labels.items()
    expression = Expression(text, "label")
    if set(expression.names) <= set(columns):
        from weaver.read.jagged import evaluate

        with np.errstate(all="ignore"):
            values: Floats = np.asarray(evaluate(expression, columns), dtype=np.float64)
        return values
    own = test.data_config.functions.get(name)
    if own is not None and own.text == text and name in test.data_config.label_names:
        return test.label(name)
    return None
