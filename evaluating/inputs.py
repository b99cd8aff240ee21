"""Read the records and the test jets of a run for its evaluation."""

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
"""Observers of the test jets by name: one number a jet, (N,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecords:
    """Records of a run before its evaluation; all but the run itself may be missing."""

    run: Run
    search: SearchRecord | None
    trial: str | None
    """The exported trial; None where no search is recorded."""
    history: Sequence[EpochRecord]
    options: TrialOptions | None
    export: ExportRecord | None
    service: ServiceRecord | None

    @property
    def data_fraction(self) -> float:
        """Return the fraction of the training jets on which the exported trial was trained."""
        settings = (self.options.train_options if self.options else None) or {}
        return float(settings.get("data_fraction", self.run.config.data_fraction))

    def documents(self, metrics: MetricsRecord) -> Documents:
        """Return the records that the report is made of."""
        return Documents(
            metrics=metrics,
            run=self.run,
            search=self.search,
            history=self.history,
            options=self.options,
            export=self.export,
            service=self.service,
        )


def read_records(uri: str, trial: str = AUTO) -> RunRecords:
    """Read the records of the run in the folder `uri`.

    Args:
        uri: Folder of the run.
        trial: The exported trial, or 'auto' for the best of the search.

    Raises:
        InputError: If there is no run.json, or a record does not have its form.
    """
    folder = RunFolder(uri)
    run = Run.load(uri)
    search = SearchRecord.find(folder.search)
    name: str | None = trial
    if trial == AUTO:
        name = search.optimal if search else None
    return RunRecords(
        run=run,
        search=search,
        trial=name,
        history=find_history(folder.history(name)) if name else [],
        options=TrialOptions.find(folder.options(name)) if name else None,
        export=ExportRecord.find(folder.export),
        service=ServiceRecord.find_readable(folder.service),
    )


class Batch(Protocol):
    """Some jets as inputs of a network."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Tensors by name, (jets, ...)."""

    @property
    def observers(self) -> Mapping[str, Any]:
        """Observers by name, (jets,)."""


class TestSet(Protocol):
    """The test jets of a run (weaver.feed.dataset.Dataset)."""

    @property
    def data_config(self) -> DataConfig:
        """The data config, with the standardisation of the inputs."""

    def __len__(self) -> int:
        """Return the number of jets."""

    def observers(self) -> Columns:
        """Return the observers that the data config lists."""

    def label(self, name: str) -> NDArray[Any]:
        """Return a label of all jets, (N,) or (N, k)."""

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """Return the jets with these indices, (n,), in their order."""


def open_prepared_test_set(uri: str) -> TestSet:
    """Open the prepared test jets of the run in the folder `uri`."""
    from weaver.config.data_config import DataConfig
    from weaver.feed.dataset import Dataset

    folder = RunFolder(uri)
    return Dataset.open(folder.data("test"), DataConfig.load(folder.data_config))


def label_values(labels: Mapping[str, str], columns: Columns, test: TestSet) -> Floats | None:
    """Return the label of a model for the test jets, (N,); None if it cannot be computed.

    It is computed from the observers if its expression uses nothing else. Otherwise the test set
    must hold it under the same expression.

    Args:
        labels: Expression of each label of the model.
        columns: Observers of the test jets, (N,) each.
        test: The test jets.
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
