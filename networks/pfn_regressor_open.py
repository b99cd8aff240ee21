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
from networks.options import ModelInfo, Rule, check

INPUTS = ("pf_features", "pf_mask", "jet_features")
# of the event, one value a jet: joined after the sum, like jet_features
OPTIONAL_INPUTS = ("global_features",)

# What each option may be; see networks/options.py.
OPTIONS: dict[str, Rule] = {
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
    """The same layers for each particle, the sum over them, and a head that joins the jet's values.

    pf_features (N, C, P), pf_mask (N, 1, P), jet_features (N, J), in the data config's order ->
    (N, outputs).
    """

    any_order = True
    """The particles may come in any order, with padding among them."""

    masks = True
    """Whether features of padding are set to 0 here; False where they are finite already."""
    has_one = False
    """Whether the features have one more variable at their end, which is 1 for each particle. In an
    exported graph it multiplies the first layer's bias; it is appended here where it is missing."""

    def __init__(self, order: list[int], layers: list[LinearNorm], head: nn.Module) -> None:
        """Put the layers together; `order` says where each group stands among the inputs."""
        super().__init__()
        self.order = order
        self.by_row = layers[0].by_row
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return log(genJetPt / jetPt), or its quantiles, for each jet; (N, C)."""
        features, mask, *jet = (inputs[i] for i in self.order)
        # Once, at the input, so that values in padding, even NaN, do not enter the sum; the sum
        # itself then only needs the mask.
        x = torch.where(mask.bool(), features, 0.0) if self.masks else features  # (N, C, P)
        if torch.onnx.is_in_onnx_export() and not self.by_row:
            if not self.has_one:
                x = torch.cat((x, torch.ones_like(mask, dtype=x.dtype)), dim=1)
            x = x.transpose(1, 2)  # (N, P, C + 1)
            x = chain_with_one(self.layers, x)  # (N, P, conv_dim)
        else:
            x = (x[:, :-1] if self.has_one else x).transpose(1, 2)  # (N, P, C)
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
) -> tuple[nn.Module, ModelInfo]:
    """Build the network for a data config, and the description of its inputs.

    Defaults are those of the published study.

    Args:
        data_config: gives the input groups and their shapes.
        num_conv_layers: layers that every particle passes.
        conv_dim: their width.
        num_fc_layers: hidden layers after the sum.
        fc_dim: their width.
        dropout: their dropout rate.
        use_bn: the same as norm batch.
        norm: normalisation in the particle layers: none as published; batch; or layer, which does
            not mix jets.
        loss: that of get_loss.
        quantiles: those of get_loss; a quantile network has the median in column 0, then the other
            quantiles in rising order.
    """
    arguments = locals().copy()
    del arguments["data_config"]
    options = check(OPTIONS, arguments)
    if options["use_bn"] and norm == "layer":
        raise InputError(
            "network options 'use_bn: true' and 'norm: layer' exclude each other: give 'norm' alone"
        )
    norm = "batch" if options["use_bn"] else norm
    order, (particle_dim, _, *jet_dims) = input_order(data_config, INPUTS, OPTIONAL_INPUTS)
    columns = output_columns(loss, options["quantiles"])
    width = options["conv_dim"]
    layers = [
        LinearNorm(width if index else particle_dim, width, norm)
        for index in range(options["num_conv_layers"])
    ]
    head = fully_connected(
        width + sum(jet_dims),
        options["num_fc_layers"],
        options["fc_dim"],
        options["dropout"],
        len(columns),
    ).extend(output_layer(loss, options["quantiles"]))
    return ParticleFlowNetwork(order, layers, head), describe(data_config, columns)


def get_loss(
    data_config, *, loss: str = "l1", quantiles: Sequence[float] = (0.16, 0.84)
) -> nn.Module:
    """Return the loss of the log ratio.

    It is l1 as published, log_cosh, or quantile: the pinball loss of the median and of `quantiles`.
    In each, jets with |target| >= 1 count as zero.
    """
    return regression_loss(**check(OPTIONS, {"loss": loss, "quantiles": quantiles}))
