"""ParticleNet and PFN as published, in their plainest form: channels first, neighbours gathered before any layer.

The networks under test must be the same functions. Weights are taken from them, so both have the same random ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def particle_flow_network(model, features, mask, jet):
    """Per-particle layers, masked sum, joined with the jet, read out."""
    x = features
    for layer in model.layers:
        x = F.relu(torch.einsum("oc,ncp->nop", layer.weight, x) + layer.bias[:, None])
    return model.head(torch.cat(((x * mask).sum(dim=2), jet), dim=1))


def particle_net(model, points, features, mask, jet):
    """Feature convolution, edge convolutions, mean over the padded length, joined with the jet, read out."""
    x = batch_norm(model.input_norm, features * mask)
    x = F.relu(convolution(model.stem, x)) * mask
    if not isinstance(model.stem_norm, torch.nn.Identity):
        x = batch_norm(model.stem_norm, x) * mask
    for block in model.blocks:
        x = edge_convolution(block, points + (mask == 0) * 1e9, x) * mask
        points = x
    return model.head(torch.cat((x.mean(dim=2), jet), dim=1))


def edge_convolution(block, points, x):
    """points (N, D, P), x (N, C, P) -> (N, dim, P)."""
    index = neighbours(points, block.k)
    found = torch.stack([x[n][:, index[n]] for n in range(len(x))])  # (N, C, P, k)
    centre = x[:, :, :, None].expand(-1, -1, -1, block.k)
    edges = torch.cat((centre, found - centre), dim=1)
    for layer in [block.first, *block.rest]:
        edges = F.relu(convolution(layer, edges))
    shortcut = x if isinstance(block.shortcut, torch.nn.Identity) else convolution(block.shortcut, x)
    return F.relu(shortcut + edges.mean(dim=3))


def neighbours(points, k):
    """The k + 1 nearest, less the nearest, which is the particle itself: (N, D, P) -> (N, P, k)."""
    inner = points.transpose(1, 2) @ points
    square = (points**2).sum(dim=1)
    return (square[:, :, None] + square[:, None, :] - 2 * inner).topk(k + 1, largest=False)[1][:, :, 1:]


def convolution(layer, x):
    return batch_norm(layer.norm, torch.einsum("oc,nc...->no...", layer.linear.weight, x))


def batch_norm(norm, x):
    bn = norm.bn
    statistics = (None, None) if bn.training else (bn.running_mean, bn.running_var)
    return F.batch_norm(x, *statistics, bn.weight, bn.bias, bn.training, eps=bn.eps)
