"""Random numbers of a step: from its number alone, so that a resumed run draws what one that was
never stopped draws.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of one step on one rank."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def seed_all(seed: int) -> None:
    """Seed every generator that a network may draw from:

    PyTorch's (all devices), Python's and NumPy's.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # a network file may use the global generator


def state() -> dict[str, Any]:
    """The state of those generators as tensors and plain values, which torch.load takes with
    weights_only.
    """
    name, keys, *rest = np.random.get_state()
    found = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    return {**found, "cuda": torch.cuda.get_rng_state_all()} if torch.cuda.is_available() else found


def restore(stored: Mapping[str, Any]) -> None:
    """Set the generators to a state that `state` returned."""
    torch.set_rng_state(stored["torch"])
    version, internal, gauss = stored["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = stored["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if len(stored.get("cuda", ())) == torch.cuda.device_count() and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(stored["cuda"])
