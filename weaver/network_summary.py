"""--print: the layers of a network, its parameters, and the floating-point operations of a jet."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from weaver.config.data_config import DataConfig
from weaver.fit.options import TrainOptions
from weaver.network.network_file import load_network, num_parameters
from weaver.onnx.onnx_export import input_shapes


def show(options: TrainOptions) -> None:
    """Print the network of the options on stdout."""
    data_config = DataConfig.load(options.data_config)
    model, info = load_network(options.network_config).build(
        data_config, options.network_option, options.of_weaver
    )
    print(model)
    trainable = num_parameters(model)
    jet = operations(model, list(input_shapes(info, data_config).values()))
    print(f"{trainable:,} parameters, {jet:,.0f} floating-point operations a jet")


def operations(model: nn.Module, shapes: list[tuple[int, ...]], jets: int = 8) -> float:
    """Count the floating-point operations of the forward pass for one jet of full length.

    shapes: of the inputs, without the axis of jets. A multiplication and an addition are two
    operations. Counts matrix products and convolutions, as torch.utils.flop_counter does.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(*(torch.ones(jets, *shape) for shape in shapes))
    return counter.get_total_flops() / jets
