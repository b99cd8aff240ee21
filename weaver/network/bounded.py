"""Bound the construction of a network: a wrong option may ask for 10^11 layers.

Building such a network to see whether it can be built would never end, even on torch's meta device,
where weights take no memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import resource
from collections.abc import Iterator
from typing import Any

from common.errors import InputError

MOST_PARTS = 50_000
"""Modules, weights and buffers of a network; the largest published ones have some thousands."""
MOST_BYTES = 4 * 2**30
"""Address space that construction may take beyond what the process has."""


@dataclasses.dataclass
class Bound:
    """What a construction exceeded; empty if nothing."""

    exceeded: str = ""


@contextlib.contextmanager
def bounded(uri: str) -> Iterator[Bound]:
    """Raise InputError where the block registers too many parts in modules, or takes too much.

    The caller tells the two from another InputError by `exceeded` of what it yields. For
    construction only: threads that compute take address space of their own.
    """
    from torch.nn.modules import module as hooks

    bound = Bound()
    parts = 0

    def count(*_: Any) -> None:
        nonlocal parts
        parts += 1
        if parts > MOST_PARTS:
            bound.exceeded = f"more than {MOST_PARTS:,} layers and weights"
            raise InputError(f"{uri}: get_model makes {bound.exceeded}; make it smaller")

    handles = [
        hooks.register_module_module_registration_hook(count),
        hooks.register_module_parameter_registration_hook(count),
        hooks.register_module_buffer_registration_hook(count),
    ]
    try:
        with _limited_memory():
            yield bound
    except InputError as error:
        if isinstance(error.__cause__, MemoryError):
            bound.exceeded = f"more than {MOST_BYTES / 2**30:.0f} GiB of memory"
            raise InputError(f"{uri}: get_model takes {bound.exceeded}") from None
        raise
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Within the block, allocations beyond MOST_BYTES raise MemoryError."""
    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + MOST_BYTES
    if soft != resource.RLIM_INFINITY and soft <= limit:
        yield  # a stricter limit is there already
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
