"""Random numbers of a step, which depend on its number alone.

So a resumed run draws what one that was never stopped draws.
"""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch

RandomState = dict[str, Any]
"""States of the generators, by library: tensors and plain values, as torch.load takes them with
weights_only."""


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step on one rank."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def seed_all(seed: int) -> None:
    """Seed every generator that a network may draw from.

    They are PyTorch's (on all devices), Python's and NumPy's.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # a network file may use the global generator


def state() -> RandomState:
    """The state of those generators."""
    # the older of NumPy's two forms, a tuple
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    states: RandomState = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        # torch.load with weights_only takes tensors, but no arrays
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore(stored: RandomState) -> None:
    """Set the generators to a state that `state` returned."""
    torch.set_rng_state(stored["torch"])
    version, internal, gauss = stored["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = stored["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    # a trial may be resumed on a machine with other GPUs
    if torch.cuda.is_available() and len(stored.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(stored["cuda"])
