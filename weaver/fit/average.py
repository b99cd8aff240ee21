"""The exponential moving average of a network's weights (EMA): validated and exported in place of
the weights themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Average:
    """A copy of a network whose weights and running statistics follow the network's.

    After step t (from 0) they become d * average + (1 - d) * network with d = min(decay, (1 + t) /
    (10 + t)): the first steps count little, so that the random start is soon forgotten. What is no
    floating-point number (counters) is copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow `network`, which has just made step number `step`."""
        mine, others = list(self.network.state_dict().values()), list(network.state_dict().values())
        moving = [tensor.is_floating_point() for tensor in mine]
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged = [tensor for tensor, moves in zip(mine, moving, strict=True) if moves]
        torch._foreach_lerp_(
            averaged,
            [tensor for tensor, moves in zip(others, moving, strict=True) if moves],
            weight,
        )
        for tensor, other, moves in zip(mine, others, moving, strict=True):
            if not moves:
                tensor.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state)
