"""The objective of training: predictions of a batch, their mean loss, and sums for the metrics."""

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
"""Number of jets that a mean loss averages over; with weights their sum, a scalar on the device."""
Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Predictions (N,) or (N, outputs), targets (N,) and weights (N,) of a batch."""


class Objective:
    """The loss of batches of one data config, whose first label is the target or the class.

    Where the data config has weights, the loss is the weighted mean of the jets' losses.
    `precision` may be changed until the first batch.
    """

    def __init__(
        self,
        data_config: Any,
        loss: Loss | None,
        *,
        regression: bool,
        precision: Precision = FLOAT32,
    ) -> None:
        """Take the names of inputs and label from the data config.

        loss: that of the network file; None for predictions only. regression: else classification.
        """
        self.inputs = list(data_config.input_names)
        self.label = data_config.label_names[0]
        self.regression = regression
        self.precision = precision
        self.is_weighted = data_config.weight_name is not None
        is_sampled = getattr(data_config, "weight_use", "loss") == "sampling"
        if is_sampled and not hasattr(loss, "reduction"):
            # training samples jets by their weights; validation then counts all jets equally
            self.is_weighted = False
        self.loss = per_jet(loss) if self.is_weighted and loss else loss

    def __call__(
        self, model: torch.nn.Module, batch: Batch, *, has_padding: bool = False
    ) -> tuple[torch.Tensor, Count, Outcome]:
        """Compute (mean loss, number of jets or sum of weights, outcome) of a batch.

        `errors` and `responses` take the outcome. has_padding: the batch may contain padding, jets
        of weight 0. They pass through the network, so that all ranks do the same, and are then
        dropped. Raises TypeError for an objective without a loss.
        """
        if self.loss is None:
            raise TypeError("this objective was made without a loss and can only predict")
        prediction = self.predict(model, batch)
        target = batch.labels[self.label].to(torch.float32 if self.regression else torch.int64)
        if self.is_weighted:
            total = batch.weights.sum()
            losses = self.loss(prediction, target)
            if losses.ndim > 1:  # several targets for each jet
                losses = losses.flatten(1).mean(1)
            loss_sum = (losses * batch.weights).sum()
            # a batch whose weights are all zero has the loss 0
            loss = loss_sum / total.clamp(min=torch.finfo(total.dtype).tiny)
            return loss, total, (prediction, target, batch.weights)
        if has_padding:
            real = batch.weights > 0
            if not real.any():
                # the loss is zero but has a gradient, because DDP waits for those of every rank
                return prediction.sum() * 0.0, 0.0, (prediction[:0], target[:0], batch.weights[:0])
            prediction = prediction[real]
            target = target[real]
        loss = self.loss(prediction, target)
        ones = torch.ones_like(batch.weights[: len(target)])
        return loss, float(len(target)), (prediction, target, ones)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Predict a batch, in float32: (N,) for a regression with one output, else (N, outputs)."""
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
        """Return the weighted sums of the metrics that follow AvgLoss in `metrics`.

        They are the squared and absolute errors, or the number of correct classes.

        Args:
            prediction: of an Outcome: (N, ...), the network's output.
            target: of an Outcome: (N, ...) numbers, or (N,) classes.
            weights: of an Outcome: (N,).

        Returns:
            (M,), float64.
        """
        if not self.regression:
            return ((prediction.argmax(dim=1) == target) * weights).sum()[None].double()
        error = errors_of(prediction, target)
        squared_sum = (error.square().flatten(1).sum(1) * weights).sum()
        absolute_sum = (error.abs().flatten(1).sum(1) * weights).sum()
        return torch.stack([squared_sum, absolute_sum]).double()

    @torch.no_grad()
    def responses(
        self, prediction: torch.Tensor, target: torch.Tensor, _weights: torch.Tensor
    ) -> torch.Tensor:
        """Return values (N,) for a histogram of the validation jets. The arguments are an Outcome.

        For a regression they are exp(prediction - target): for a target log(true / reconstructed
        pT) the ratio of calibrated to true pT. For a classification they are the score of the true
        class.
        """
        if self.regression:
            return errors_of(prediction, target)[:, 0].exp()
        return prediction.softmax(dim=1).gather(1, target[:, None]).squeeze(1)


def central_output(prediction: torch.Tensor) -> torch.Tensor:
    """Return the prediction (N,) of a regression from its outputs (N,) or (N, outputs).

    Of several outputs for one target it is the first, the median; the others are quantiles.
    """
    return prediction[:, 0] if prediction.ndim == 2 else prediction


def errors_of(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return prediction - target: (N, k) for targets (N, k), and (N, 1) for targets (N,)."""
    if target.ndim > 1:
        return (prediction.reshape(target.shape) - target).flatten(1)
    return (central_output(prediction) - target)[:, None]


def per_jet(loss: Any) -> Loss:
    """Make a loss return one value a jet. Raises InputError for a loss without `reduction`."""
    if not hasattr(loss, "reduction"):
        raise InputError(
            "the data config has weights, so the loss must have a `reduction` as PyTorch's have;"
            " this one gives a mean only"
        )
    loss.reduction = "none"
    return loss
