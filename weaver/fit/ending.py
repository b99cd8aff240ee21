"""The rule that decides when a training has ended.

The training and programs that only read its files both use it. Imports no torch.
"""

from __future__ import annotations


def has_ended(num_epochs: int, patience: int | None, epochs: int, best_epoch: int) -> bool:
    """Return whether a training has had its last epoch, or `patience` epochs without improvement.

    epochs: how many it has had. best_epoch: the number of the best one, from 0, or -1.
    """
    epochs_since_best = epochs - 1 - best_epoch
    out_of_patience = bool(patience) and epochs > 0 and epochs_since_best >= (patience or 0)
    return epochs >= num_epochs or out_of_patience
