"""The residual correction (physics.residual) as the last layer of a network.

    model = CorrectedNetwork(network, residual)
    output = model(*inputs, residual_features)     # (N, C)

It takes one more input than the network, `residual_features` (N, 2) of
weaver/onnx/residual_features.py, and adds log r to all of the network's outputs. It consists of
comparisons, gathers and a cubic polynomial, for which ONNX Runtime has kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from physics import response as r
from physics.residual import INNER_EDGES, Residual
from weaver.onnx.residual_features import FEATURES

LEAST_PT = 1e-3  # GeV; for a smaller pT, r is that of the first knot


class ResidualLayer(torch.nn.Module):
    """Compute log r of jets from tables with a row for each region, or each piece of its curve."""

    edges: torch.Tensor
    """(regions - 1,) of |eta|."""
    ends: torch.Tensor
    """(regions, 2): the range of log(pT / GeV) outside of which r is constant."""
    inner: torch.Tensor
    """(regions, pieces - 1): the knots between pieces."""
    lower: torch.Tensor
    """(regions * pieces,): the lower knot of each piece."""
    pieces: torch.Tensor
    """(regions * pieces, 4): the polynomial coefficients of each piece."""

    def __init__(self, residual: Residual) -> None:
        """Make the tables of knots and pieces of each eta region."""
        super().__init__()
        curves = [residual.curves[region] for region in r.REGIONS]
        # At least two, because a table without knots would be empty.
        self.num_pieces = max(2, *(len(curve.pieces) for curve in curves))

        def table(rows: Sequence[Any]) -> torch.Tensor:
            return torch.tensor(rows, dtype=torch.float32)

        ends, inner, lower, pieces = [], [], [], []
        for curve in curves:
            missing = self.num_pieces - len(curve.pieces)
            ends.append([curve.knots[0], curve.knots[-1]])
            # No pT exceeds an infinite knot, so that the additional pieces are never used.
            inner.append([*curve.knots[1:-1], *[math.inf] * missing])
            lower += [*curve.knots[:-1], *[0.0] * missing]
            pieces += [*curve.pieces, *[(0.0, 0.0, 0.0, 0.0)] * missing]
        self.register_buffer("edges", table(INNER_EDGES))
        self.register_buffer("ends", table(ends))
        self.register_buffer("inner", table(inner))
        self.register_buffer("lower", table(lower))
        self.register_buffer("pieces", table(pieces))

    def forward(self, log_pt: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
        """Compute log r (N,) from log(calibrated pT / GeV) (N,) and jetEta (N,)."""
        region = (eta.abs()[:, None] >= self.edges).long().sum(1)  # (N,)
        ends = self.ends[region]  # (N, 2)
        x = torch.minimum(torch.maximum(log_pt, ends[:, 0]), ends[:, 1])
        piece = (x[:, None] >= self.inner[region]).long().sum(1)
        row = region * self.num_pieces + piece
        step = x - self.lower[row]
        c = self.pieces[row]  # (N, 4)
        return c[:, 0] + step * (c[:, 1] + step * (c[:, 2] + step * c[:, 3]))


class CorrectedNetwork(torch.nn.Module):
    """A network followed by the residual correction."""

    def __init__(self, network: torch.nn.Module, residual: Residual) -> None:
        """Take a network whose outputs are logarithms of factors, and the correction."""
        super().__init__()
        self.network = network
        self.residual = ResidualLayer(residual)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return outputs (N, C), logarithms, of the inputs and `residual_features` (N, 2)."""
        *of_network, features = inputs
        output = self.network(*of_network)
        log_pt = torch.log(features[:, 0].clamp(min=LEAST_PT)) + output[:, 0]
        return output + self.residual(log_pt, features[:, 1])[:, None]


def with_features(info: Mapping[str, Any]) -> dict[str, Any]:
    """Add the residual correction's input to the model_info of a network."""
    return {
        **info,
        "input_names": [*info["input_names"], FEATURES],
        "input_shapes": {**info["input_shapes"], FEATURES: (-1, 2)},
    }
