"""Load the batches of each epoch: shuffled by seed, divided among ranks, prepared in a thread.

The order of an epoch depends only on the seed and its number, so that an interrupted run resumes in
the middle of an epoch with the same batches. A thread is better than worker processes: gathering a
batch releases Python's lock, and no data passes through /dev/shm, which is small in pods.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import numpy as np

from common.errors import InputError
from common.machine import memory_limit, memory_room
from weaver.config.weights import Sampler
from weaver.feed.dataset import Batch, Dataset, UnpaddedBatch
from weaver.feed.order import BlockShuffle, ExplicitOrder, InFileOrder, Order, block_of, spread
from weaver.feed.resident import Resident, fits, padded_bytes
from weaver.read.ahead import ahead

AHEAD = 3  # batches prepared in advance: enough for a short delay of the disk, with little memory
SHARE_OF_ROOM = 0.2  # largest fraction of a container's free memory for these batches
# batches gathered at a time from memory: enough to use two cores, few enough to fit in their cache
GATHER_BATCHES = 8
SAMPLING_KEY = 1  # gives the sampling of an epoch other random numbers than its shuffling


class Loader:
    """Batches of a data set for one rank.

    An epoch contains each jet once. Global batch i has `batch_size * world_size` jets in the
    epoch's order, and rank r takes its r-th part. So several ranks train as one rank with a larger
    batch. The last global batch is divided evenly; shorter parts are padded with jets of weight 0,
    so that all ranks have the same number of batches of the same size.

    If the data config has weights for sampling, a shuffled epoch is a sample by these weights
    instead (weaver/config/weights.py), in which each copy of a jet has weight 1.

    batch_size: jets on each rank. fraction: use this fraction of the jets, evenly spread over the
    data, the same in each epoch and for each seed, so that all trials use the same data.
    drop_last: leave out a last global batch that is not full. block: jets in a block of the
    two-stage shuffle (weaver/feed/order.py); 0 permutes all jets; default: by the size of the data
    set and the memory limit of a container. in_memory: keep all jets, padded, on the device;
    default: on a GPU if they fit.
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
        """Check the arguments. Raises InputError for values that make no sense."""
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
        self._subset_size = max(round(len(dataset) * fraction), 1)
        self._sampler: Sampler | None = None
        if shuffle and dataset.data_config.weight_use == "sampling":
            weights = dataset.weights()
            if self._subset_size < len(dataset):
                weights = weights[
                    spread(np.arange(self._subset_size), self._subset_size, len(dataset))
                ]
            self._sampler = Sampler(weights)
        self.num_jets = self._sampler.size if self._sampler else self._subset_size
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
        """Time that training has waited for data, over all epochs."""

    def __len__(self) -> int:
        """Return the number of this rank's batches in an epoch."""
        return self._batches

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `number`, from `start_batch` on.

        Closing the iterator early ends its thread.
        """
        order = self._order(number)
        batches = range(start_batch, len(self))
        if self._resident is not None:
            yield from self._resident_batches(self._resident, order, batches)
            return

        def gather() -> Iterator[tuple[UnpaddedBatch, int]]:
            for batch in batches:
                jets, real = self._jets(order, batch)
                unpadded = self.dataset.gather(jets)
                use_pinned_memory = self.device.startswith("cuda")
                yield (unpadded.pin_memory() if use_pinned_memory else unpadded), real

        with contextlib.closing(ahead(gather(), self._depth(), "loader")) as ready:
            start_time = time.perf_counter()
            for unpadded, real in ready:
                self.wait_seconds += time.perf_counter() - start_time
                yield self._set_weights(self.dataset.finish(unpadded, self.device), real)
                start_time = time.perf_counter()

    def _depth(self) -> int:
        """Return the number of batches to prepare in advance; at least 1, if memory is short."""
        room = memory_room()
        if room is None:
            return AHEAD
        batch_bytes = self.batch_size * padded_bytes(self.dataset) / len(self.dataset)
        return min(AHEAD, max(int(SHARE_OF_ROOM * room / batch_bytes), 1))

    def _resident_batches(
        self, resident: Resident, order: Order, batches: range
    ) -> Iterator[Batch]:
        """Yield batches as slices of larger ones, without a thread.

        Gathering a single batch would use only one core.
        """
        for first in batches[::GATHER_BATCHES]:
            parts = []
            for number in range(first, min(first + GATHER_BATCHES, batches.stop)):
                parts.append(self._jets(order, number))
            large_batch = resident.batch(np.concatenate([jets for jets, _ in parts]))
            start = 0
            for jets, real in parts:
                yield self._set_weights(large_batch[start : start + len(jets)], real)
                start += len(jets)

    def _order(self, number: int) -> Order:
        """Return the positions of the epoch's jets."""
        size = self._subset_size
        total = len(self.dataset)
        key = [self.seed, number]
        if not self.shuffle:
            return InFileOrder(size, total)
        if self._sampler:
            sample = self._sampler.draw(np.random.default_rng([*key, SAMPLING_KEY]))
            return ExplicitOrder(
                spread(np.random.default_rng(key).permutation(sample), size, total)
            )
        if self.block:
            return BlockShuffle(
                size, total, key=key, block=self.block, read_ahead=self.dataset.read_ahead
            )
        places = spread(np.arange(size), size, total)
        return ExplicitOrder(np.random.default_rng(key).permutation(places))

    def _jets(self, order: Order, number: int) -> tuple[np.ndarray, int]:
        """Return this rank's jets of a global batch, and how many of them are not padding.

        Padding repeats a jet, so that all ranks have batches of the same size.
        """
        step = self.batch_size * self.world_size
        jets = order.part(number * step, (number + 1) * step)
        # the first `rest` ranks take one jet more
        each, rest = divmod(len(jets), self.world_size)
        start = self.rank * each + min(self.rank, rest)
        mine = jets[start : start + each + (self.rank < rest)]
        size = each + (rest > 0)
        return np.concatenate([mine, np.repeat(jets[:1], size - len(mine))]), len(mine)

    def _set_weights(self, batch: Batch, real: int) -> Batch:
        """Set the weights of a batch: 1 for jets that were sampled by weight, 0 for padding."""
        if self._sampler:
            batch.weights.fill_(1)
        if real < len(batch):
            batch.weights[real:] = 0
        return batch
