"""The exponential moving average of a network's weights (EMA).

It is validated and exported in place of the weights themselves.

torch.optim.swa_utils has one too (AveragedModel with get_ema_multi_avg_fn), which is not used for
these reasons. Its decay is constant, where ours rises, so that the random start is soon forgotten.
Its first update copies the network. With use_buffers it averages counters too, and without it it
copies the running statistics of normalisations. Its state has names and a counter of its own, so
that checkpoints of earlier trials would not load. Once our decay has risen, both updates are the
same.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a network whose weights and running statistics follow the network's.

    After step t (from 0) they become d * average + (1 - d) * network with d = min(decay, (1 + t) /
    (10 + t)): the first steps count little, so that the random start is soon forgotten. What is no
    floating-point number (counters) is copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Begin with a copy of the network's weights."""
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follow `network`, which has just made step number `step`."""
        averages: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        states = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        for average, value in states:
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        # one kernel for all tensors
        torch._foreach_lerp_(averages, values, weight)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The state of the averaged network, under the network's own names."""
        return self.network.state_dict()
