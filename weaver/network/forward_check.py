"""Check before training that a network takes the inputs, and that its outputs fit the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Batch
from weaver.network.network_file import NetworkFile
from weaver.network.precision import Precision

PROBE_JETS = 2  # passed through a network, to see that it takes the inputs
BLOCK = 2**20  # labels checked at a time


@torch.no_grad()
def check_forward(
    model: torch.nn.Module,
    batch: Batch,
    data_config: DataConfig,
    network: NetworkFile,
    *,
    regression: bool,
    precision: Precision,
) -> int:
    """Pass a few jets through the network in evaluation mode, which does not change it.

    Returns the number of its outputs for each jet. Raises InputError where `forward` does not take
    the inputs, or its outputs do not fit the classes or targets of the data config.
    """
    inputs = [batch.inputs[name] for name in data_config.input_names]
    with precision.autocast(batch.weights.device):
        output = forward(model, inputs, data_config, network)
    if regression:
        _check_targets(output, batch, data_config, network)
    else:
        _check_classes(output, data_config, network)
    return output.shape[-1] if output.ndim > 1 else 1


@torch.no_grad()
def forward(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    data_config: DataConfig,
    network: NetworkFile,
) -> torch.Tensor:
    """Compute the network's outputs (N, outputs) in evaluation mode, which does not change it.

    inputs: of N jets, in the order of the data config. Raises InputError where `forward` fails or
    returns anything but one tensor (N, ...).
    """
    was_training = model.training
    model.eval()
    try:
        output = model(*inputs)
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:  # a user's network may raise anything
        shapes = []
        for name, tensor in zip(data_config.input_names, inputs, strict=True):
            shapes.append(f"{name} {_shape(tensor)}")
        raise network.error(
            f"forward does not take the inputs of {data_config.source} ({', '.join(shapes)})", error
        ) from error
    finally:
        model.train(was_training)
    if not isinstance(output, torch.Tensor):
        raise InputError(
            f"{network.uri}: forward returns {type(output).__name__}; expected one tensor, (N,"
            " outputs)"
        )
    if output.shape[:1] != inputs[0].shape[:1]:
        raise InputError(
            f"{network.uri}: forward returns the shape {tuple(output.shape)} for {len(inputs[0])}"
            " jets; expected (N, outputs)"
        )
    return output


def check_shapes(model: torch.nn.Module, data_config: DataConfig, network: NetworkFile) -> None:
    """Pass artificial jets of the data config's shapes through the network, before any are decoded.

    All values are 1 at first, as in weaver-core, because a mask of ones keeps all particles and 1
    is a valid index of a category. A network may reject these values but take others,
    so that random numbers between 0 and 1 are tried next. Raises InputError if it takes neither.
    """
    ones = []
    for name in data_config.input_names:
        ones.append(torch.ones(PROBE_JETS, *data_config.input_shapes[name][1:]))
    try:
        forward(model, ones, data_config, network)
    except InputError:
        generator = torch.Generator().manual_seed(0)
        others = [torch.rand(tensor.shape, generator=generator) for tensor in ones]
        forward(model, others, data_config, network)


def check_class_numbers(numbers: np.ndarray, name: str, outputs: int) -> None:
    """Check that a label (N,) contains only numbers of classes, 0 to outputs - 1.

    numbers: the label `name` of all jets. outputs: how many the network has. Raises InputError.
    """
    if numbers.ndim != 1:
        raise InputError(
            f"label '{name}' has {numbers.shape[1:]} numbers for each jet; a classification takes"
            " one, the number of the class"
        )
    for start in range(0, len(numbers), BLOCK):
        block = numbers[start : start + BLOCK]
        odd = block[(block != np.floor(block)) | (block < 0)]
        if len(odd):
            raise InputError(
                f"label '{name}' is {odd[0]:g} for a jet, which is not the number of a class (0, 1,"
                " ...); to regress it, add --regression-mode"
            )
        if block.max() >= outputs:
            raise InputError(
                f"label '{name}' goes up to {block.max():.0f}, but the network has {outputs}"
                f" outputs (classes 0 to {outputs - 1})"
            )


def _check_classes(output: torch.Tensor, data_config: DataConfig, network: NetworkFile) -> None:
    if output.ndim != 2:
        raise InputError(
            f"{network.uri}: forward returns the shape {tuple(output.shape)}; a classification"
            " takes (N, classes); to regress a number, add --regression-mode"
        )
    classes = len(data_config.label_value) if data_config.label_type == "simple" else 1
    if output.shape[1] < classes:
        raise InputError(
            f"{network.uri}: forward returns {output.shape[1]} outputs for each jet, but"
            f" {data_config.source} has {classes} labels; one of them must follow the other"
        )


def _check_targets(
    output: torch.Tensor, batch: Batch, data_config: DataConfig, network: NetworkFile
) -> None:
    """Check that there is an output for each of several targets.

    Several outputs for one target are quantiles.
    """
    name = data_config.label_names[0]
    target = batch.labels[name]
    if (
        target.ndim > 1
        and output.reshape(len(batch), -1).shape != target.reshape(len(batch), -1).shape
    ):
        raise InputError(
            f"{network.uri}: forward returns the shape {_shape(output)}, but the label '{name}' has"
            f" the shape {_shape(target)}"
        )


def _shape(tensor: torch.Tensor) -> str:
    return "(" + ", ".join(["N", *map(str, tensor.shape[1:])]) + ")"
