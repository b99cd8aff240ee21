"""Write TensorBoard's files for one trial.

They contain losses, learning rate, speed and a histogram of responses for each epoch, and the
trial's settings with its best result. For a distant address the files are written to a temporary
folder and uploaded after each epoch.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from common import scratch, storage
from common.storage import space

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

    from weaver.fit.metrics_log import EpochRecord

# Numbers of the training, which TensorBoard shows apart from the metrics of the validation.
SPEEDS = ("learning_rate", "jets_per_second")
TEMPORARY = "jec-tensorboard-"
LARGEST_RESPONSE = 3.0  # a few wrongly matched jets would otherwise stretch the axis


class TensorBoard:
    """Write to a folder, s3:// or root:// address; do nothing if that is empty.

    Use as a context manager.
    """

    def __init__(self, uri: str, first_epoch: int = 0) -> None:
        """Nothing is written where `uri` is empty; epochs before `first_epoch` are kept."""
        self.uri = uri
        self.first_epoch = first_epoch
        self.writer: SummaryWriter | None = None
        self.folder = uri
        self._open = contextlib.ExitStack()

    def __enter__(self) -> TensorBoard:
        """Open the writer, where there is an address. Raises FullDiskError."""
        if not self.uri:
            return self
        from torch.utils.tensorboard import SummaryWriter

        with contextlib.ExitStack() as stack:
            if not storage.is_local(self.uri):
                # a folder in it, so that other files, such as its lock, are not uploaded
                self.folder = str(stack.enter_context(scratch.folder(TEMPORARY)) / "events")
            stack.enter_context(_hide_full_disk_traceback())
            stack.enter_context(space.catch_full_disk(self.folder))
            # purge_step hides the records of an interrupted run about epochs that are now repeated
            self.writer = SummaryWriter(self.folder, purge_step=self.first_epoch or None)
            stack.callback(self.writer.close)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        """Close the writer and remove the temporary folder. Raises FullDiskError."""
        self._open.__exit__(*error)

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
        if self.folder != self.uri:
            storage.upload(self.folder, self.uri)


@contextlib.contextmanager
def _hide_full_disk_traceback() -> Iterator[None]:
    """Leave out the traceback of TensorBoard's thread that writes, where its disk is full.

    The writer raises the same error at its next call.
    """
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        error = arguments.exc_value
        if not (isinstance(error, OSError) and error.errno in space.FULL):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
