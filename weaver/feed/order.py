"""The order of an epoch's jets: a permutation by seed and epoch, for data sets of any size.

A data set of less than WHOLE_BYTES is permuted as a whole. A larger one is shuffled in two stages:
it is cut into blocks of neighbouring jets, the blocks are permuted, and the jets of `ROUND` blocks
at a time (a round) are permuted among each other. So a batch mixes jets from hundreds of places all
over the files, while the disk reads whole blocks, each once an epoch, and what has to be in memory
is one round, in the page cache, and the numbers of its jets. Which way is taken depends on the data
set alone, not on the machine, so that a training continues elsewhere with the order it began with.

A container with little memory is the exception: its limit counts the page cache too, and a round
that does not fit is read over and over (82 jets/s in place of thousands, with 6 GB of jets below a
limit of 600 MB). There blocks are as much smaller, and a data set counts as large earlier, as
`block_of` says. Replicas and restarts of a trial have the same limit. Where a training resumes
below another one, the rest of the epoch that was interrupted is drawn from a new order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

# less than that stays in the page cache of any machine that trains: reading here and there is then
# free
WHOLE_BYTES = 4 * 2**30
BLOCK_BYTES = 4 * 2**20  # long enough that a disk, or a network's, reads it at full speed
LEAST_BLOCK_BYTES = 64 * 2**10
# Of a memory limit, for the round in use and the one that is read ahead: a program that trains
# takes several hundred MB by itself. The default of --memory, 12Gi, leaves BLOCK_BYTES as they are.
SHARE_OF_LIMIT = 1 / 6
# blocks that are mixed: 1 GiB in the page cache, and far more jets than correlations between
# neighbours reach
ROUND = 256


def block_of(jets: int, nbytes: int, memory_limit: int | None) -> int:
    """Jets of a block for a data set of this size; 0 where it is permuted as a whole.

    memory_limit: bytes that this process may use, page cache included; None without a limit.
    """
    whole_bytes, block_bytes = WHOLE_BYTES, BLOCK_BYTES
    if memory_limit is not None:
        room = memory_limit * SHARE_OF_LIMIT
        whole_bytes = min(whole_bytes, int(2 * room))
        block_bytes = min(block_bytes, max(int(room / (2 * ROUND)), LEAST_BLOCK_BYTES))
    if nbytes <= whole_bytes:
        return 0
    return max(round(block_bytes * jets / nbytes), 1)


Places = TypeVar("Places", int, np.ndarray)


class Order(Protocol):
    """An epoch's jets, in order."""

    def part(self, start: int, stop: int) -> np.ndarray:
        """Their positions in the data set from place `start` up to `stop`, int64.

        Called for one part after the other, from the front to the back.
        """


class Listed:
    """An order that is written out."""

    def __init__(self, jets: np.ndarray) -> None:
        """Take the positions of the jets; (N,)."""
        self.jets = jets

    def part(self, start: int, stop: int) -> np.ndarray:
        """See Order."""
        return self.jets[start:stop]


class InFileOrder:
    """`count` of `total` jets, evenly spread, in the order of the data set."""

    def __init__(self, count: int, total: int) -> None:
        """Take `count` jets, spread evenly over `total`."""
        self.count = count
        self.total = total

    def part(self, start: int, stop: int) -> np.ndarray:
        """See Order."""
        return spread(np.arange(start, min(stop, self.count)), self.count, self.total)


class BlockShuffle:
    """`count` of `total` jets, evenly spread, shuffled in two stages.

    key: numbers that decide the order (seed and epoch). block: jets in a block. read_ahead: called
    with (first jet, last jet + 1) of each block before its round begins.
    """

    def __init__(
        self,
        count: int,
        total: int,
        *,
        key: list[int],
        block: int,
        read_ahead: Callable[[int, int], None] = lambda start, stop: None,
    ) -> None:
        """Shuffle the blocks of the first `count` of `total` jets; `key` seeds the order."""
        self.count = count
        self.total = total
        self.key = key
        self.block = block
        self.read_ahead = read_ahead
        self.blocks = np.random.default_rng(key).permutation(-(-count // block))
        sizes = np.minimum(block, count - self.blocks * block)
        starts = np.arange(0, len(self.blocks), ROUND)
        self.ends = np.cumsum(np.add.reduceat(sizes, starts))
        """Place behind the last jet of each round."""
        # the round in hand: its number, and the positions of its jets
        self._round = -1
        self._jets = np.empty(0, np.int64)

    def part(self, start: int, stop: int) -> np.ndarray:
        """See Order."""
        parts = [np.empty(0, np.int64)]
        while start < min(stop, self.count):
            number = int(np.searchsorted(self.ends, start, side="right"))
            first = int(self.ends[number - 1]) if number else 0
            parts.append(self._of_round(number)[start - first : stop - first])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _of_round(self, number: int) -> np.ndarray:
        """Positions of the jets of a round, in the order of the epoch."""
        if number == self._round:
            return self._jets
        blocks = self._bounds(number)
        # Blocks of the next round are read while this one is in use; those of this round are being
        # read already if it follows the last one.
        follows = number > 0 and number == self._round + 1
        for start, stop in [*([] if follows else blocks), *self._bounds(number + 1)]:
            last = spread(stop - 1, self.count, self.total)
            self.read_ahead(spread(start, self.count, self.total), last + 1)
        places = np.concatenate([np.arange(start, stop) for start, stop in blocks])
        chosen = np.random.default_rng([*self.key, number]).permutation(places)
        self._round = number
        self._jets = spread(chosen, self.count, self.total)
        return self._jets

    def _bounds(self, number: int) -> list[tuple[int, int]]:
        """Of each block of a round: its first place, and the place behind its last."""
        bounds = []
        for block in self.blocks[number * ROUND : (number + 1) * ROUND].tolist():
            start = block * self.block
            bounds.append((start, min(start + self.block, self.count)))
        return bounds


def spread(places: Places, count: int, total: int) -> Places:
    """The positions of `count` jets that are evenly spread over a data set of `total` jets.

    places: 0 to count - 1, one number or an array.
    """
    return places * total // count
