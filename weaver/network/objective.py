"""What training minimises and validation reports.

For a batch these are the predictions, their mean loss, and the sums that metrics are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from common.errors import InputError
from weaver.feed.dataset import Batch
from weaver.network.precision import Precision

FLOAT32 = Precision("float32")
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Count = float | torch.Tensor
"""Jets that a mean loss is over; with weights their sum, a scalar on the device."""
Judged = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Predictions (N,) or (N, outputs), targets (N,) and weights (N,) of a batch."""


class Objective:
    """A loss over batches of one data config, whose first label is regressed or gives the class.

    Where the data config has weights, each jet's loss is multiplied by its weight and the mean is
    the weighted one. `loss` may be None where only predictions are wanted. `precision` may be
    changed until the first batch.
    """

    def __init__(
        self,
        data_config: Any,
        loss: Loss | None,
        *,
        regression: bool,
        precision: Precision = FLOAT32,
    ) -> None:
        """Take the names of inputs and label; `loss` is the network file's own, or None."""
        self.inputs = list(data_config.input_names)
        self.label = data_config.label_names[0]
        self.regression = regression
        self.precision = precision
        self.weighted = data_config.weight_name is not None
        sampled = getattr(data_config, "weight_use", "loss") == "sampling"
        if sampled and not hasattr(loss, "reduction"):
            # training draws jets by their weights already; validation then counts all jets alike
            self.weighted = False
        self.loss = per_jet(loss) if self.weighted and loss else loss

    def __call__(
        self, model: torch.nn.Module, batch: Batch, *, filled: bool = False
    ) -> tuple[torch.Tensor, Count, Judged]:
        """Compute a batch's mean loss, what it is the mean over, and what `errors` takes.

        `filled`: the batch may hold jets of weight 0 that only fill it up. They pass the network,
        so that all ranks do the same, and are then left out.
        """
        if self.loss is None:
            raise TypeError("this objective was made without a loss and can only predict")
        prediction = self.predict(model, batch)
        target = batch.labels[self.label].to(torch.float32 if self.regression else torch.int64)
        if self.weighted:
            total = batch.weights.sum()
            losses = self.loss(prediction, target)
            if losses.ndim > 1:  # several targets for each jet
                losses = losses.flatten(1).mean(1)
            loss_sum = (losses * batch.weights).sum()
            # a batch whose weights are all zero has the loss 0
            loss = loss_sum / total.clamp(min=torch.finfo(total.dtype).tiny)
            return loss, total, (prediction, target, batch.weights)
        if filled:
            real = batch.weights > 0
            if not real.any():
                # a loss with a gradient, zero: DDP waits for the gradients of every rank
                return prediction.sum() * 0.0, 0.0, (prediction[:0], target[:0], batch.weights[:0])
            prediction = prediction[real]
            target = target[real]
        loss = self.loss(prediction, target)
        ones = torch.ones_like(batch.weights[: len(target)])
        return loss, float(len(target)), (prediction, target, ones)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Predict a batch in float32.

        (N,) for one output in regression, else as the network gives them, (N, outputs).
        """
        with self.precision.autocast(batch.weights.device):
            output = model(*(batch.inputs[name] for name in self.inputs))
        output = output.float()  # the loss is never computed in half precision
        if self.regression and output.ndim == 2 and output.shape[1] == 1:
            return output.squeeze(1)
        return output

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, the objective first."""
        return ("AvgLoss", "AvgMSE", "AvgMAE") if self.regression else ("AvgLoss", "AvgAcc")

    @torch.no_grad()
    def errors(
        self, prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Sum the metrics after the loss, weighted: (M,) in float64.

        They are squared and absolute errors, or correct classes.
        """
        if not self.regression:
            return ((prediction.argmax(dim=1) == target) * weights).sum()[None].double()
        error = errors_of(prediction, target)
        squared = (error.square().flatten(1).sum(1) * weights).sum()
        absolute = (error.abs().flatten(1).sum(1) * weights).sum()
        return torch.stack([squared, absolute]).double()

    @torch.no_grad()
    def responses(
        self, prediction: torch.Tensor, target: torch.Tensor, _weights: torch.Tensor
    ) -> torch.Tensor:
        """Values (N,) for a histogram of validation.

        For a regression exp(answer - target), which for log ratios is calibrated over true; else
        the score of the true class.
        """
        if self.regression:
            return errors_of(prediction, target)[:, 0].exp()
        return prediction.softmax(dim=1).gather(1, target[:, None]).squeeze(1)


def answer(prediction: torch.Tensor) -> torch.Tensor:
    """Take the answer (N,) of a regression from its outputs (N,) or (N, outputs).

    Of several for one target it is the first: the median, in front of the quantiles.
    """
    return prediction[:, 0] if prediction.ndim == 2 else prediction


def errors_of(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The errors (N, k) of predictions for targets (N, k), or (N, 1) for targets (N,)."""
    if target.ndim > 1:
        return (prediction.reshape(target.shape) - target).flatten(1)
    return (answer(prediction) - target)[:, None]


def per_jet(loss: Any) -> Loss:
    """Make a loss return one value a jet. Raises InputError for a loss that cannot do so."""
    if not hasattr(loss, "reduction"):
        raise InputError(
            "the data config has weights, so the loss must have a `reduction` as PyTorch's have;"
            " this one gives a mean only"
        )
    loss.reduction = "none"
    return loss
