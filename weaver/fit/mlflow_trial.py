"""MLflow for one trial: its parameters, and the metrics of each epoch, while it trains.

The environment names the server and the run (common.tracking). The search logs once more, at its
end, what a trial could not.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from common import storage, tracking
from common.errors import InterruptedRun
from weaver.fit.metrics_log import EpochRecord

if TYPE_CHECKING:
    from weaver.fit.options import TrainOptions

TRAIN_OPTIONS = ("start_lr", "optimizer", "num_epochs", "batch_size", "data_fraction", "seed")
"""Options of every trial that are logged as parameters, beside those of its network."""


class MlflowTrial:
    """Logs to the server that the environment names; does nothing where it names none.

    Use as a context manager. A server that fails is left alone for the rest of the training.
    """

    def __init__(self, trial_uri: str, parameters: Mapping[str, object], *, used: bool) -> None:
        """Take the trial's folder, whose name is the trial's, and its parameters."""
        self.name = storage.name(trial_uri.rstrip("/"))
        self.parameters = parameters
        self.used = used
        self._tracker: tracking.Tracker | None = None
        self._id = ""

    def __enter__(self) -> MlflowTrial:
        """Begin the trial's run on the server, or go on in it."""
        if self.used:
            with tracking.tolerated(self._give_up, CONSEQUENCE):
                self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Tell the server how the training ended."""
        status = "FINISHED"
        if kind is not None:
            stopped = issubclass(kind, InterruptedRun | KeyboardInterrupt)
            status = "KILLED" if stopped else "FAILED"
        if tracker := self._tracker:
            with tracking.tolerated(self._give_up, CONSEQUENCE):
                tracker.set_status(self._id, status)

    def epochs(self, history: Sequence[EpochRecord]) -> None:
        """Log the epochs that are not logged yet."""
        if tracker := self._tracker:
            with tracking.tolerated(self._give_up, CONSEQUENCE):
                tracker.log_epochs(self._id, history)

    def _begin(self) -> None:
        tracker = tracking.of_environment()
        if tracker is None:
            return
        self._id = tracker.trial(self.name)
        tracker.set_status(self._id, "RUNNING")
        tracker.log_parameters(self._id, self.parameters)
        self._tracker = tracker

    def _give_up(self, warning: str) -> None:
        self._tracker = None
        print(warning, file=sys.stderr, flush=True)


CONSEQUENCE = "the training goes on, and the search logs this trial when it has ended"


def parameters_of(options: TrainOptions) -> dict[str, Any]:
    """The parameters of a trial, by the names that they have in a search space."""
    values = {name: getattr(options, name) for name in TRAIN_OPTIONS}
    values |= options.network_option
    return {name.replace("_", "-"): value for name, value in values.items()}
