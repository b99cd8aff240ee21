"""Estimate the disk space of a training, and check before it starts that there is enough."""

from __future__ import annotations

from pathlib import Path

from common import storage
from common.storage import space
from common.storage.addresses import local_path

NUMBER = 4  # bytes of a float32; weights are stored as such with every precision
OPTIMIZER = 2  # numbers that Adam and similar optimizers store for each weight
CHECKPOINTS = 3  # checkpoint.pt, the one before it, and a temporary file
WEIGHTS = 3  # best.pt, the same weights for weaver-core, and a temporary file
RECORDS = 10**6  # bytes of history, metrics and logs


def trial_bytes(parameters: int, *, averages: bool = False, epoch_files: int = 0) -> int:
    """Return the largest number of bytes of all files of a training together.

    parameters: number of the network's parameters. averages: whether the training keeps an average
    of the weights (--ema-decay). epoch_files: number of epochs whose weights it keeps.
    """
    weights = NUMBER * parameters
    checkpoint = weights * (1 + OPTIMIZER + averages)
    return CHECKPOINTS * checkpoint + (WEIGHTS + epoch_files) * weights + RECORDS


def require_for_training(trial_uri: str, num_bytes: int) -> None:
    """Raise StorageError if a trial's local disk has fewer than `num_bytes` bytes free.

    Existing files of the trial count as free, because they will be replaced.
    """
    if not storage.is_local(trial_uri):
        return
    folder = Path(local_path(trial_uri))
    present = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    space.require_free(
        folder, max(num_bytes - present, 0), "this training (checkpoints and weights)"
    )
