"""Seed the random numbers of a training step by its number.

So a resumed run draws the same random numbers as an uninterrupted one.
"""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch

RandomState = dict[str, Any]
"""Library -> state of its generator, as tensors and plain values, which torch.load with
weights_only accepts."""


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step on one rank."""
    return (seed * 1_000_003 + step) * 1_009 + rank


def seed_all(seed: int) -> None:
    """Seed the generators that a network may use: PyTorch's (all devices), Python's and NumPy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # a network file may use the global generator


def state() -> RandomState:
    """Return the states of these generators."""
    # legacy: NumPy returns a tuple rather than a dict
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    states: RandomState = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        # torch.load with weights_only accepts tensors, but no NumPy arrays
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore(states: RandomState) -> None:
    """Set the generators to a state that `state` returned."""
    torch.set_rng_state(states["torch"])
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    # a trial may be resumed on a machine with other GPUs
    if torch.cuda.is_available() and len(states.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
