"""Layers that the jet networks share: edge convolution, normalisation, fully connected layers.

Particles travel as (N, P, C): N jets, P particles, C features on the contiguous last axis, where a
linear layer is one plain matrix product. `real` is a boolean (N, P): True for a particle, False for
padding.

Edge convolution: Y. Wang et al., Dynamic Graph CNN for Learning on Point Clouds, arXiv:1801.07829;
in jets: H. Qu and L. Gouskos, ParticleNet, arXiv:1902.08570. Deep sets: Komiske, Metodiev, Thaler,
arXiv:1810.05165.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from common.errors import InputError, unknown
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
from networks.options import ModelInfo

# squared distance to a particle that must not be a neighbour: above any real one, below infinity
# (the particle itself)
FAR = 1e30


# ----------------------------------------------------------------------------- inputs and outputs


def input_order(
    data_config, groups: tuple[str, ...], optional: tuple[str, ...] = ()
) -> tuple[list[int], list[int]]:
    """Find where the data config puts each group of inputs, and how many variables each has.

    The groups are `groups`, then the `optional` ones that the data config has. Raises InputError
    where a group is missing or where the config defines one that the network does not use.
    """
    names = list(data_config.input_names)
    for group in groups:
        if group not in names:
            raise InputError(
                f"the network needs the input group '{group}':"
                f" {unknown('input group', group, names)}"
            )
    used_groups = [*groups, *(group for group in optional if group in names)]
    if unused_groups := sorted(set(names) - set(used_groups)):
        takes = ", ".join((*groups, *(f"{group} (if there)" for group in optional)))
        raise InputError(
            f"the network does not use the input group '{unused_groups[0]}' of the data config; it"
            f" takes {takes}"
        )
    order, variables = [], []
    for group in used_groups:
        shape = data_config.input_shapes[group]  # (N, C, P), (N, C), or (N,) for one variable
        order.append(names.index(group))
        variables.append(shape[1] if len(shape) > 1 else 1)
    return order, variables


def jet_values(groups: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Give groups of one value a jet, (N, J), or (N,) for a single variable, all as (N, J)."""
    return [group if group.dim() == 2 else group.reshape(group.shape[0], -1) for group in groups]


def describe(data_config, columns: Sequence[str] = ("output",)) -> ModelInfo:
    """Describe a network's inputs and output as Weaver's export reads them.

    That is their names, shapes and free axes; and beyond Weaver, what the output's columns are.
    """
    names = list(data_config.input_names)
    return {
        "input_names": names,
        "input_shapes": {name: (1, *data_config.input_shapes[name][1:]) for name in names},
        "output_names": ["output"],
        "output_shapes": {"output": (1, len(columns))},
        "output_columns": list(columns),
        "dynamic_axes": {name: {0: "N"} for name in [*names, "output"]},
    }


# ----------------------------------------------------------------------------------------- layers


class Norm(nn.Module):
    """Batch normalisation of the last axis: each feature over all jets, particles and edges.

    (..., C) -> (..., C). PyTorch's CPU kernel is nearly twice as fast where features lie on the
    last axis (memory format channels_last), hence the view as an image of one column. The inner
    BatchNorm2d is what SyncBatchNorm replaces on several GPUs.
    """

    def __init__(self, dim: int) -> None:
        """Make the batch normalisation of `dim` features."""
        super().__init__()
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        """Normalise x (..., dim), optionally followed by a ReLU; same shape."""
        # two nodes in the exported graph, where the view as an image would cost ten more
        if torch.onnx.is_in_onnx_export():
            scale, shift = affine(self.bn)
            y = x * scale + shift
            return functional.relu(y) if relu else y
        return batch_norm(x, self.bn, relu=relu)


