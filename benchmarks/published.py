"""The two networks as published, in their simplest form.

They are the reference of tests and benchmarks.

Channels first, one convolution of width 1 a layer, and in an edge convolution a tensor (N, 2C, P,
k) of (x_i, x_j - x_i) before any layer, neighbours by the expanded square |x_i|^2 + |x_j|^2 - 2 x_i
x_j, as arXiv:1801.07829, 1902.08570 and 1810.05165 write it. `plain_form(model)` makes the simplest
form of one of our networks, with the same weights.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

FAR = 1e9  # added to the coordinates of padding, so that padding is no real particle's neighbour


class EdgeConv(nn.Module):
    """An edge convolution: points (N, D, P), x (N, C, P) -> (N, dim, P)."""

    def __init__(self, in_dim: int, dim: int, num_layers: int, k: int) -> None:
        """Make the layers."""
        super().__init__()
        self.k = k
        dims = [2 * in_dim] + [dim] * num_layers
        layers = (
            nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in itertools.pairwise(dims)
        )
        self.layers = nn.Sequential(*layers)
        self.shortcut = (
            None
            if in_dim == dim
            else nn.Sequential(nn.Conv1d(in_dim, dim, 1, bias=False), nn.BatchNorm1d(dim))
        )

    def forward(self, points: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Points (N, D, P), x (N, C, P) -> (N, dim, P)."""
        edges = self.layers(edge_features(x, neighbours(points, self.k)))  # (N, dim, P, k)
        return torch.relu((x if self.shortcut is None else self.shortcut(x)) + edges.mean(dim=3))


class ParticleNet(nn.Module):
    """ParticleNet: points (N, D, P), features (N, C, P), mask (N, 1, P), jet (N, J) -> (N, 1).

    The mean over particles divides by the padded length.
    """

    def __init__(
        self,
        particle_dim: int,
        stem_dim: int,
        blocks: list[EdgeConv],
        head: nn.Module,
        *,
        use_fts_bn: bool,
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.input_norm = nn.BatchNorm1d(particle_dim)
        self.stem = nn.Conv1d(particle_dim, stem_dim, 1, bias=False)
        self.stem_bn = nn.BatchNorm1d(stem_dim)
        self.stem_norm = nn.BatchNorm1d(stem_dim) if use_fts_bn else None
        self.blocks = nn.ModuleList(blocks)
        self.head = head

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, mask: torch.Tensor, jet: torch.Tensor
    ) -> torch.Tensor:
        """Points (N, D, P), features (N, C, P), mask (N, 1, P), jet (N, J) -> (N, 1)."""
        x = torch.relu(self.stem_bn(self.stem(self.input_norm(features * mask)))) * mask
        x = x if self.stem_norm is None else self.stem_norm(x) * mask
        for block in self.blocks:
            x = block(points + (mask == 0) * FAR, x) * mask
            points = x
        return self.head(torch.cat((x.mean(dim=2), jet), dim=1))


class ParticleFlowNetwork(nn.Module):
    """PFN: features (N, C, P), mask (N, 1, P), jet (N, J) -> (N, 1)."""

    def __init__(self, layers: list[nn.Module], head: nn.Module) -> None:
        """Take the layers of the particles and those of the sum."""
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = head

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor, jet: torch.Tensor
    ) -> torch.Tensor:
        """Features (N, C, P), mask (N, 1, P), jet (N, J) -> (N, 1)."""
        return self.head(torch.cat(((self.layers(features) * mask).sum(dim=2), jet), dim=1))


def neighbours(points: torch.Tensor, k: int) -> torch.Tensor:
    """The k + 1 nearest, less the nearest, which is the particle itself: (N, D, P) -> (N, P, k)."""
    inner = torch.matmul(points.transpose(1, 2), points)
    square = points.square().sum(dim=1)
    return (square[:, :, None] + square[:, None, :] - 2 * inner).topk(k + 1, dim=2, largest=False)[
        1
    ][:, :, 1:]


def edge_features(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(x_i, x_j - x_i) of every edge: (N, C, P) and (N, P, k) -> (N, 2C, P, k)."""
    jets, dim, particles = x.shape
    offset = torch.arange(jets, device=x.device)[:, None, None] * particles
    rows = x.transpose(1, 2).reshape(-1, dim)[(index + offset).reshape(-1)]
    rows = rows.view(jets, particles, -1, dim)  # (N P k, C) -> (N, P, k, C)
    neighbours = rows.permute(0, 3, 1, 2).contiguous()  # (N, C, P, k)
    centre = x[:, :, :, None].expand_as(neighbours)
    return torch.cat((centre, neighbours - centre), dim=1)


def settle(model: nn.Module, seed: int = 2) -> nn.Module:
    """Give every batch normalisation, and the last layer, weights that are not the neutral ones.

    Then leave training mode.
    """
    generator = torch.Generator().manual_seed(seed)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.weight.data.copy_(torch.randn(last.weight.shape, generator=generator) * 0.3)
    last.bias.data.copy_(torch.randn(last.bias.shape, generator=generator) * 0.3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator) * 0.1)
    return model.eval()


# ---------------------------------------------------------------- the same weights as one of ours


def plain_form(model: nn.Module) -> nn.Module:
    """The plain form of one of our networks, with copies of its weights and its training mode.

    Ours are those of networks/. Its parameters and buffers come in the same order as those of
    `model`.
    """
    plain = _particle_net(model) if hasattr(model, "blocks") else _particle_flow_network(model)
    return plain.train(model.training)


def _particle_net(model: nn.Module) -> ParticleNet:
    blocks = [_edge_conv(block) for block in model.blocks]
    stem = model.stem.linear
    use_fts_bn = model.stem_norm is not None
    plain = ParticleNet(
        stem.in_features,
        stem.out_features,
        blocks,
        copy.deepcopy(model.head),
        use_fts_bn=use_fts_bn,
    )
    _copy_norm(plain.input_norm, model.input_norm)
    _copy_layer(plain.stem, plain.stem_bn, model.stem)
    if use_fts_bn:
        _copy_norm(plain.stem_norm, model.stem_norm)
    return plain


def _edge_conv(block: nn.Module) -> EdgeConv:
    ours = [block.first, *block.rest]
    plain = EdgeConv(
        block.first.linear.in_features // 2, block.first.linear.out_features, len(ours), block.k
    )
    for (convolution, norm, _), source in zip(plain.layers, ours, strict=True):
        _copy_layer(convolution, norm, source)
    if plain.shortcut is not None:
        _copy_layer(*plain.shortcut, block.shortcut)
    return plain


def _particle_flow_network(model: nn.Module) -> ParticleFlowNetwork:
    layers = [module for layer in model.layers for module in (_particle_layer(layer), nn.ReLU())]
    return ParticleFlowNetwork(layers, copy.deepcopy(model.head))


def _particle_layer(layer: nn.Module) -> nn.Module:
    linear = layer.linear
    plain = nn.Conv1d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None)
    if linear.bias is None:
        plain = nn.Sequential(plain, nn.BatchNorm1d(linear.out_features))
        _copy_layer(*plain, layer)
        return plain
    plain.weight.data.copy_(linear.weight.data[:, :, None])
    plain.bias.data.copy_(linear.bias.data)
    return plain


def _copy_layer(convolution: nn.Module, norm: nn.Module, source: nn.Module) -> None:
    convolution.weight.data.copy_(source.linear.weight.data.view_as(convolution.weight))
    _copy_norm(norm, source.norm)


def _copy_norm(norm: nn.Module, source: nn.Module) -> None:
    norm.load_state_dict(source.bn.state_dict())
