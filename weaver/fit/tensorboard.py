"""Write TensorBoard's files for one trial.

They contain losses, learning rate, speed and a histogram of responses for each epoch, and the
trial's settings with its best result. For a distant address the files are written to a temporary
folder and uploaded after each epoch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from common import storage

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from weaver.fit.metrics_log import EpochRecord

# Numbers of the training, which TensorBoard shows apart from the metrics of the validation.
SPEEDS = ("learning_rate", "jets_per_second")
LARGEST_RESPONSE = 3.0  # a few wrongly matched jets would otherwise stretch the axis


class TensorBoard:
    """Write to a folder, s3:// or root:// address; do nothing if that is empty.

    Use as a context manager.
    """

    def __init__(self, uri: str, first_epoch: int = 0) -> None:
        """Open the writer, unless `uri` is empty; events from `first_epoch` on are replaced."""
        self.uri = uri
        self.writer: SummaryWriter | None = None
        self.temporary: tempfile.TemporaryDirectory | None = None
        if not uri:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.folder = uri
        if not storage.is_local(uri):
            self.temporary = tempfile.TemporaryDirectory()
            self.folder = self.temporary.name
        # purge_step hides the events of an interrupted run for epochs that are now repeated
        self.writer = SummaryWriter(self.folder, purge_step=first_epoch or None)

    def __enter__(self) -> TensorBoard:
        """Return itself."""
        return self

    def __exit__(self, *_) -> None:
        """Close the writer and remove the temporary folder."""
        if self.writer:
            self.writer.close()
        if self.temporary:
            self.temporary.cleanup()

    def epoch(self, record: EpochRecord, responses: torch.Tensor) -> None:
        """Add an epoch's scalars and the responses (N,) of its validation jets."""
        if not self.writer:
            return
        epoch = record["epoch"]
        self.writer.add_scalar("loss/train", record["train_loss"], epoch)
        self.writer.add_scalar("loss/validation", record["val_loss"], epoch)
        for name, value in record["metrics"].items():
            tag = name if name in SPEEDS else f"validation/{name}"
            self.writer.add_scalar(tag, value, epoch)
        finite = responses[responses.isfinite()]
        if len(finite):
            self.writer.add_histogram(
                "validation/response", finite.clamp(0.0, LARGEST_RESPONSE), epoch
            )
        self._store(self.writer)

    def settings(self, options: Mapping[str, Any], best_metric: float) -> None:
        """Add the trial's settings and best validation loss, for TensorBoard's table of trials."""
        if not self.writer:
            return
        # the table accepts only these types
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
        }
        self.writer.add_hparams(plain, {"best/loss": best_metric}, run_name=".")
        self._store(self.writer)

    def _store(self, writer: SummaryWriter) -> None:
        writer.flush()
        if self.temporary:
            storage.upload(self.folder, self.uri)
