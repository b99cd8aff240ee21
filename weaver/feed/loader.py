"""Batches of one epoch after another: shuffled by seed, shared out to ranks, made ahead by a
thread.

The order of an epoch depends on seed and number alone, so that a run that was interrupted goes on
in the middle of an epoch with the very batches it would have seen. A thread serves better than
worker processes here: gathering a batch releases Python's lock, and nothing passes through
/dev/shm, which is small in pods.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from common.errors import InputError
from weaver.config.weights import Sampler
from weaver.feed.dataset import Batch, Dataset, Gathered
from weaver.feed.order import (
    BLOCK_BYTES,
    WHOLE_BYTES,
    BlockShuffle,
    InFileOrder,
    Listed,
    Order,
    spread,
)
from weaver.feed.resident import Resident, fits
from weaver.read.ahead import ahead

AHEAD = 3  # batches made ahead: enough to bridge a hiccup of the disk, few enough to cost no memory
# batches gathered at a time from memory: enough for two cores to share the work, few enough to stay
# in their cache
TOGETHER = 8
DRAWING = 1  # keeps the random numbers that draw an epoch's jets apart from those that shuffle them


class Loader:
    """Batches of a data set for one rank.

    Each epoch sees each jet once. Global batch i holds `batch_size * world_size` jets of the
    epoch's order; rank r takes its r-th part, so that several ranks follow one rank with the larger
    batch. The last global batch is shared out evenly; a rank whose part is short fills it up with
    jets of weight 0, so that all ranks have equally many batches of equal size.

    Where the data config has weights that are used for sampling, a shuffled epoch is drawn by them
    instead (weaver/config/weights.py): a jet comes as often as its weight says, and counts 1 each
    time.

    fraction: use this share of the jets, evenly spread over the data, the same in each epoch and
    for each seed (trials see the same data). drop_last: leave out a last global batch that is not
    full. block: jets in a block of the two-stage shuffle (weaver/feed/order.py); 0 permutes all
    jets as a whole; by default the size of the data set decides. in_memory: keep all jets ready on
    the device; by default done on a GPU where they fit, and not on a CPU. Raises InputError for
    values that make no sense.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        device: str = "cpu",
        fraction: float = 1.0,
        drop_last: bool = False,
        block: int | None = None,
        in_memory: bool | None = None,
    ) -> None:
        if batch_size < 1 or not 0 < fraction <= 1 or not 0 <= rank < world_size:
            raise InputError(
                f"batch size {batch_size} must be at least 1, data fraction {fraction} above 0 and"
                f" at most 1, {rank=} below {world_size=}"
            )
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.rank, self.world_size, self.device = rank, world_size, str(device)
        self.block = _block(dataset) if block is None else block
        self._chosen = max(round(len(dataset) * fraction), 1)
        self._sampler = (
            self._sampler_of(dataset)
            if shuffle and dataset.data_config.weight_use == "sampling"
            else None
        )
        self.num_jets = self._sampler.size if self._sampler else self._chosen
        """Jets of an epoch, over all ranks."""
        whole, rest = divmod(self.num_jets, batch_size * world_size)
        self._batches = whole + (rest > 0 and not drop_last)
        if not self._batches:
            raise InputError(
                f"{self.num_jets} jets do not fill one batch of {batch_size * world_size}; choose a"
                " smaller batch size"
            )
        if in_memory is None:
            in_memory = self.device.startswith("cuda") and fits(dataset, self.device)
        self._source = Resident(dataset, self.device) if in_memory else dataset
        self.wait_seconds = 0.0
        """Time that training has spent waiting for data, over all epochs."""

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        return self._batches

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from `start_batch` on.

        Closing the iterator early ends its thread.
        """
        order = self._order(number)
        made = (self._gathered(order, batch) for batch in range(start_batch, len(self)))
        if isinstance(self._source, Resident):  # nothing is made in a thread
            yield from self._of_resident(order, start_batch)
            return
        with contextlib.closing(ahead(made, AHEAD, "loader")) as ready:
            started = time.perf_counter()
            for gathered in ready:
                self.wait_seconds += time.perf_counter() - started
                yield self._finished(*gathered)
                started = time.perf_counter()

    def _of_resident(self, order: Order, start_batch: int) -> Iterator[Batch]:
        """Batches cut out of larger gathers: a batch by itself is too small for its gather to
        occupy more than one core.
        """
        for first in range(start_batch, len(self), TOGETHER):
            made = [
                self._jets(order, number)
                for number in range(first, min(first + TOGETHER, len(self)))
            ]
            together = self._source.batch(np.concatenate([jets for jets, _ in made]))
            start = 0
            for jets, real in made:
                yield self._weighted(together[start : start + len(jets)], real)
                start += len(jets)

    def _sampler_of(self, dataset: Dataset) -> Sampler:
        weights = dataset.weights()
        return Sampler(
            weights
            if self._chosen == len(dataset)
            else weights[spread(np.arange(self._chosen), self._chosen, len(dataset))]
        )

    def _order(self, number: int) -> Order:
        """Positions of the epoch's jets."""
        chosen, total, key = self._chosen, len(self.dataset), [self.seed, number]
        if not self.shuffle:
            return InFileOrder(chosen, total)
        if self._sampler:
            drawn = self._sampler.draw(np.random.default_rng([*key, DRAWING]))
            return Listed(spread(np.random.default_rng(key).permutation(drawn), chosen, total))
        if self.block:
            return BlockShuffle(
                chosen, total, key=key, block=self.block, read_ahead=self.dataset.read_ahead
            )
        return Listed(
            np.random.default_rng(key).permutation(spread(np.arange(chosen), chosen, total))
        )

    def _jets(self, order: Order, number: int) -> tuple[np.ndarray, int]:
        """This rank's jets of a global batch, and how many of them are real."""
        step = self.batch_size * self.world_size
        return self._part(order.part(number * step, (number + 1) * step))

    def _gathered(self, order: Order, number: int) -> tuple[Gathered, int]:
        """This rank's jets of a global batch, as far as the thread makes them, and how many are
        real.
        """
        mine, real = self._jets(order, number)
        gathered = self._source.gather(mine)
        return (gathered.pin_memory() if self.device.startswith("cuda") else gathered), real

    def _finished(self, gathered: Gathered, real: int) -> Batch:
        return self._weighted(self._source.finish(gathered, self.device), real)

    def _weighted(self, batch: Batch, real: int) -> Batch:
        """The batch with its weights: 1 where the jets were drawn by them, 0 where they only fill
        it up.
        """
        if self._sampler:
            batch.weights.fill_(1)
        if real < len(batch):
            batch.weights[real:] = 0
        return batch

    def _part(self, jets: np.ndarray) -> tuple[np.ndarray, int]:
        """This rank's jets of a global batch, and how many of them are real; the others are repeats
        that fill it up.
        """
        size = -(-len(jets) // self.world_size)
        first, rest = divmod(len(jets), self.world_size)
        start = self.rank * first + min(self.rank, rest)
        mine = jets[start : start + first + (self.rank < rest)]
        return np.concatenate([mine, np.repeat(jets[:1], size - len(mine))]), len(mine)


def _block(dataset: Dataset) -> int:
    """Jets in a block of the shuffle, 0 where the data set is small enough to be permuted as a
    whole.
    """
    if dataset.nbytes <= WHOLE_BYTES:
        return 0
    return max(round(BLOCK_BYTES * len(dataset) / dataset.nbytes), 1)
