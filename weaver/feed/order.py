"""The order of an epoch's jets: a permutation by seed and epoch, for data sets of any size.

A data set up to WHOLE_BYTES is permuted as a whole. A larger one is shuffled in two stages. It is
divided into blocks of neighbouring jets; the blocks are permuted; then the jets of `ROUND` blocks
at a time (a round) are permuted together. So a batch contains jets from hundreds of places in the
files, the disk reads whole blocks, each once an epoch, and only one round must be in memory (in the
page cache), with the positions of its jets. The method depends only on the data set, not on the
machine, so that a training resumes on another machine with the same order.

A container with a small memory limit is an exception. The limit includes the page cache, and a
round that does not fit is read again and again (82 jets/s instead of thousands, with 6 GB of jets
and a limit of 600 MB). So `block_of` makes blocks smaller, and shuffles smaller data sets in two
stages. All replicas and restarts of a trial have the same limit. If a training resumes with another
limit, the rest of the interrupted epoch has a new order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

# data sets up to this size stay in the page cache, so that random reads are fast
WHOLE_BYTES = 4 * 2**30
BLOCK_BYTES = 4 * 2**20  # large enough that a local or network disk reads at full speed
LEAST_BLOCK_BYTES = 64 * 2**10
# fraction of a memory limit for the current round and the next one, which is read ahead; the
# training itself takes several hundred MB. With the default of --memory, 12Gi, blocks have
# BLOCK_BYTES.
SHARE_OF_LIMIT = 1 / 6
# blocks of a round: 1 GiB in the page cache, and far more jets than are correlated with neighbours
ROUND = 256


def block_of(jets: int, nbytes: int, memory_limit: int | None) -> int:
    """Return number of jets in a block, for a data set of this size; 0 to permute it as a whole.

    memory_limit: bytes that this process may use, including the page cache; None without a limit.
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
    """The order of an epoch's jets."""

    def part(self, start: int, stop: int) -> np.ndarray:
        """Return positions in the data set, int64, of the jets `start` to `stop` of the epoch.

        Calls must ask for consecutive parts.
        """


class ExplicitOrder:
    """An order that is given as an array."""

    def __init__(self, jets: np.ndarray) -> None:
        """Take the positions of the jets; (N,)."""
        self.jets = jets

    def part(self, start: int, stop: int) -> np.ndarray:
        """See Order."""
        return self.jets[start:stop]


class InFileOrder:
    """The order of the data set, for `count` of `total` jets, evenly spread."""

    def __init__(self, count: int, total: int) -> None:
        """Take `count` jets, spread evenly over `total`."""
        self.count = count
        self.total = total

    def part(self, start: int, stop: int) -> np.ndarray:
        """See Order."""
        return spread(np.arange(start, min(stop, self.count)), self.count, self.total)


class BlockShuffle:
    """A two-stage shuffle of `count` of `total` jets, evenly spread.

    key: numbers that decide the order (seed and epoch). block: jets in a block. read_ahead: called
    with (first jet, last jet + 1) of each block before its round starts.
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
        """Index after the last jet of each round, in the order of the epoch."""
        # the current round: its number, and the positions of its jets
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
        """Return the positions of the jets of a round, in the order of the epoch."""
        if number == self._round:
            return self._jets
        blocks = self._bounds(number)
        # Request the blocks of the next round, and those of this round unless they were requested
        # as the next round before.
        follows = number > 0 and number == self._round + 1
        for start, stop in [*([] if follows else blocks), *self._bounds(number + 1)]:
            last = spread(stop - 1, self.count, self.total)
            self.read_ahead(spread(start, self.count, self.total), last + 1)
        places = np.concatenate([np.arange(start, stop) for start, stop in blocks])
        shuffled = np.random.default_rng([*self.key, number]).permutation(places)
        self._round = number
        self._jets = spread(shuffled, self.count, self.total)
        return self._jets

    def _bounds(self, number: int) -> list[tuple[int, int]]:
        """Return (start, stop) of each block of a round, as indices into the `count` jets."""
        bounds = []
        for block in self.blocks[number * ROUND : (number + 1) * ROUND].tolist():
            start = block * self.block
            bounds.append((start, min(start + self.block, self.count)))
        return bounds


def spread(places: Places, count: int, total: int) -> Places:
    """Return the positions in a data set of `total` jets of `count` evenly spread jets.

    places: indices from 0 to count - 1, an integer or an array.
    """
    return places * total // count
