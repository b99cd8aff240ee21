"""When a training has ended: one rule for the training and for those who read its files.

Imports no torch.
"""

from __future__ import annotations


def has_ended(num_epochs: int, patience: int | None, epochs: int, best_epoch: int) -> bool:
    """Whether a training has had its last epoch, or `patience` epochs without a better loss.

    epochs: how many it has had; best_epoch: the number of the best one, from 0 up, or -1.
    """
    waited = epochs - 1 - best_epoch
    out_of_patience = bool(patience) and epochs > 0 and waited >= (patience or 0)
    return epochs >= num_epochs or out_of_patience
