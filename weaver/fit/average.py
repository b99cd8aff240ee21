"""The exponential moving average of a network's weights (EMA).

The average is validated and exported in place of the weights.

PyTorch's torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn is not used, for these
reasons. Its decay is constant; ours starts small, so that the random start has little effect. Its
first update copies the network. With use_buffers it averages counters too; without, it copies the
running statistics of normalisations. Its state has other names and a counter, so that checkpoints
of earlier trials would not load. Once our decay has reached its final value, both updates are
equal.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a network that contains the moving average of its weights and running statistics.

    After step t (from 0) they become d * average + (1 - d) * network with d = min(decay, (1 + t) /
    (10 + t)). The smaller d of the first steps reduces the weight of the random start. Tensors that
    are not floating-point (counters) are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """Start with a copy of the network's weights; `decay` is the final value of d."""
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average after step number `step` of `network`."""
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
        """Return the average, with the names of the network's own state_dict."""
        return self.network.state_dict()
