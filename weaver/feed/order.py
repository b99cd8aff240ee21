"""The order of an epoch's jets: a permutation by seed and epoch, also of more jets than memory or a
slow disk likes.

A data set of less than WHOLE_BYTES is permuted as a whole. A larger one is shuffled in two stages:
it is cut into blocks of neighbouring jets, the blocks are permuted, and the jets of `ROUND` blocks
at a time (a round) are permuted among each other. So a batch mixes jets from hundreds of places all
over the files, while the disk reads whole blocks, each once an epoch, and what has to be in memory
is one round, in the page cache, and the numbers of its jets. Which way is taken depends on the data
set alone, not on the machine, so that a training continues elsewhere with the order it began with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

# less than that stays in the page cache of any machine that trains: reading here and there is then
# free
WHOLE_BYTES = 4 * 2**30
BLOCK_BYTES = 4 * 2**20  # long enough that a disk, or a network's, reads it at full speed
# blocks that are mixed: 1 GiB in the page cache, and far more jets than correlations between
# neighbours reach
ROUND = 256


class Order(Protocol):
    """An epoch's jets, in order."""

    def part(self, start: int, stop: int) -> np.ndarray:
        """Their positions in the data set from place `start` up to `stop`, int64.

        Asked for from the front to the back.
        """


class Listed:
    """An order that is written out."""

    def __init__(self, jets: np.ndarray) -> None:
        self.jets = jets

    def part(self, start: int, stop: int) -> np.ndarray:
        return self.jets[start:stop]


class InFileOrder:
    """`count` of `total` jets, evenly spread, in the order of the data set."""

    def __init__(self, count: int, total: int) -> None:
        self.count, self.total = count, total

    def part(self, start: int, stop: int) -> np.ndarray:
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
        self.count, self.total, self.key, self.block, self.read_ahead = (
            count,
            total,
            key,
            block,
            read_ahead,
        )
        self.blocks = np.random.default_rng(key).permutation(-(-count // block))
        sizes = np.minimum(block, count - self.blocks * block)
        starts = np.arange(0, len(self.blocks), ROUND)
        self.ends = np.cumsum(np.add.reduceat(sizes, starts))
        """Place behind the last jet of each round."""
        self._round, self._jets = -1, np.empty(0, np.int64)

    def part(self, start: int, stop: int) -> np.ndarray:
        parts = [np.empty(0, np.int64)]
        while start < min(stop, self.count):
            number = int(np.searchsorted(self.ends, start, side="right"))
            first = int(self.ends[number - 1]) if number else 0
            parts.append(self._of_round(number)[start - first : stop - first])
            start += len(parts[-1])
        return np.concatenate(parts)

    def _of_round(self, number: int) -> np.ndarray:
        if number != self._round:
            follows = number and number == self._round + 1  # its blocks are then being read already
            for start, stop in [
                *([] if follows else self._bounds(number)),
                *self._bounds(number + 1),
            ]:
                self.read_ahead(
                    int(spread(start, self.count, self.total)),
                    int(spread(stop - 1, self.count, self.total)) + 1,
                )
            places = np.concatenate(
                [np.arange(start, stop) for start, stop in self._bounds(number)]
            )
            chosen = np.random.default_rng([*self.key, number]).permutation(places)
            self._round, self._jets = number, spread(chosen, self.count, self.total)
        return self._jets

    def _bounds(self, number: int) -> list[tuple[int, int]]:
        """First place and place behind the last, in the order of the data set, of each block of a
        round.
        """
        blocks = self.blocks[number * ROUND : (number + 1) * ROUND]
        return [
            (int(block) * self.block, min((int(block) + 1) * self.block, self.count))
            for block in blocks
        ]


def spread(places: np.ndarray | int, count: int, total: int) -> np.ndarray | int:
    """The positions in a data set of `total` jets of `count` that are evenly spread over it, given
    their places 0 to count - 1.
    """
    return places * total // count
