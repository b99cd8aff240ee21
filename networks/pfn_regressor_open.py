"""Particle Flow Network that regresses a jet's log(genJetPt / jetPt).

Each particle goes through the same layers, the results are summed over the particles (a deep set: no order, any number of
them), joined with the jet's own features and read out by fully connected layers. arXiv:1810.05165.

    python -m weaver.train --network-config networks/pfn_regressor_open.py --data-config data/jec_pfn_open.yaml ...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from networks.layers import LinearNorm, MaskedL1, describe, fully_connected, input_order, share, switch, whole

INPUTS = ("pf_features", "pf_mask", "jet_features")


class ParticleFlowNetwork(nn.Module):
    """pf_features (N, C, P), pf_mask (N, 1, P), jet_features (N, J), in the data config's order -> (N, 1)."""

    def __init__(self, order: list[int], layers: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.order = order
        self.layers = nn.ModuleList(layers)
        self.head = head

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        features, mask, jet = (inputs[i] for i in self.order)
        real = mask != 0  # (N, 1, P)
        x = features.masked_fill(~real, 0.0).transpose(1, 2)  # (N, P, C)
        for layer in self.layers:
            x = F.relu(layer(x))  # (N, P, conv_dim)
        x = torch.bmm(real.to(x.dtype), x).squeeze(1)  # the sum over real particles: (N, conv_dim)
        return self.head(torch.cat((x, jet.reshape(jet.shape[0], -1)), dim=1))


def get_model(
    data_config,
    *,
    num_conv_layers: int = 3,
    conv_dim: int = 100,
    num_fc_layers: int = 3,
    fc_dim: int = 100,
    dropout: float = 0.0,
    use_bn: bool = False,
) -> tuple[nn.Module, dict]:
    """The network for a data config and the description of its inputs; defaults are those of the published study.

    Args:
        num_conv_layers, conv_dim: layers that every particle passes, and their width.
        num_fc_layers, fc_dim, dropout: hidden layers after the sum, their width, and their dropout rate.
        use_bn: batch normalisation in the particle layers.
    """
    order, (particle_dim, _, jet_dim) = input_order(data_config, INPUTS)
    conv_dim, count, layer = whole("conv_dim", conv_dim), whole("num_conv_layers", num_conv_layers), nn.Linear
    if switch("use_bn", use_bn):
        layer = LinearNorm
    layers = [layer(conv_dim if i else particle_dim, conv_dim) for i in range(count)]
    fc_layers, fc_dim, dropout = whole("num_fc_layers", num_fc_layers), whole("fc_dim", fc_dim), share("dropout", dropout)
    model = ParticleFlowNetwork(order, layers, fully_connected(conv_dim + jet_dim, fc_layers, fc_dim, dropout))
    return model, describe(data_config)


def get_loss(data_config, **options) -> nn.Module:
    """L1 on the log ratio; jets with |target| >= 1 count as zero."""
    return MaskedL1()
