"""What a training writes to its disk, known before it begins."""

from __future__ import annotations

from pathlib import Path

from common import storage
from common.storage import space
from common.storage.addresses import local_path

NUMBER = 4  # bytes of a float32, in which weights are kept whatever the precision
OPTIMIZER = 2  # numbers that Adam and its kin keep of each weight
CHECKPOINTS = 3  # checkpoint.pt, the one before it, and the one that is being written
WEIGHTS = 3  # best.pt, the same weights for weaver-core, and one of them that is being written
RECORDS = 10**6  # bytes of history, metrics and logs


def trial_bytes(parameters: int, *, averages: bool = False, epoch_files: int = 0) -> int:
    """Bytes of all files of a training, at the time when they are most.

    parameters: of the network. averages: whether it keeps an average of the weights (--ema-decay).
    epoch_files: files of one epoch's weights that it keeps.
    """
    weights = NUMBER * parameters
    checkpoint = weights * (1 + OPTIMIZER + averages)
    return CHECKPOINTS * checkpoint + (WEIGHTS + epoch_files) * weights + RECORDS


def require(trial_uri: str, needed: int) -> None:
    """Raise StorageError where a trial's disk has less room than it needs.

    Files that the trial has already count as room, because they are replaced.
    """
    if not storage.is_local(trial_uri):
        return
    folder = Path(local_path(trial_uri))
    present = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    space.require(folder, max(needed - present, 0), "this training (checkpoints and weights)")
