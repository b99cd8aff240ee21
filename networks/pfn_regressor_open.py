"""Particle Flow Network that regresses a jet's log(genJetPt / jetPt).

Each particle goes through the same layers, the results are summed over the particles (a deep set:
no order, any number of them), joined with the jet's own features and read out by fully connected
layers. arXiv:1810.05165. What describes the jet or the event as a whole (energy density, vertices)
is one value a jet: in `jet_features` or, if the data config has it, in `global_features`.

    python -m weaver.train --network-config networks/pfn_regressor_open.py --data-config
        data/jec_pfn_open.yaml ...
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.errors import InputError
from networks.fast import sum_of_particles
from networks.layers import (
    LinearNorm,
    chain_with_one,
    describe,
    fully_connected,
    input_order,
    jet_values,
)
from networks.losses import output_columns, output_layer, regression_loss
from networks.options import check

INPUTS = ("pf_features", "pf_mask", "jet_features")
# of the event, one value a jet: joined after the sum, like jet_features
OPTIONAL_INPUTS = ("global_features",)

# What each option may be; see networks/options.py.
OPTIONS = {
    "num_conv_layers": {"least": 1},
    "conv_dim": {"least": 1},
    "num_fc_layers": {"least": 1},
    "fc_dim": {"least": 1},
    "dropout": {"least": 0.0, "below": 1.0},
    "use_bn": {"choices": [True, False]},
    "norm": {"choices": ["batch", "layer", "none"]},
    "loss": {"choices": ["l1", "log_cosh", "quantile"]},
    "quantiles": {"least": 0.0, "below": 1.0, "several": True},
}


class ParticleFlowNetwork(nn.Module):
    """pf_features (N, C, P), pf_mask (N, 1, P), jet_features (N, J), in the data config's order ->
    (N, outputs).
    """

    def __init__(self, order: list[int], layers: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.order = order
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        features, mask, *jet = (inputs[i] for i in self.order)
        # Once, at the input, so that what lies in padding, even NaN, reaches no sum; the sum itself
        # then only needs the mask.
        x = torch.where(mask.bool(), features, 0.0)  # (N, C, P)
        if torch.onnx.is_in_onnx_export() and not self.layers[0].by_row:
            x = chain_with_one(
                self.layers,
                torch.cat((x, torch.ones_like(mask, dtype=x.dtype)), dim=1).transpose(1, 2),
            )
        else:
            x = x.transpose(1, 2)  # (N, P, C)
            for layer in self.layers:
                x = layer(x, relu=True)  # (N, P, conv_dim)
        x = sum_of_particles(x, mask.to(x.dtype))  # (N, conv_dim)
        return self.head(torch.cat((x, *jet_values(jet)), dim=1))


def get_model(
    data_config,
    *,
    num_conv_layers: int = 3,
    conv_dim: int = 100,
    num_fc_layers: int = 3,
    fc_dim: int = 100,
    dropout: float = 0.0,
    use_bn: bool = False,
    norm: str = "none",
    loss: str = "l1",
    quantiles: Sequence[float] = (0.16, 0.84),
) -> tuple[nn.Module, dict]:
    """The network for a data config and the description of its inputs; defaults are those of the
    published study.

    Args:
        num_conv_layers, conv_dim: layers that every particle passes, and their width.
        num_fc_layers, fc_dim, dropout: hidden layers after the sum, their width, and their dropout
            rate.
        norm: normalisation in the particle layers: none as published; batch; or layer, which does
            not mix jets.
        use_bn: the same as norm batch.
        loss, quantiles: those of get_loss; a quantile network has the median in column 0, then the
            other quantiles in rising order.
    """
    options = check(
        OPTIONS, {name: value for name, value in locals().items() if name != "data_config"}
    )
    if options["use_bn"] and norm == "layer":
        raise InputError(
            "network options 'use_bn: true' and 'norm: layer' exclude each other: give 'norm' alone"
        )
    norm = "batch" if options["use_bn"] else norm
    order, (particle_dim, _, *jet_dims) = input_order(data_config, INPUTS, OPTIONAL_INPUTS)
    columns = output_columns(loss, options["quantiles"])
    width, head = (
        options["conv_dim"],
        (
            options["num_fc_layers"],
            options["fc_dim"],
            options["dropout"],
        ),
    )
    layers = [
        LinearNorm(width if i else particle_dim, width, norm)
        for i in range(options["num_conv_layers"])
    ]
    head = fully_connected(width + sum(jet_dims), *head, len(columns)).extend(
        output_layer(loss, options["quantiles"])
    )
    return ParticleFlowNetwork(order, layers, head), describe(data_config, columns)


def get_loss(
    data_config, *, loss: str = "l1", quantiles: Sequence[float] = (0.16, 0.84)
) -> nn.Module:
    """Loss of the log ratio: l1 as published, log_cosh, or quantile (the pinball loss of the median
    and of `quantiles`).

    In each, jets with |target| >= 1 count as zero.
    """
    return regression_loss(**check(OPTIONS, {"loss": loss, "quantiles": quantiles}))
