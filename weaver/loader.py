"""Batches of one epoch after another: shuffled by seed, shared out to ranks, made ahead by a thread.

The order of an epoch depends on seed and number alone, so that a run that was interrupted goes on in the middle of an epoch with
the very batches it would have seen. Threads serve better than worker processes here: gathering a batch releases Python's lock, and
nothing passes through /dev/shm, which is small in pods.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import numpy as np

from common.errors import InputError
from weaver.dataset import Batch, Dataset

AHEAD = 3  # batches made ahead: enough to bridge a hiccup of the disk, few enough to cost no memory
POLL_SECONDS = 0.1  # how soon the thread notices that nobody wants its batches any more


class Loader:
    """Batches of a data set for one rank.

    Each epoch sees each jet once. Global batch i holds `batch_size * world_size` jets of the epoch's order; rank r takes its r-th
    part, so that several ranks follow one rank with the larger batch. The last global batch is shared out evenly; a rank whose part
    is short fills it up with jets of weight 0, so that all ranks have equally many batches of equal size.

    fraction: use this share of the jets, evenly spread over the data, the same in each epoch and for each seed (trials see the same
    data). drop_last: leave out a last global batch that is not full.
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
    ) -> None:
        if batch_size < 1 or not 0 < fraction <= 1 or not 0 <= rank < world_size:
            raise InputError(
                f"batch size {batch_size} must be at least 1, data fraction {fraction} above 0 and at most 1, {rank=} below {world_size=}"
            )
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.rank, self.world_size, self.device = rank, world_size, str(device)
        self.num_jets = max(round(len(dataset) * fraction), 1)
        """Jets of an epoch, over all ranks."""
        whole, rest = divmod(self.num_jets, batch_size * world_size)
        self._batches = whole + (rest > 0 and not drop_last)
        if not self._batches:
            raise InputError(f"{self.num_jets} jets do not fill one batch of {batch_size * world_size}; choose a smaller batch size")
        self.wait_seconds = 0.0
        """Time that training has spent waiting for data, over all epochs."""

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        return self._batches

    def epoch(self, number: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from `start_batch` on. Closing the iterator early ends its thread."""
        order = self._order(number)
        ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        stopped = threading.Event()
        thread = threading.Thread(target=self._fill, args=(ready, stopped, order, start_batch), name="loader", daemon=True)
        thread.start()
        try:
            for _ in range(start_batch, len(self)):
                started = time.perf_counter()
                item = ready.get()
                self.wait_seconds += time.perf_counter() - started
                if isinstance(item, BaseException):
                    raise item
                yield item if self.device == "cpu" else item.to(self.device)
        finally:
            stopped.set()
            thread.join()

    def _order(self, number: int) -> np.ndarray:
        """Positions of the epoch's jets, in order."""
        jets = np.arange(self.num_jets) * len(self.dataset) // self.num_jets
        return np.random.default_rng([self.seed, number]).permutation(jets) if self.shuffle else jets

    def _fill(self, ready: queue.Queue, stopped: threading.Event, order: np.ndarray, start_batch: int) -> None:
        try:
            for number in range(start_batch, len(self)):
                if not _put(ready, self._batch(order, number), stopped):
                    return
        except BaseException as error:  # whatever it is belongs to the consumer, who would wait for ever otherwise
            _put(ready, error, stopped)

    def _batch(self, order: np.ndarray, number: int) -> Batch:
        step = self.batch_size * self.world_size
        mine, real = self._part(order[number * step : (number + 1) * step])
        batch = self.dataset.batch(mine)
        batch.weights[real:] = 0
        return batch.pin_memory() if self.device.startswith("cuda") else batch

    def _part(self, jets: np.ndarray) -> tuple[np.ndarray, int]:
        """This rank's jets of a global batch, and how many of them are real; the others are repeats that fill it up."""
        size = -(-len(jets) // self.world_size)
        first, rest = divmod(len(jets), self.world_size)
        start = self.rank * first + min(self.rank, rest)
        mine = jets[start : start + first + (self.rank < rest)]
        return np.concatenate([mine, np.repeat(jets[:1], size - len(mine))]), len(mine)


def _put(ready: queue.Queue, item: Batch | BaseException, stopped: threading.Event) -> bool:
    """Hand over an item; False if the consumer has gone."""
    while not stopped.is_set():
        try:
            ready.put(item, timeout=POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
