"""How much memory an evaluation needs, compared with what this process may use.

The numbers were measured as anonymous memory (RssAnon) with 919,000 test jets, all observers that
are measured, a network with three quantiles and a residual correction, boosted trees and a
baseline. docs/reliability.md gives them to users.
"""

from __future__ import annotations

from common.machine import memory_room
from common.storage.space import size_text
from physics.boosted_trees import MOST_JETS

FIXED_BYTES = 120 * 10**6
"""scikit-learn and one batch of the model. The process has loaded torch before."""
FIGURES_BYTES = 100 * 10**6
"""The figures of the report, which are drawn when the measurements are done."""
BYTES_PER_TEST_JET = 220
"""All responses, groups and outputs, and the sorted jets of one calibration. It was 206."""
BYTES_PER_TREES_JET = 300
"""Columns of a training or validation jet of the boosted trees, in float64 and in bins."""


def needed_bytes(num_test: int, num_train: int, num_val: int) -> int:
    """Return the memory that an evaluation needs beside that of its imports.

    Args:
        num_test: Test jets.
        num_train: Jets for the training of the boosted trees, of which at most MOST_JETS are used.
        num_val: Their validation jets, likewise.
    """
    of_trees = BYTES_PER_TREES_JET * (min(num_train, MOST_JETS) + min(num_val, MOST_JETS))
    # The trees are trained first, then the test jets are measured, then the figures are drawn.
    return FIXED_BYTES + max(of_trees, BYTES_PER_TEST_JET * num_test, FIGURES_BYTES)


def memory_warning(num_test: int, num_train: int, num_val: int) -> str:
    """Return a warning if this process may use less memory than the evaluation needs.

    It is empty if the memory suffices, or if nothing limits it. Arguments: as in needed_bytes.
    """
    room = memory_room()
    needed = needed_bytes(num_test, num_train, num_val)
    if room is None or needed <= room:
        return ""
    return (
        f"warning: the evaluation of {num_test:,} test jets needs about {size_text(needed)} more"
        f" memory, and this process may use {size_text(room)} more; if it is killed, increase the"
        " limit (--memory on a cluster, docker run --memory), or give fewer files to --data-test"
    )
