"""Losses of a regression of log(genJetPt / jetPt), and the output layer that quantiles need.

In all of them the loss of a jet with |target| >= 1 is zero, because a factor e between generated
and reconstructed pT means a wrong match. Such a jet stays in the denominator of the mean, as in the
published loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from common.errors import InputError

WIDTH = 0.1  # initial distance of two quantiles, about the resolution of a jet's pT


class MaskedLoss(nn.Module):
    """Base of the three losses.

    `reduction` is "mean" or "none" (one value a jet), as in PyTorch's own losses.
    """

    def __init__(self, reduction: str = "mean") -> None:
        """`reduction` is "mean" or "none", as in torch.nn."""
        super().__init__()
        self.reduction = reduction

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss of predictions (N,), (N, 1) or (N, Q) for targets (N,).

        Returns a scalar, or (N,) with the reduction "none". Q is the number of quantiles.
        """
        prediction = prediction.float().reshape(len(target), -1)  # (N, Q)
        loss = torch.where(target.abs() < 1, self.of(prediction, target[:, None]).mean(dim=1), 0.0)
        return loss.mean() if self.reduction == "mean" else loss

    def of(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss of each output, (N, Q) and (N, 1) -> (N, Q); subclasses define it."""
        raise NotImplementedError


class MaskedL1(MaskedLoss):
    """Absolute error: the published loss."""

    def of(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the absolute error of each entry; (N, C)."""
        return (prediction - target).abs()


class MaskedLogCosh(MaskedLoss):
    """Loss log(cosh(error)).

    Half the squared error where it is small, the absolute error less log 2 where it is large.
    """

    def of(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return log(cosh(error)) of each entry; (N, C)."""
        error = (prediction - target).abs()
        return error + functional.softplus(-2 * error) - math.log(2)  # cosh itself overflows at 90


class MaskedQuantile(MaskedLoss):
    """Pinball loss, mean over quantiles: its minimum is the quantile.

    R. Koenker and G. Bassett, Econometrica 46 (1978) 33. `levels` are those of the columns:
    0.5 first, then the others in rising order.
    """

    def __init__(self, levels: Sequence[float], reduction: str = "mean") -> None:
        """`levels` are the quantiles' levels, in the order of the prediction's columns."""
        super().__init__(reduction)
        self.levels: torch.Tensor
        self.register_buffer("levels", torch.tensor(levels), persistent=False)

    def of(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the pinball loss of each quantile; (N, Q).

        From Koenker and Bassett, Econometrica 46 (1978) 33.
        """
        error = target - prediction
        return torch.maximum(self.levels * error, (self.levels - 1) * error)


class QuantileOutput(nn.Module):
    """Turn numbers of the last layer (N, Q) into quantiles (N, Q) that cannot cross.

    The columns are the median, then the others in rising order of level. The first number
    is the median; each further quantile lies below or above the next nearer one by the softplus of
    its number, about WIDTH where that number is zero.
    """

    def __init__(self, others: Sequence[float]) -> None:
        """`others` are the levels beside the median, in ascending order."""
        super().__init__()
        self.below = sum(level < 0.5 for level in others)
        self.offset = math.log(math.expm1(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn the raw outputs x (N, Q) into quantiles that do not cross, median first; (N, Q)."""
        median = x[:, :1]  # (N, 1)
        steps = functional.softplus(x[:, 1:] + self.offset)  # (N, Q - 1), from each to the next
        columns = [median]
        for i in range(self.below):
            columns.append(median - steps[:, i : self.below].sum(dim=1, keepdim=True))
        for i in range(self.below, steps.shape[1]):
            columns.append(median + steps[:, self.below : i + 1].sum(dim=1, keepdim=True))
        return torch.cat(columns, dim=1)


def quantile_levels(quantiles: Sequence[float]) -> tuple[float, ...]:
    """Return the levels of a quantile network's columns: 0.5, then the others in rising order.

    Raises InputError if there are none.
    """
    others = sorted(set(quantiles) - {0.5})
    if not others or not 0 < others[0] <= others[-1] < 1:
        raise InputError(
            "network option 'quantiles' must name levels between 0 and 1 beside the median, as"
            f" 0.16,0.84, not {quantiles}"
        )
    return (0.5, *others)


def output_columns(loss: str, quantiles: Sequence[float]) -> list[str]:
    """Return names of a network's output columns: median, q16, q84 for quantiles, else output."""
    if loss != "quantile":
        return ["output"]
    return ["median", *(f"q{100 * level:g}" for level in quantile_levels(quantiles)[1:])]


def output_layer(loss: str, quantiles: Sequence[float]) -> list[nn.Module]:
    """Return the modules that follow the last layer: one for quantiles, else none."""
    return [QuantileOutput(quantile_levels(quantiles)[1:])] if loss == "quantile" else []


def regression_loss(loss: str, quantiles: Sequence[float]) -> MaskedLoss:
    """Return the loss of this name: l1, log_cosh or quantile.

    Raises InputError for quantiles without a level beside the median.
    """
    if loss == "quantile":
        return MaskedQuantile(quantile_levels(quantiles))
    return {"l1": MaskedL1, "log_cosh": MaskedLogCosh}[loss]()
