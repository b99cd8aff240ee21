"""Log one trial to MLflow while it trains: its parameters, and the metrics of each epoch.

The environment names the server and the run (common.tracking). If a trial could not log something,
the search logs it at its end.
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
    """Log to the server that the environment names; without one do nothing.

    Use as a context manager. After a failure of the server nothing more is logged.
    """

    def __init__(
        self, trial_uri: str, parameters: Mapping[str, object], *, is_active: bool
    ) -> None:
        """Take the trial's folder, which has the trial's name, and its parameters.

        is_active: False logs nothing, for all ranks but the main one.
        """
        self.name = storage.name(trial_uri.rstrip("/"))
        self.parameters = parameters
        self.is_active = is_active
        self._tracker: tracking.Tracker | None = None
        self._id = ""

    def __enter__(self) -> MlflowTrial:
        """Start or resume the trial's run on the server."""
        if self.is_active:
            with tracking.tolerate_failures(self._give_up, CONSEQUENCE):
                self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Set the run's status on the server: FINISHED, FAILED or KILLED."""
        status = "FINISHED"
        if kind is not None:
            was_stopped = issubclass(kind, InterruptedRun | KeyboardInterrupt)
            status = "KILLED" if was_stopped else "FAILED"
        if tracker := self._tracker:
            with tracking.tolerate_failures(self._give_up, CONSEQUENCE):
                tracker.set_status(self._id, status)

    def epochs(self, history: Sequence[EpochRecord]) -> None:
        """Log the epochs that are not logged yet."""
        if tracker := self._tracker:
            with tracking.tolerate_failures(self._give_up, CONSEQUENCE):
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


CONSEQUENCE = "the training continues, and the search logs this trial when it has ended"


def parameters_of(options: TrainOptions) -> dict[str, Any]:
    """Return the parameters of a trial, by the names that they have in a search space."""
    values = {name: getattr(options, name) for name in TRAIN_OPTIONS}
    values |= options.network_option
    return {name.replace("_", "-"): value for name, value in values.items()}
