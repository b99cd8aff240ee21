"""ParticleNet that regresses a jet's log(genJetPt / jetPt).

A feature convolution, blocks of edge convolution (neighbours in (dEta, dPhi), then in the space of
the learned features), the mean over the particles, joined with the jet's own features and read out
by fully connected layers. arXiv:1902.08570. What describes the jet or the event as a whole (energy
density, vertices) is one value a jet: in `jet_features` or, if the data config has it, in
`global_features`.

    python -m weaver.train --network-config networks/particle_net_regressor_open.py --data-config
        data/jec_particle_net_open.yaml ...
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from networks.fast import sum_of_particles
from networks.layers import (
    EdgeConv,
    LinearNorm,
    Norm,
    describe,
    fully_connected,
    input_order,
    jet_values,
)
from networks.losses import output_columns, output_layer, regression_loss
from networks.options import ModelInfo, Rule, check

INPUTS = ("pf_points", "pf_features", "pf_mask", "jet_features")
# of the event, one value a jet: joined after the mean, like jet_features
OPTIONAL_INPUTS = ("global_features",)
STEM_DIM = 32  # width of the feature convolution, as published

# What each option may be; see networks/options.py.
OPTIONS: dict[str, Rule] = {
    "num_edge_conv_blocks": {"least": 1},
    "k": {"least": 1},
    "num_conv_layers": {"least": 1},
    "conv_dim": {"least": 1},
    "num_fc_layers": {"least": 1},
    "fc_dim": {"least": 1},
    "dropout": {"least": 0.0, "below": 1.0},
    "use_fts_bn": {"choices": [True, False]},
    "use_counts": {"choices": [True, False]},
    "norm": {"choices": ["batch", "layer", "none"]},
    "loss": {"choices": ["l1", "log_cosh", "quantile"]},
    "quantiles": {"least": 0.0, "below": 1.0, "several": True},
}


class ParticleNet(nn.Module):
    """Edge convolutions over a jet's particles, their mean, and a head that joins the jet's values.

    pf_points (N, D, P), pf_features (N, C, P), pf_mask (N, 1, P), jet_features (N, J), in the data
    config's order -> (N, outputs).
    """

    def __init__(
        self,
        order: list[int],
        input_norm: nn.Module,
        stem: nn.Module,
        stem_norm: nn.Module | None,
        blocks: list[EdgeConv],
        head: nn.Module,
    ) -> None:
        """Put the layers together; `order` says where each group stands among the inputs."""
        super().__init__()
        self.order = order
        self.k = blocks[0].k
        self.use_counts = blocks[0].use_counts
        self.input_norm = input_norm
        self.stem = stem
        self.stem_norm = stem_norm
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return log(genJetPt / jetPt), or its quantiles, for each jet; (N, C)."""
        points, features, mask, *jet = (inputs[i] for i in self.order)
        real = mask != 0  # (N, 1, P)
        # room for k neighbours beside the particle itself
        if (short := self.k + 1 - real.shape[2]) > 0:
            points = functional.pad(points, (0, short))
            features = functional.pad(features, (0, short))
            real = functional.pad(real, (0, short))
        # Values in padding, even NaN, do not change the output.
        points = points.masked_fill(~real, 0.0).transpose(1, 2)  # (N, P, D)
        x = self.input_norm(features.masked_fill(~real, 0.0).transpose(1, 2))  # (N, P, C)
        real = real.transpose(1, 2)  # (N, P, 1)
        x = blank(self.stem(x, relu=True), real)  # (N, P, 32)
        if self.stem_norm is not None:
            x = blank(self.stem_norm(x), real)
        for block in self.blocks:
            x = blank(block(points, x, real[:, :, 0]), real)  # (N, P, conv_dim)
            points = x
        return self.head(torch.cat((self.pool(x, real), *jet_values(jet)), dim=1))

    def pool(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return mean over the real particles, or over the padded length as published.

        x (N, P, C) and real (N, P, 1) -> (N, C). No particle: zero.
        """
        total = sum_of_particles(x, real.transpose(1, 2).to(x.dtype))  # (N, C)
        if not self.use_counts:
            return total / int(x.shape[1])
        return total / real.sum(dim=1).clamp(min=1).to(x.dtype)


def blank(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Set padding to zero: x (N, P, C), real (N, P, 1)."""
    if torch.onnx.is_in_onnx_export():
        return x * real.to(x.dtype)  # ONNX Runtime's Where is slow
    return x.masked_fill(~real, 0.0)


def get_model(  # noqa: PLR0913 (each argument is an option that a search may choose)
    data_config,
    *,
    num_edge_conv_blocks: int = 3,
    k: int = 16,
    num_conv_layers: int = 3,
    conv_dim: int = 100,
    num_fc_layers: int = 3,
    fc_dim: int = 100,
    dropout: float = 0.0,
    use_fts_bn: bool = False,
    use_counts: bool = True,
    norm: str = "batch",
    loss: str = "l1",
    quantiles: Sequence[float] = (0.16, 0.84),
) -> tuple[nn.Module, ModelInfo]:
    """Build the network for a data config, and the description of its inputs.

    Defaults are those of the published study.

    Args:
        data_config: gives the input groups and their shapes.
        num_edge_conv_blocks: blocks of edge convolution.
        k: neighbours of a particle in each.
        num_conv_layers: layers in a block.
        conv_dim: their width.
        num_fc_layers: hidden layers after the mean.
        fc_dim: their width.
        dropout: their dropout rate.
        use_fts_bn: one more batch normalisation after the feature convolution.
        use_counts: mean over real particles, padding never a neighbour, so that padding cannot move
            an answer. False gives the published function, which averages over the padded length.
        norm: normalisation in the layers that see particles and edges: batch as published; layer,
            which does not mix jets; or none.
        loss: that of get_loss.
        quantiles: those of get_loss; a quantile network has the median in column 0, then the other
            quantiles in rising order.
    """
    arguments = locals().copy()
    del arguments["data_config"]
    options = check(OPTIONS, arguments)
    order, (_, particle_dim, _, *jet_dims) = input_order(data_config, INPUTS, OPTIONAL_INPUTS)
    columns = output_columns(loss, options["quantiles"])
    width = options["conv_dim"]

    # The order in which modules are made fixes the weights that a seed gives.
    blocks = []
    for index in range(options["num_edge_conv_blocks"]):
        in_dim = width if index else STEM_DIM
        layers = options["num_conv_layers"]
        blocks.append(EdgeConv(in_dim, width, layers, options["k"], options["use_counts"], norm))
    input_norm = Norm(particle_dim)
    stem = LinearNorm(particle_dim, STEM_DIM, norm)
    stem_norm = Norm(STEM_DIM) if options["use_fts_bn"] else None
    head = fully_connected(
        width + sum(jet_dims),
        options["num_fc_layers"],
        options["fc_dim"],
        options["dropout"],
        len(columns),
    ).extend(output_layer(loss, options["quantiles"]))
    network = ParticleNet(order, input_norm, stem, stem_norm, blocks, head)
    return network, describe(data_config, columns)


def get_loss(
    data_config, *, loss: str = "l1", quantiles: Sequence[float] = (0.16, 0.84)
) -> nn.Module:
    """Return the loss of the log ratio.

    It is l1 as published, log_cosh, or quantile: the pinball loss of the median and of `quantiles`.
    In each, jets with |target| >= 1 count as zero.
    """
    return regression_loss(**check(OPTIONS, {"loss": loss, "quantiles": quantiles}))
