"""A data set in the memory of the training device, padded, from which batches are gathered.

If the data set fits on a GPU, only the positions of a batch's jets are sent to it. --in-memory does
the same in the memory of a CPU.
"""

from __future__ import annotations

import numpy as np
import psutil
import torch

from common.errors import InputError
from common.machine import memory_room
from common.progress import Progress
from weaver.feed.dataset import Batch, Dataset

CHUNK = 8192  # jets copied to the device at a time
# largest fraction of a GPU's free memory; network, gradients and activations need the rest
SHARE = 0.5


class Resident:
    """All jets of a data set on a device; it makes batches as `Dataset` does."""

    def __init__(self, dataset: Dataset, device: str | torch.device) -> None:
        """Load and pad all jets. Raises InputError if they do not fit in a CPU's memory."""
        self.device = torch.device(device)
        num_bytes = padded_bytes(dataset)
        free = free_bytes(self.device)
        if self.device.type == "cpu" and num_bytes > free:
            raise InputError(
                f"{len(dataset):,} padded jets need {num_bytes / 2**30:.1f} GiB of memory, of which"
                f" {free / 2**30:.1f} are free; leave out --in-memory: the jets are then mapped"
                " from disk"
            )
        self._observers = dataset.observers()

        # One batch of all jets, which is filled chunk by chunk.
        batch = dataset.batch(np.arange(min(len(dataset), 1)), self.device)
        self._all = _empty_like(batch, len(dataset))
        label = f"loading jets to {self.device}"
        with Progress(label, total=len(dataset), unit="jets") as progress:
            for start in range(0, len(dataset), CHUNK):
                stop = min(start + CHUNK, len(dataset))
                part = dataset.batch(np.arange(start, stop), self.device)
                for name, tensor in part.inputs.items():
                    self._all.inputs[name][start:stop] = tensor
                for name, tensor in part.labels.items():
                    self._all.labels[name][start:stop] = tensor
                self._all.weights[start:stop] = part.weights
                progress.advance(stop - start)

    def __len__(self) -> int:
        """Return the number of jets."""
        return len(self._all)

    def batch(self, index: np.ndarray) -> Batch:
        """Return the jets at these positions, (n,) int64, as tensors on the device."""
        positions = np.ascontiguousarray(index, np.int64)
        on_device = torch.from_numpy(positions).to(self.device, non_blocking=True)

        def select(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: tensor.index_select(0, on_device) for name, tensor in tensors.items()}

        return Batch(
            inputs=select(self._all.inputs),
            labels=select(self._all.labels),
            observers={name: values[index] for name, values in self._observers.items()},
            weights=self._all.weights.index_select(0, on_device),
        )


def _empty_like(batch: Batch, count: int) -> Batch:
    """Make empty tensors for `count` jets, of the types and shapes in `batch`."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_empty((count, *tensor.shape[1:]))

    return Batch(
        inputs={name: empty(tensor) for name, tensor in batch.inputs.items()},
        labels={name: empty(tensor) for name, tensor in batch.labels.items()},
        observers={},
        weights=empty(batch.weights),
    )


def fits(dataset: Dataset, device: str | torch.device) -> bool:
    """Return whether the padded jets take at most SHARE of the device's free memory."""
    return padded_bytes(dataset) <= SHARE * free_bytes(torch.device(device))


def padded_bytes(dataset: Dataset) -> int:
    """Return the number of bytes of all jets' padded tensors."""
    batch = dataset.batch(np.arange(min(len(dataset), 1)))
    tensors = [*batch.inputs.values(), *batch.labels.values(), batch.weights]
    return len(dataset) * sum(tensor[0].nbytes for tensor in tensors if len(tensor))


def free_bytes(device: torch.device) -> int:
    """Return the free memory, in bytes, of a GPU, or of this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # The page cache counts as free, because the system gives it up if memory is needed.
    free: int = psutil.virtual_memory().available

    room = memory_room()  # below the limit of a container
    return free if room is None else min(free, room)
