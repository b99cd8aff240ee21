"""Estimate the device memory of a training step before it runs out.

Autograd stores most results of the forward pass for the backward pass. Their size is measured on a
few jets and is proportional to the batch size. An edge convolution stores two numbers for each
edge, feature and layer: a ParticleNet with 3 blocks of 3 layers of 50 features and 16 neighbours
stores 5.2 MiB a jet in float32 and 2.7 MiB in bfloat16, one with 5 layers of 200 features 36 MiB
and 18 MiB.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from weaver.feed.dataset import Dataset
from weaver.feed.resident import free_bytes
from weaver.network.precision import Precision

SAMPLE = 4  # jets to measure with, which takes milliseconds
# ratio of peak memory, with gradients and work space, to autograd's: 1.6 measured for ParticleNet
# in float32, 1.8 in bfloat16
PEAK_FACTOR = 1.7


def autograd_bytes(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], precision: Precision
) -> int:
    """Return the number of bytes that autograd stores for one forward pass in training mode.

    inputs: of a few jets, on the CPU. The model and the random state do not change.
    """
    # address -> bytes, because several operations may store the same tensor
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
    ):
        twin = copy.deepcopy(model).cpu().train()
        own = {parameter.untyped_storage().data_ptr() for parameter in twin.parameters()}
        with precision.autocast(torch.device("cpu")):
            answer = twin(*inputs)
        del answer
    return sum(size for pointer, size in sizes.items() if pointer not in own)


def warning(
    model: torch.nn.Module,
    dataset: Dataset,
    batch_size: int,
    precision: Precision,
    device: torch.device,
) -> str | None:
    """Warn if a step of `batch_size` jets will probably not fit into the device's memory.

    None if it will fit, or if that cannot be measured.
    """
    batch = dataset.batch(np.arange(min(SAMPLE, len(dataset))))
    inputs = tuple(batch.inputs[name] for name in dataset.data_config.input_names)
    try:
        a_jet = PEAK_FACTOR * autograd_bytes(model, inputs, precision) / max(len(batch), 1)
    # a network that runs on a GPU only, or not with so few jets
    except (RuntimeError, ValueError):
        return None
    free = free_bytes(device)
    if a_jet * batch_size <= free:
        return None
    fits = max(int(free / a_jet), 1)
    return (
        f"warning: a step of {batch_size} jets of this network needs about"
        f" {a_jet * batch_size / 2**30:.1f} GiB in {precision.name}, and {free / 2**30:.1f} GiB are"
        f" free on {device}; about {fits} jets would fit: a smaller --batch-size, fewer or narrower"
        " layers, or --precision bf16 take less"
    )
