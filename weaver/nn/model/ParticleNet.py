"""ParticleNet and ParticleNetTagger, which network files written for weaver-core import.

H. Qu, L. Gouskos, arXiv:1902.08570. Arguments, names of the weights and outputs are those of
weaver-core 0.5.3, so that its files of weights can be loaded. Internally, arrays are (N, P, C), in
which a convolution of width 1 is one matrix product. The first layer of an edge convolution,
W (x_i, x_j - x_i) = (W_a - W_b) x_i + W_b x_j, is computed once for each particle instead of once
for each edge.

As in the published network, batch normalisation averages over padded places too in training, and
`use_counts=False` averages particles over the padded length. One difference: weaver-core does not
trim the first five batches, with which a resumed training would differ from an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from common.errors import InputError
from networks.fast import (
    Rows,
    affine,
    batch_norm,
    edge_sum,
    edge_sum_norm_relu,
    edges_with_one,
    linear,
    linear_with_one,
    mean_of_neighbours,
    rows_of,
)
from networks.layers import nearest_neighbours

# in training, a batch is cut to a length drawn between these quantiles of its multiplicities
TRIM_QUANTILES = (0.9, 1.02)
CONV_PARAMS = ((7, (32, 32, 32)), (7, (64, 64, 64)))
FC_PARAMS = ((128, 0.1),)


class EdgeConvBlock(nn.Module):
    """Edge convolution with a shortcut.

    points (N, D, P), features (N, C, P) and mask (N, 1, P) -> (N, C', P).
    """

    def __init__(self, k: int, in_feat: int, out_feats: Sequence[int]) -> None:
        """Make the layers; arguments as in weaver-core."""
        super().__init__()
        self.k = k
        dims = [2 * in_feat, *out_feats]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, kernel_size=1, bias=False) for a, b in pairwise(dims)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(dim) for dim in out_feats)
        self.sc = None
        if in_feat != out_feats[-1]:
            self.sc = nn.Conv1d(in_feat, out_feats[-1], kernel_size=1, bias=False)
            self.sc_bn = nn.BatchNorm1d(out_feats[-1])

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """Points (N, D, P), features (N, C, P), mask (N, 1, P) -> (N, C', P)."""
        neighbours = nearest_neighbours(
            points.transpose(1, 2), mask[:, 0], self.k, use_counts=False, training=self.training
        )  # (N, P, k)
        x = features.transpose(1, 2)  # (N, P, C)
        if torch.onnx.is_in_onnx_export():
            mean = self._mean_for_export(x, rows_of(neighbours, mask, mask.shape[-1]))
        else:
            mean = self._mean_over_edges(x, neighbours)  # (N, P, C')
        shortcut = x
        if self.sc is not None:
            shortcut = batch_norm(linear(x, _matrix(self.sc)), self.sc_bn, relu=False)
        return functional.relu(shortcut + mean).transpose(1, 2)

    def _mean_over_edges(self, x: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """Apply all layers to all edges, and take the mean over the edges of each particle.

        (N, P, C) and (N, P, k) -> (N, P, C').
        """
        of_self, of_difference = _matrix(self.convs[0]).chunk(2, dim=1)  # (C', C) each
        centre = linear(x, of_self - of_difference)  # (N, P, C')
        other = linear(x, of_difference)
        if self.training:
            edges = edge_sum_norm_relu(centre, other, neighbours, self.bns[0])  # (N, P, k, C')
        else:
            edges = batch_norm(edge_sum(centre, other, neighbours), self.bns[0], relu=True)
        for conv, bn in zip(self.convs[1:], self.bns[1:], strict=True):
            edges = batch_norm(linear(edges, _matrix(conv)), bn, relu=True)
        return mean_of_neighbours(edges)

    def _mean_for_export(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Compute _mean_over_edges in the form that is fastest in ONNX Runtime."""
        layers = []
        for conv, bn in zip(self.convs, self.bns, strict=True):
            # outside training, batch normalisation is a factor and a bias for each output
            scale, shift = affine(bn)
            layers.append((_matrix(conv) * scale[:, None], shift))
        first, *rest = layers
        edges = edges_with_one(x, rows, *first, keep=len(rest) > 0)
        for number, (weight, bias) in enumerate(rest, start=1):
            edges = functional.relu(linear_with_one(edges, weight, bias, keep=number < len(rest)))
        return mean_of_neighbours(edges)


def _matrix(conv: nn.Module) -> torch.Tensor:
    """The weight (D, C) of a convolution of width 1."""
    return cast(nn.Conv2d, conv).weight.flatten(1)  # (D, C, 1) or (D, C, 1, 1)


class ParticleNet(nn.Module):
    """ParticleNet for one kind of particles.

    points (N, D, P), features (N, C, P), mask (N, 1, P) -> (N, num_classes): logits, or with
    `for_inference` softmaxed scores.
    """

    def __init__(
        self,
        input_dims: int,
        num_classes: int,
        conv_params: Sequence[tuple[int, Sequence[int]]] = CONV_PARAMS,
        fc_params: Sequence[tuple[int, float]] = FC_PARAMS,
        use_fusion: bool = True,
        use_fts_bn: bool = True,
        use_counts: bool = True,
        trim: bool = True,
        for_inference: bool = False,
        for_segmentation: bool = False,
        use_amp: bool = False,
        compile_model: bool = False,
        **kwargs,
    ) -> None:
        """Make the layers; arguments as in weaver-core. Raises InputError for segmentation."""
        super().__init__(**kwargs)
        if for_segmentation:
            raise InputError(
                "ParticleNet: for_segmentation=True (an answer for each particle) is not supported"
                " here; leave it out"
            )
        self.use_fts_bn = use_fts_bn
        self.use_counts = use_counts
        self.use_fusion = use_fusion
        self.for_inference = for_inference
        self.trims = trim and not for_inference
        self.least = max(k for k, _ in conv_params) + 1  # places that a search for k needs
        if use_fts_bn:
            self.bn_fts = nn.BatchNorm1d(input_dims)
        outputs = [channels[-1] for _, channels in conv_params]
        inputs = [input_dims, *outputs]
        self.edge_convs = nn.ModuleList(
            EdgeConvBlock(k, a, channels)
            for a, (k, channels) in zip(inputs, conv_params, strict=False)
        )
        dim = outputs[-1]
        if use_fusion:
            dim = int(np.clip(sum(outputs) // 128 * 128, 128, 1024))
            self.fusion_block = nn.Sequential(
                nn.Conv1d(sum(outputs), dim, kernel_size=1, bias=False),
                nn.BatchNorm1d(dim),
                nn.ReLU(),
            )
        layers: list[nn.Module] = []
        for width, rate in fc_params:
            layers.append(nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(rate)))
            dim = width
        self.fc = nn.Sequential(*layers, nn.Linear(dim, num_classes))

    def forward(
        self, points: torch.Tensor, features: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Points (N, D, P), features (N, C, P), mask (N, 1, P) -> (N, num_classes)."""
        mask = torch.ones_like(features[:, :1], dtype=torch.bool) if mask is None else mask.bool()
        if self.trims:
            points, features, mask = trim_padding(
                points, features, mask, training=self.training, least=self.least
            )
        points, features, mask = _pad_to_least(points, features, mask, self.least)
        padding = ~mask
        points = points.masked_fill(padding, 0)  # also if padding contains NaN
        x = self.bn_fts(features).masked_fill(padding, 0) if self.use_fts_bn else features
        outputs = []
        for index, conv in enumerate(self.edge_convs):
            x = conv(x if index else points, x, mask).masked_fill(padding, 0)
            outputs.append(x)
        if self.use_fusion:
            conv, bn, _ = self.fusion_block
            x = torch.cat(outputs, dim=1).transpose(1, 2)  # (N, P, sum of the blocks' outputs)
            x = batch_norm(linear(x, _matrix(conv)), bn, relu=True)
            x = x.transpose(1, 2).masked_fill(padding, 0)  # (N, C, P)
        if self.use_counts:
            counts = mask.sum(dim=-1).clamp(min=1)  # (N, 1)
            x = x.sum(dim=-1) / counts  # (N, C)
        else:
            x = x.mean(dim=-1)
        answer = self.fc(x)
        return answer.softmax(dim=1) if self.for_inference else answer


class FeatureConv(nn.Module):
    """Features of one kind of particle (N, C, P) -> (N, C', P)."""

    def __init__(self, in_chn: int, out_chn: int, **kwargs) -> None:
        """Make the layers; arguments as in weaver-core."""
        super().__init__(**kwargs)
        layers = (
            nn.BatchNorm1d(in_chn),
            nn.Conv1d(in_chn, out_chn, kernel_size=1, bias=False),
            nn.BatchNorm1d(out_chn),
            nn.ReLU(),
        )
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Input (N, in_chn, P) -> (N, out_chn, P)."""
        return self.conv(x)


class ParticleNetTagger(nn.Module):
    """ParticleNet for two kinds of particles, candidates and secondary vertices.

    Each kind has its own feature convolution.
    """

    def __init__(
        self,
        pf_features_dims: int,
        sv_features_dims: int,
        num_classes: int,
        conv_params: Sequence[tuple[int, Sequence[int]]] = CONV_PARAMS,
        fc_params: Sequence[tuple[int, float]] = FC_PARAMS,
        use_fusion: bool = True,
        use_fts_bn: bool = True,
        use_counts: bool = True,
        trim: bool = True,
        pf_input_dropout: float | None = None,
        sv_input_dropout: float | None = None,
        for_inference: bool = False,
        use_amp: bool = False,
        compile_model: bool = False,
        **kwargs,
    ) -> None:
        """Make the layers; arguments as in weaver-core."""
        super().__init__(**kwargs)
        self.trims = trim and not for_inference
        self.pf_input_dropout = nn.Dropout(pf_input_dropout) if pf_input_dropout else None
        self.sv_input_dropout = nn.Dropout(sv_input_dropout) if sv_input_dropout else None
        self.pf_conv = FeatureConv(pf_features_dims, 32)
        self.sv_conv = FeatureConv(sv_features_dims, 32)
        self.pn = ParticleNet(
            32,
            num_classes,
            conv_params,
            fc_params,
            use_fusion,
            use_fts_bn,
            use_counts,
            trim=False,
            for_inference=for_inference,
        )

    def forward(
        self, pf_points, pf_features, pf_mask, sv_points, sv_features, sv_mask
    ) -> torch.Tensor:
        """Particles and secondary vertices, each (N, C, P) -> (N, num_classes)."""
        pf = self._kind(pf_points, pf_features, pf_mask, self.pf_conv, self.pf_input_dropout)
        sv = self._kind(sv_points, sv_features, sv_mask, self.sv_conv, self.sv_input_dropout)
        return self.pn(*(torch.cat(pair, dim=2) for pair in zip(pf, sv, strict=True)))

    def _kind(
        self, points, features, mask, conv: nn.Module, dropout: nn.Module | None
    ) -> tuple[torch.Tensor, ...]:
        """Points (N, D, P), features (N, 32, P) and mask (N, 1, P) of one kind of particles."""
        mask = mask.bool()
        if self.trims:
            points, features, mask = trim_padding(points, features, mask, training=self.training)
        if dropout is not None:
            mask = dropout(mask.float()) != 0
            points = points * mask
        return points, conv(features * mask) * mask, mask


def _pad_to_least(
    points: torch.Tensor, features: torch.Tensor, mask: torch.Tensor, least: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Add padded places to shorter jets; each of the three becomes (N, C, max(P, least))."""
    short: int | torch.Tensor = least - mask.shape[-1]
    if torch.onnx.is_in_onnx_export():
        # A tensor of the graph, which must be right at other lengths than the traced one. A
        # comparison in Python would turn it into a constant.
        short = torch.as_tensor(short).clamp(min=0)
    elif short <= 0:
        return points, features, mask
    pad = cast(list[int], (0, short))
    return functional.pad(points, pad), functional.pad(features, pad), functional.pad(mask, pad)


@torch.no_grad()
def trim_padding(
    points: torch.Tensor,
    features: torch.Tensor,
    mask: torch.Tensor,
    *,
    training: bool,
    least: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trim jets to a common length of at least `least`, which saves work on padding.

    Each of the three becomes (N, C, P'). Outside training P' is the largest multiplicity, so that
    no particle is lost. In training it is a random quantile of the multiplicities, and particles
    are shuffled, so that long jets lose random particles.
    """
    counts = mask.sum(dim=-1)
    if not training:
        length = int(counts.max().clamp(min=least))
    else:
        quantile = torch.empty(1, device=mask.device).uniform_(*TRIM_QUANTILES).clamp_(max=1)
        length = int(torch.quantile(counts.float(), quantile).clamp(min=least))
        # random keys for particles; padding gets a lower key, so that it comes last
        keys = torch.rand(mask.shape, device=mask.device).masked_fill_(~mask, -1)  # (N, 1, P)
        order = keys.argsort(dim=-1, descending=True)
        points = points.gather(-1, order.expand_as(points))
        features = features.gather(-1, order.expand_as(features))
        mask = mask.gather(-1, order.expand_as(mask))
    return points[..., :length], features[..., :length], mask[..., :length]
