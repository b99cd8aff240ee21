"""What a training step needs of the device's memory, known before it runs out.

Autograd keeps most of what a forward pass computes until the backward pass has used it. That is
measured on a few jets and scales with the batch. An edge convolution keeps two numbers for each
edge, feature and layer: the ParticleNet of 3 blocks of 3 layers of 50 features with 16 neighbours
keeps 5.2 MiB a jet in float32 and 2.7 in bfloat16, one of 5 layers of 200 features 36 and 18.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from weaver.feed.dataset import Dataset
from weaver.feed.resident import free_bytes
from weaver.network.precision import Precision

SAMPLE = 4  # jets to measure on: milliseconds
# peak memory over what is kept, for gradients and work space: 1.6 measured for ParticleNet in
# float32, 1.8 in bfloat16
BEYOND = 1.7


def kept_bytes(
    model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], precision: Precision
) -> int:
    """Bytes that autograd keeps of one forward pass in training mode.

    Leaves the model and the random numbers as they are.
    """
    # by address: several operations may keep the same tensor
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
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
    return sum(size for pointer, size in kept.items() if pointer not in own)


def warning(
    model: torch.nn.Module,
    dataset: Dataset,
    batch_size: int,
    precision: Precision,
    device: torch.device,
) -> str | None:
    """A line to show where a step of `batch_size` jets will probably not fit the device's memory.

    None where it will fit.
    """
    batch = dataset.batch(np.arange(min(SAMPLE, len(dataset))))
    inputs = tuple(batch.inputs[name] for name in dataset.data_config.input_names)
    try:
        a_jet = BEYOND * kept_bytes(model, inputs, precision) / max(len(batch), 1)
    # a network that runs on a GPU only, or not on so few jets: training itself will tell
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
