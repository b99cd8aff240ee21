"""Batches of one epoch after another: shuffled by seed, shared out to ranks, made in a thread.

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
from common.machine import memory_limit, memory_room
from weaver.config.weights import Sampler
from weaver.feed.dataset import Batch, Dataset, Gathered
from weaver.feed.order import BlockShuffle, InFileOrder, Listed, Order, block_of, spread
from weaver.feed.resident import Resident, fits, padded_bytes
from weaver.read.ahead import ahead

AHEAD = 3  # batches made ahead: enough to bridge a hiccup of the disk
SHARE_OF_ROOM = 0.2  # of the memory that a container's limit leaves, for the batches made ahead
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
    jets as a whole; by default the size of the data set, and a container's memory, decide.
    in_memory: keep all jets ready on the device; by default done on a GPU where they fit, and not
    on a CPU. Raises InputError for values that make no sense.
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
        """Check the sizes and choose the order of jets. Raises InputError."""
        if batch_size < 1 or not 0 < fraction <= 1 or not 0 <= rank < world_size:
            raise InputError(
                f"batch size {batch_size} must be at least 1, data fraction {fraction} above 0 and"
                f" at most 1, {rank=} below {world_size=}"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.device = str(device)
        if block is None:
            block = block_of(len(dataset), dataset.nbytes, memory_limit())
        self.block = block
        self._chosen = max(round(len(dataset) * fraction), 1)
        self._sampler: Sampler | None = None
        if shuffle and dataset.data_config.weight_use == "sampling":
            weights = dataset.weights()
            if self._chosen < len(dataset):
                weights = weights[spread(np.arange(self._chosen), self._chosen, len(dataset))]
            self._sampler = Sampler(weights)
        self.num_jets = self._sampler.size if self._sampler else self._chosen
        """Jets of an epoch, over all ranks."""
        whole, rest = divmod(self.num_jets, batch_size * world_size)
        self._batches = whole + (rest > 0 and not drop_last)
        if not self._batches:
            ranks = f" ({batch_size} on each of {world_size} ranks)" if world_size > 1 else ""
            raise InputError(
                f"{self.num_jets:,} training jets do not fill one batch of"
                f" {batch_size * world_size:,}{ranks}; choose a smaller --batch-size"
            )
        if drop_last:
            self.num_jets = self._batches * batch_size * world_size
        if in_memory is None:
            in_memory = self.device.startswith("cuda") and fits(dataset, self.device)
        self._resident = Resident(dataset, self.device) if in_memory else None
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
        batches = range(start_batch, len(self))
        if self._resident is not None:
            yield from self._resident_batches(self._resident, order, batches)
            return

        def gather() -> Iterator[tuple[Gathered, int]]:
            for batch in batches:
                jets, real = self._jets(order, batch)
                gathered = self.dataset.gather(jets)
                pinned = self.device.startswith("cuda")
                yield (gathered.pin_memory() if pinned else gathered), real

        with contextlib.closing(ahead(gather(), self._depth(), "loader")) as ready:
            started = time.perf_counter()
            for gathered, real in ready:
                self.wait_seconds += time.perf_counter() - started
                yield self._weighted(self.dataset.finish(gathered, self.device), real)
                started = time.perf_counter()

    def _depth(self) -> int:
        """Batches made ahead: fewer, but at least one, where large ones would fill the memory."""
        room = memory_room()
        if room is None:
            return AHEAD
        batch_bytes = self.batch_size * padded_bytes(self.dataset) / len(self.dataset)
        return min(AHEAD, max(int(SHARE_OF_ROOM * room / batch_bytes), 1))

    def _resident_batches(
        self, resident: Resident, order: Order, batches: range
    ) -> Iterator[Batch]:
        """Batches cut out of larger gathers, made without a thread.

        A batch by itself is too small for its gather to occupy more than one core.
        """
        for first in batches[::TOGETHER]:
            parts = []
            for number in range(first, min(first + TOGETHER, batches.stop)):
                parts.append(self._jets(order, number))
            together = resident.batch(np.concatenate([jets for jets, _ in parts]))
            start = 0
            for jets, real in parts:
                yield self._weighted(together[start : start + len(jets)], real)
                start += len(jets)

    def _order(self, number: int) -> Order:
        """Positions of the epoch's jets."""
        chosen = self._chosen
        total = len(self.dataset)
        key = [self.seed, number]
        if not self.shuffle:
            return InFileOrder(chosen, total)
        if self._sampler:
            drawn = self._sampler.draw(np.random.default_rng([*key, DRAWING]))
            return Listed(spread(np.random.default_rng(key).permutation(drawn), chosen, total))
        if self.block:
            return BlockShuffle(
                chosen, total, key=key, block=self.block, read_ahead=self.dataset.read_ahead
            )
        places = spread(np.arange(chosen), chosen, total)
        return Listed(np.random.default_rng(key).permutation(places))

    def _jets(self, order: Order, number: int) -> tuple[np.ndarray, int]:
        """This rank's jets of a global batch, and how many of them are real.

        The others are repeats that fill it up: all ranks have batches of the same size.
        """
        step = self.batch_size * self.world_size
        jets = order.part(number * step, (number + 1) * step)
        # the first `rest` ranks take one jet more
        each, rest = divmod(len(jets), self.world_size)
        start = self.rank * each + min(self.rank, rest)
        mine = jets[start : start + each + (self.rank < rest)]
        size = each + (rest > 0)
        return np.concatenate([mine, np.repeat(jets[:1], size - len(mine))]), len(mine)

    def _weighted(self, batch: Batch, real: int) -> Batch:
        """The batch with weight 1 for jets that were drawn by weight, and 0 for repeats."""
        if self._sampler:
            batch.weights.fill_(1)
        if real < len(batch):
            batch.weights[real:] = 0
        return batch
