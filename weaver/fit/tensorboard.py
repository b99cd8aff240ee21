"""TensorBoard for one trial: losses, rate, speed and a histogram of responses an epoch, and its
settings beside its best result.

TensorBoard reads folders of event files. On S3 the files are made in a temporary folder and
uploaded after each epoch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common import storage

if TYPE_CHECKING:
    import torch

SCALARS = {
    "train_loss": "loss/train",
    "val_loss": "loss/validation",
    "learning_rate": "learning_rate",
    "jets_per_second": "jets_per_second",
}
LARGEST_RESPONSE = 3.0  # a few wrong matches would stretch the axis otherwise


class TensorBoard:
    """Writes to a folder or s3:// address; does nothing where that is empty.

    Use as a context manager.
    """

    def __init__(self, uri: str, first_epoch: int = 0) -> None:
        self.uri, self.writer, self.temporary = uri, None, None
        if not uri:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.temporary = tempfile.TemporaryDirectory() if storage.is_s3(uri) else None
        self.folder = self.temporary.name if self.temporary else uri
        # What an interrupted run wrote about epochs that are now done again is hidden by
        # purge_step.
        self.writer = SummaryWriter(self.folder, purge_step=first_epoch or None)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_) -> None:
        if self.writer:
            self.writer.close()
        if self.temporary:
            self.temporary.cleanup()

    def epoch(self, record: Mapping[str, Any], responses: torch.Tensor) -> None:
        """Add the scalars of one record of the history, and the responses (N,) of
        validation jets.
        """
        if not self.writer:
            return
        for name, tag in SCALARS.items():
            self.writer.add_scalar(tag, record[name], record["epoch"])
        for name, value in record["metrics"].items():
            if name not in SCALARS:
                self.writer.add_scalar(f"validation/{name}", value, record["epoch"])
        shown = responses[responses.isfinite()]
        if len(shown):
            self.writer.add_histogram(
                "validation/response", shown.clamp(0.0, LARGEST_RESPONSE), record["epoch"]
            )
        self._store()

    def settings(self, options: Mapping[str, Any], best_metric: float) -> None:
        """Add the trial's settings and its best validation loss, for TensorBoard's
        table of trials.
        """
        if not self.writer:
            return
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
        }
        self.writer.add_hparams(plain, {"best/loss": best_metric}, run_name=".")
        self._store()

    def _store(self) -> None:
        self.writer.flush()
        if self.temporary:
            storage.upload(self.folder, self.uri)
