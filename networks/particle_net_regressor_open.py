"""ParticleNet that regresses a jet's log(genJetPt / jetPt).

A feature convolution, blocks of edge convolution (neighbours in (dEta, dPhi), then in the space of the learned features),
the mean over the particles, joined with the jet's own features and read out by fully connected layers. arXiv:1902.08570.

    python -m weaver.train --network-config networks/particle_net_regressor_open.py --data-config data/jec_particle_net_open.yaml ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from networks.layers import EdgeConv, LinearNorm, MaskedL1, Norm, describe, fully_connected, input_order, share, switch, whole

INPUTS = ("pf_points", "pf_features", "pf_mask", "jet_features")
STEM_DIM = 32  # width of the feature convolution, as published


class ParticleNet(nn.Module):
    """pf_points (N, D, P), pf_features (N, C, P), pf_mask (N, 1, P), jet_features (N, J), in the data config's order -> (N, 1)."""

    def __init__(self, order: list[int], particle_dim: int, blocks: list[EdgeConv], head: nn.Module, *, use_fts_bn: bool) -> None:
        super().__init__()
        self.order = order
        self.k, self.use_counts = blocks[0].k, blocks[0].use_counts
        self.input_norm = Norm(particle_dim)
        self.stem = LinearNorm(particle_dim, STEM_DIM)
        self.stem_norm = Norm(STEM_DIM) if use_fts_bn else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        points, features, mask, jet = (inputs[i] for i in self.order)
        real = mask[:, 0, :, None] != 0  # (N, P, 1)
        if (short := self.k + 1 - real.shape[1]) > 0:  # room for k neighbours beside the particle itself
            points, features = F.pad(points, (0, short)), F.pad(features, (0, short))
            real = F.pad(real, (0, 0, 0, short))
        padding = ~real
        points = points.transpose(1, 2).masked_fill(padding, 0.0)  # (N, P, D)
        x = self.input_norm(features.transpose(1, 2).masked_fill(padding, 0.0))  # (N, P, C)
        x = F.relu(self.stem(x)).masked_fill(padding, 0.0)  # (N, P, 32)
        x = self.stem_norm(x).masked_fill(padding, 0.0)
        for block in self.blocks:
            x = block(points, x, real[:, :, 0]).masked_fill(padding, 0.0)  # (N, P, conv_dim)
            points = x
        return self.head(torch.cat((self.pool(x, real), jet.reshape(jet.shape[0], -1)), dim=1))

    def pool(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Mean over the real particles, or over the padded length as published: (N, P, C) -> (N, C). No particle: zero."""
        if not self.use_counts:
            return x.mean(dim=1)
        return x.sum(dim=1) / real.sum(dim=1).clamp(min=1).to(x.dtype)


def get_model(
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
) -> tuple[nn.Module, dict]:
    """The network for a data config and the description of its inputs; defaults are those of the published study.

    Args:
        num_edge_conv_blocks, k: blocks of edge convolution, and the neighbours of a particle in each.
        num_conv_layers, conv_dim: layers in a block, and their width.
        num_fc_layers, fc_dim, dropout: hidden layers after the mean, their width, and their dropout rate.
        use_fts_bn: one more batch normalisation after the feature convolution.
        use_counts: mean over real particles, padding never a neighbour, so that padding cannot move an answer. False gives
            the published function, which averages over the padded length.
    """
    order, (_, particle_dim, _, jet_dim) = input_order(data_config, INPUTS)
    conv_dim, layers, k = whole("conv_dim", conv_dim), whole("num_conv_layers", num_conv_layers), whole("k", k)
    count, counts = whole("num_edge_conv_blocks", num_edge_conv_blocks), switch("use_counts", use_counts)
    blocks = [EdgeConv(conv_dim if i else STEM_DIM, conv_dim, layers, k, counts) for i in range(count)]
    fc_layers, fc_dim, dropout = whole("num_fc_layers", num_fc_layers), whole("fc_dim", fc_dim), share("dropout", dropout)
    head = fully_connected(conv_dim + jet_dim, fc_layers, fc_dim, dropout)
    model = ParticleNet(order, particle_dim, blocks, head, use_fts_bn=switch("use_fts_bn", use_fts_bn))
    return model, describe(data_config)


def get_loss(data_config, **options) -> nn.Module:
    """L1 on the log ratio; jets with |target| >= 1 count as zero."""
    return MaskedL1()
