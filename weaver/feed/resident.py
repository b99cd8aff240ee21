"""A data set that lives, ready and padded, in the memory of the device that trains on it: a batch
is then one gather there.

On a GPU that the data set fits, nothing but the numbers of a batch's jets crosses the bus. The same
in the memory of a CPU is what `--in-memory` asks for.
"""

from __future__ import annotations

import os

import numpy as np
import torch

from common.errors import InputError
from common.progress import Progress
from weaver.feed.dataset import Batch, Dataset

CHUNK = 8192  # jets moved to the device at a time
# of a GPU's free memory, at most: the network, its gradients and a batch's activations need the
# rest
SHARE = 0.5


class Resident:
    """All jets of a data set on a device; gives batches as `Dataset` does.

    Raises InputError where they do not fit a CPU's memory.
    """

    def __init__(self, dataset: Dataset, device: str | torch.device) -> None:
        self.device = torch.device(device)
        if self.device.type == "cpu" and padded_bytes(dataset) > free_bytes(self.device):
            raise InputError(
                f"{len(dataset):,} padded jets need {padded_bytes(dataset) / 2**30:.1f} GiB of"
                f" memory, of which {free_bytes(self.device) / 2**30:.1f} are free; leave out"
                " --in-memory: the jets are then mapped from disk"
            )
        self._observed = dataset.observers()
        self._all = self._filled(dataset)

    def __len__(self) -> int:
        return len(self._all)

    def batch(self, index: np.ndarray) -> Batch:
        """The jets at these positions (int64) as tensors on the device."""
        there = torch.from_numpy(np.ascontiguousarray(index, np.int64)).to(
            self.device, non_blocking=True
        )
        whole = self._all
        return Batch(
            inputs={name: tensor.index_select(0, there) for name, tensor in whole.inputs.items()},
            labels={name: tensor.index_select(0, there) for name, tensor in whole.labels.items()},
            observers={name: values[index] for name, values in self._observed.items()},
            weights=whole.weights.index_select(0, there),
        )

    def _filled(self, dataset: Dataset) -> Batch:
        whole = _empty_like(
            dataset.batch(np.arange(min(len(dataset), 1)), self.device), len(dataset)
        )
        with Progress(
            f"loading jets to {self.device}", total=len(dataset), unit="jets"
        ) as progress:
            for start in range(0, len(dataset), CHUNK):
                index = np.arange(start, min(start + CHUNK, len(dataset)))
                part = dataset.batch(index, self.device)
                for into, tensors in ((whole.inputs, part.inputs), (whole.labels, part.labels)):
                    for name, tensor in tensors.items():
                        into[name][start : start + len(index)] = tensor
                whole.weights[start : start + len(index)] = part.weights
                progress.advance(len(index))
        return whole


def _empty_like(batch: Batch, count: int) -> Batch:
    """Tensors for `count` jets of the same kinds."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_empty((count, *tensor.shape[1:]))

    return Batch(
        inputs={name: empty(tensor) for name, tensor in batch.inputs.items()},
        labels={name: empty(tensor) for name, tensor in batch.labels.items()},
        observers={},
        weights=empty(batch.weights),
    )


def fits(dataset: Dataset, device: str | torch.device) -> bool:
    """True if the padded jets take at most a share of what is free on the device."""
    return padded_bytes(dataset) <= SHARE * free_bytes(torch.device(device))


def padded_bytes(dataset: Dataset) -> int:
    """Bytes of all jets' tensors."""
    one = dataset.batch(np.arange(min(len(dataset), 1)))
    tensors = [*one.inputs.values(), *one.labels.values(), one.weights]
    return len(dataset) * sum(tensor[0].nbytes for tensor in tensors if len(tensor))


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine or the container that the process runs in."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(
        os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached_bytes(),
        _container_bytes(),
    )


def _cached_bytes() -> int:
    """Page cache that the system would give up, where it tells (Linux)."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return (
            max(int(fields["MemAvailable"].split()[0]) - int(fields["MemFree"].split()[0]), 0)
            * 1024
        )
    except (OSError, KeyError, ValueError):
        return 0


def _container_bytes() -> int:
    """What the container's limit leaves; without bound where there is none (cgroup v2)."""
    try:
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as current,
        ):
            return max(int(limit.read()) - int(current.read()), 0)
    except (OSError, ValueError):  # no such file, or the word "max"
        return 2**62
