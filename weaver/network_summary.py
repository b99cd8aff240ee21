"""--print and --profile: the layers, parameters, operations and forward time of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from weaver.config.data_config import DataConfig
from weaver.fit.distributed import select_device
from weaver.fit.options import TrainOptions
from weaver.network.forward_check import PROBE_JETS, forward
from weaver.network.network_file import load_network, num_parameters
from weaver.onnx.onnx_export import input_shapes

TRACE_FILE = "trace.json"
"""What --profile writes into the current folder."""
WARM_UP_PASSES = 4
PROFILE_PASSES = 12
"""Passes of --profile, as many as weaver-core records."""


def show(options: TrainOptions) -> None:
    """Print the network, its number of parameters and its operations per jet on stdout."""
    model, shapes = _network(options)
    print(model)
    trainable = num_parameters(model)
    jet = operations(model, shapes)
    print(f"{trainable:,} parameters, {jet:,.0f} floating-point operations per jet")


def profile(options: TrainOptions) -> None:
    """Print how long each operation of the forward pass takes, and write TRACE_FILE.

    The batches have --batch-size jets of full length, as in weaver-core. The first passes do not
    count, because they allocate memory and choose algorithms.
    """
    model, shapes = _network(options)
    device = select_device(options.gpus)
    model.to(device).eval()
    inputs = [torch.ones(options.batch_size, *shape, device=device) for shape in shapes]
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.no_grad():
        for _ in range(WARM_UP_PASSES):
            model(*inputs)
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(PROFILE_PASSES):
                model(*inputs)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=50))
    profiler.export_chrome_trace(TRACE_FILE)
    print(
        f"{PROFILE_PASSES} passes of {options.batch_size} jets on {device.type}; open {TRACE_FILE}"
        " in chrome://tracing or ui.perfetto.dev"
    )


def _network(options: TrainOptions) -> tuple[nn.Module, list[tuple[int, ...]]]:
    """Build the network; returns (network, shapes of its inputs without the axis of jets).

    Raises InputError if it does not take the inputs of the data config.
    """
    data_config = DataConfig.load(options.data_config)
    network = load_network(options.network_config)
    model, info = network.build(data_config, options.network_option, options.weaver_options)
    shapes = list(input_shapes(info, data_config).values())
    forward(model, [torch.ones(PROBE_JETS, *shape) for shape in shapes], data_config, network)
    return model, shapes


def operations(model: nn.Module, shapes: list[tuple[int, ...]], jets: int = 8) -> float:
    """Count the floating-point operations of the forward pass for one jet of full length.

    shapes: of the inputs, without the axis of jets. A multiplication and an addition are two
    operations. Counts matrix products and convolutions, as torch.utils.flop_counter does.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(*(torch.ones(jets, *shape) for shape in shapes))
    return counter.get_total_flops() / jets