class LinearNorm(nn.Module):
    """A linear layer and its normalisation: (..., C) -> (..., D), with ReLU on request.

    `norm`: "batch" (outside training both are one matrix product), "layer" (each row by itself: no
    dependence on the batch, and the same in training and after it) or "none" (a linear layer with a
    bias).
    """

    def __init__(self, in_dim: int, out_dim: int, norm: str = "batch") -> None:
        """Make a linear layer with the normalisation named `norm`."""
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim, bias=norm == "none")
        self.norm = {"batch": Norm, "layer": nn.LayerNorm, "none": nn.Identity}[norm](out_dim)
        self.by_batch = norm == "batch"
        self.by_row = norm == "layer"

    def forward(
        self, x: torch.Tensor, *, relu: bool = False, with_one: bool = False, keep_one: bool = False
    ) -> torch.Tensor:
        """Apply the layer: x (..., C) -> (..., D).

        with_one: x is (..., C + 1), and its last feature is the constant 1, which carries the bias
        (see networks/fast.py); not for training.
        keep_one: the result is (..., D + 1), with that constant appended for the next layer.
        """
        if with_one:
            y = linear_with_one(x, *self.with_bias(), keep=keep_one)
        else:
            y = linear(x, *self.weights())
        return self.finish(y, relu=relu)

    def weights(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight (D, C) and bias (D,), if there is one, to apply before `finish`."""
        if not self.by_batch or self.training:
            return self.linear.weight, self.linear.bias
        return self.with_bias()

    def with_bias(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (D, C) and bias (D,), with the batch normalisation folded into both.

        Use it outside training only, and not with layer normalisation, which cannot be folded.
        """
        if not self.by_batch:
            return self.linear.weight, self.linear.bias
        scale, shift = affine(cast(Norm, self.norm).bn)
        return self.linear.weight * scale[:, None], shift

    def finish(self, y: torch.Tensor, *, relu: bool) -> torch.Tensor:
        """Apply what follows the linear layer: normalisation and, with `relu`, ReLU.

        Args:
            y: (..., D), output of the linear layer.
            relu: whether to apply ReLU.

        Returns:
            (..., D).
        """
        if self.by_batch and self.training:
            return self.norm(y, relu=relu)
        y = y if self.by_batch else self.norm(y)
        return functional.relu(y) if relu else y


def chain_with_one(layers: Iterable[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Apply LinearNorms with ReLU one after another, as an exported graph holds them.

    (..., C + 1), the last feature one, -> (..., D).
    """
    chain = list(layers)
    for layer in chain:
        x = layer(x, relu=True, with_one=True, keep_one=layer is not chain[-1])
    return x


class EdgeConv(nn.Module):
    """Edge convolution over the k nearest neighbours, mean over neighbours, shortcut.

    (N, P, C) -> (N, P, dim). The first layer is W (x_i, x_j - x_i) = (W_a - W_b) x_i + W_b x_j:
    both products are done once a particle, before the neighbours are gathered, instead of once an
    edge.
    """

    def __init__(
        self, in_dim: int, dim: int, num_layers: int, k: int, use_counts: bool, norm: str = "batch"
    ) -> None:
        """Make an edge convolution from `in_dim` to `dim` features over k neighbours."""
        super().__init__()
        self.k, self.use_counts = k, use_counts
        self.first = LinearNorm(2 * in_dim, dim, norm)
        self.rest = nn.ModuleList(LinearNorm(dim, dim, norm) for _ in range(num_layers - 1))
        self.shortcut = nn.Identity() if in_dim == dim else LinearNorm(in_dim, dim, norm)

    def forward(self, points: torch.Tensor, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return points (N, P, D), features x (N, P, C) and real (N, P) -> (N, P, dim)."""
        particles = int(x.shape[1])  # a plain number: the exported graph has one multiplicity
        neighbours = nearest_neighbours(
            points, real, self.k, self.use_counts, training=self.training, particles=particles
        )  # (N, P, k)
        if torch.onnx.is_in_onnx_export() and not self.first.by_row:
            mean = self.exported_mean(x, rows_of(neighbours, real, particles))
        else:
            mean = self.mean_over_edges(x, neighbours)
        return functional.relu(self.shortcut(x) + mean)  # (N, P, dim)

    def mean_over_edges(self, x: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """Apply all layers to all edges, and take the mean over the edges of each particle.

        (N, P, C) and (N, P, k) -> (N, P, dim).
        """
        edges = self.first_layer(x, neighbours)  # (N, P, k, dim)
        for layer in self.rest:
            edges = layer(edges, relu=True)
        return mean_of_neighbours(edges)

    def exported_mean(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Compute mean_over_edges in the form that ONNX Runtime does best."""
        edges = edges_with_one(x, rows, *self.first.with_bias(), keep=len(self.rest) > 0)
        return mean_of_neighbours(chain_with_one(self.rest, edges))

    def first_layer(self, x: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        """Apply the first layer, its norm and ReLU to all edges.

        (N, P, C) and (N, P, k) -> (N, P, k, dim).
        """
        weight, bias = self.first.weights()
        of_self, of_difference = weight.chunk(2, dim=1)  # (dim, C) each
        centre = linear(x, of_self - of_difference, bias)  # (N, P, dim)
        others = linear(x, of_difference)  # (N, P, dim)
        if self.first.by_batch and self.training:
            norm = cast(Norm, self.first.norm).bn
            return edge_sum_norm_relu(centre, others, neighbours, norm)
        return self.first.finish(edge_sum(centre, others, neighbours), relu=True)


def nearest_neighbours(
    points: torch.Tensor,
    real: torch.Tensor,
    k: int,
    use_counts: bool,
    *,
    training: bool = False,
    particles: int | None = None,
) -> torch.Tensor:
    """Return the indices (N, P, k) of each particle's k nearest others, in any order.

    points: (N, P, D), with finite values in padding; P > k. real: (N, P), False for padding.

    use_counts decides what fills the k places if a jet has too few other particles. With it, the
    particle itself does, and padding is never a neighbour. Without it, padding does, as in the
    published network.

    The neighbours of padding affect nothing but batch statistics in training without `use_counts`.
    Only in that case are they restricted to padding, as in the published network.

    Distances are computed in float32 also under autocast, because in bf16 other particles would
    seem nearest. particles: P as in `Rows`; default: from the shape of `points`.
    """
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        if training and not use_counts:
            apart = real[:, None, :] != real[:, :, None]  # (N, P, P)
        else:
            apart = ~real[:, None, :]  # (N, 1, P)
        particle = torch.arange(particles or points.shape[1], device=points.device)
        # (P, P); to add is quicker than to fill in, above all in ONNX
        itself = torch.where(particle[:, None] == particle, torch.inf, 0.0)
        points = points.float()
        penalty = torch.where(apart, FAR, 0.0)
        distance = squared_distances(points, penalty) + itself  # (N, P, P)
        distance, index = distance.topk(k, dim=-1, largest=False, sorted=False)
        if not use_counts:
            return index
        return torch.where(distance < FAR, index, particle[:, None])


def squared_distances(points: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Return squared distances (N, P, D) -> (N, P, P), for ordering along the last axis.

    In more than 3 dimensions |x_i|^2, the same in a row, is left out. `penalty` (N, 1 or P, P) is
    added.
    """
    # differences keep all digits where coordinates are nearly equal, and cost little here
    if points.shape[-1] <= 3:
        differences = (
            points[:, :, None, d] - points[:, None, :, d] for d in range(points.shape[-1])
        )
        return sum(difference.square() for difference in differences) + penalty
    # |x_j|^2 - 2 x_i x_j
    squares = points.square().sum(-1)[:, None, :]  # (N, 1, P)
    return squares + penalty - 2 * torch.matmul(points, points.transpose(1, 2))


def fully_connected(
    in_dim: int, num_layers: int, dim: int, dropout: float, out_dim: int = 1
) -> nn.Sequential:
    """Build `num_layers` hidden layers with ReLU and dropout, then a linear one.

    (N, in_dim) -> (N, out_dim). The last layer begins at zero, so that an untrained network answers
    log ratio 0, which is the standard JEC itself: training starts from there and need not first
    unlearn random answers.
    """
    layers: list[nn.Module] = []
    for index in range(num_layers):
        layers += [nn.Linear(dim if index else in_dim, dim), nn.ReLU()]
        layers += [nn.Dropout(dropout)] if dropout else []
    last = nn.Linear(dim, out_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
