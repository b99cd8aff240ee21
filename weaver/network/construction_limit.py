"""Limit the size of a network while it is built, because a wrong option may ask for 10^11 layers.

To build such a network, only to see whether it can be built, would never end: also not on torch's
meta device, where weights take no memory.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import resource
from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import InputError
from weaver.network.network_file import NetworkFile, check_is_module, num_parameters

MOST_PARTS = 50_000
"""Modules, weights and buffers of a network; the largest published ones have some thousands."""
MOST_BYTES = 4 * 2**30
"""Address space that construction may take in addition to what the process already has."""
MAX_TRAINABLE_PARAMETERS = 10_000_000_000
"""With gradients and the two moments of Adam these take 160 GB, more than any GPU has."""


@dataclasses.dataclass
class ConstructionLimit:
    """The limit that a construction has exceeded, in words; empty if none."""

    excess: str = ""


@contextlib.contextmanager
def limit_construction(uri: str, *, limits_memory: bool = True) -> Iterator[ConstructionLimit]:
    """Limit the modules, weights and memory of a network that the block builds.

    Args:
        uri: Address of the network file, for errors.
        limits_memory: Whether to limit the memory. If so, compute nothing in the block: threads and
            GPUs take address space of their own.

    Yields:
        An object whose `excess` says which limit an InputError of this function is about.

    Raises:
        InputError: Above MOST_PARTS or MOST_BYTES.
    """
    from torch.nn.modules import module as hooks

    limit = ConstructionLimit()
    parts = 0

    def count(*_: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > MOST_PARTS:
            limit.excess = f"more than {MOST_PARTS:,} layers and weights"
            raise InputError(f"{uri}: get_model makes {limit.excess}; make it smaller")

    handles = [
        hooks.register_module_module_registration_hook(count),
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        with _limit_memory() if limits_memory else contextlib.nullcontext():
            yield limit
    except InputError as error:
        if isinstance(error.__cause__, MemoryError):
            limit.excess = f"more than {MOST_BYTES / 2**30:.0f} GiB of memory"
            raise InputError(f"{uri}: get_model takes {limit.excess}") from None
        raise
    finally:
        for handle in handles:
            handle.remove()


def check_size(network: NetworkFile, data_config: Any, options: Mapping[str, object]) -> int:
    """Build the network on torch's meta device, and return its number of parameters.

    It takes no memory for weights and leaves torch's random numbers as they are. The number is 0
    for a network that cannot be built there, because it uses numbers while it is built, and for one
    whose sizes follow from its first jets (torch.nn.LazyLinear).

    Args:
        network: The network file. It is imported again afterwards, because its own tensors may be
            on the meta device too.
        data_config: Data config that get_model gets a copy of.
        options: Options of the network, of which get_model gets a copy.

    Raises:
        InputError: If the network is too large to be built or trained.
    """
    import torch

    limit = ConstructionLimit()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            limit_construction(network.uri) as limit,
            torch.device("meta"),
        ):
            model, _ = network.build(copy.deepcopy(data_config), copy.deepcopy(dict(options)))
    except InputError:
        if limit.excess:
            raise
        return 0
    finally:
        network.forget_module()
    check_is_module(network.uri, model)
    if any(isinstance(tensor, torch.nn.UninitializedParameter) for tensor in model.parameters()):
        return 0
    size = num_parameters(model)
    if size > MAX_TRAINABLE_PARAMETERS:
        raise InputError(
            f"{network.uri}: the network has {size:.3g} parameters, more than"
            f" {MAX_TRAINABLE_PARAMETERS:.0e}, which no GPU can train; make it smaller"
        )
    return size


@contextlib.contextmanager
def _limit_memory() -> Iterator[None]:
    """Make allocations beyond MOST_BYTES raise MemoryError within the block."""
    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most_bytes = psutil.Process().memory_info().vms + MOST_BYTES
    if soft != resource.RLIM_INFINITY and soft <= most_bytes:
        yield  # the process already has a stricter limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
