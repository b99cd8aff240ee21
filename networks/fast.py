"""Faster linear layers, batch normalisation and sums over edges for training on a CPU.

Their results are those of `F.linear`, `F.batch_norm` and plain indexing. On a GPU, under
torch.compile (which fuses operations itself) and in an exported graph, PyTorch's own operations
are used instead. The times below were measured on 2 cores with 409,600 rows (a batch of 256 jets,
100 particles, 16 neighbours) of 50 features: `python -m benchmarks.networks` measures the networks
themselves.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, Protocol, TypeGuard, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

PARTS = 64  # parts into which rows are divided for a sum over them
LANES = 32  # values of bfloat16 in a vector register of 512 bits; a multiple for float32 too


class TrackingNorm(Protocol):
    """The attributes of a BatchNorm1d or 2d that are used here; running statistics are (C,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float
    momentum: float
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor


def use_torch_operations(x: torch.Tensor) -> bool:
    """Return whether to use PyTorch's own operations: off the CPU, when compiling or exporting."""
    return x.device.type != "cpu" or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """W x + b: x (..., C), weight (D, C), bias (D,) -> (..., D).

    Done as a convolution of width 1 over an image of one column with channels last, which needs no
    copy: it goes to oneDNN, whose products of a tall and a small matrix, and their gradients, take
    a third of the time of the BLAS behind F.linear in float32.
    """
    if use_torch_operations(x):
        return functional.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype("cpu")
        x = x.to(dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    rows = x.reshape(-1, x.shape[-1])  # (R, C)
    if x.dtype == torch.bfloat16:
        y = _LinearBF16.apply(rows, weight, bias)
    else:
        y = _product(rows, weight, bias)
    return y.view(*x.shape[:-1], weight.shape[0])  # (..., D)


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """W x + b: x (R, C), weight (D, C), bias (D,) -> (R, D)."""
    kernel = weight[:, :, None, None]  # (D, C, 1, 1)
    return _rows(functional.conv2d(_image(x), kernel, bias), (len(x), len(weight)))


def batch_norm(x: torch.Tensor, norm: nn.Module, *, relu: bool) -> torch.Tensor:
    """Normalise the last axis of x (..., C) over all others (batch norm), with or without ReLU.

    `norm`: a BatchNorm1d or 2d, whose running statistics are updated.
    """
    if _is_computed_here(norm, x):
        y, mean, variance = _BatchNormReLU.apply(x, norm.weight, norm.bias, norm.eps, relu)
        _update_running_statistics(norm, mean, variance, x.numel() // x.shape[-1])
        return y
    if isinstance(norm, nn.BatchNorm1d):
        y = norm(x.reshape(-1, x.shape[-1])).view(x.shape)  # as (R, C) and back
    else:
        y = _rows(norm(_image(x)), x.shape)  # as (1, C, R, 1) and back
    return functional.relu(y) if relu else y


def affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and shift (C,) that equal a batch normalisation outside training."""
    tracking = cast(TrackingNorm, norm)
    scale = tracking.weight / torch.sqrt(tracking.running_var + tracking.eps)
    return scale, tracking.bias - tracking.running_mean * scale


class Edges:
    """Edges from each particle of a batch to its k nearest neighbours.

    The particles of all jets are numbered as rows 0 ... R - 1, with R = N P. Edge `i k + n` begins
    at row i and ends at row `to[i, n]`, with `to` (R, k). `counts` (R, 1) is the number of edges
    that end at each row. `order` (R k,) lists the edges sorted by the row at which they end; those
    of row j begin at `starts[j]`. So a sum over all edges that end at a row is a sum over a
    contiguous part of `order`.
    """

    def __init__(self, index: torch.Tensor) -> None:
        """Take the k nearest neighbours of each particle, as positions in the jet; (N, P, k)."""
        self.index = index  # (N, P, k)
        self.k = index.shape[2]
        self.to = rows_of(index, index, index.shape[1]).neighbours.view(-1, self.k)  # (R, k)

    @functools.cached_property
    def order(self) -> torch.Tensor:
        """Return the indices of the edges sorted by neighbour, (R k,); only training needs them."""
        within = self.index.reshape(len(self.index), -1)  # (N, P k)
        # NumPy sorts numbers of 16 bits by radix, in a third of the time that torch takes.
        short = torch.int16 if self.index.shape[1] <= 2**15 else torch.int32
        order = np.argsort(within.to(short).numpy(), axis=1, kind="stable")  # (N, P k)
        first_edge = torch.arange(len(within))[:, None] * within.shape[1]  # (N, 1), of each jet
        return (torch.from_numpy(order) + first_edge).view(-1)  # (R k,)

    @functools.cached_property
    def counts(self) -> torch.Tensor:
        """Return how many edges end at each row; (R, 1)."""
        return self.to.view(-1).bincount(minlength=len(self.to))[:, None]

    @functools.cached_property
    def starts(self) -> torch.Tensor:
        """Return where the edges of each row begin, if edges are sorted by row; (R,)."""
        return self.counts[:, 0].cumsum(0) - self.counts[:, 0]


def edge_sum(centre: torch.Tensor, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Sum centre_i + x_j on the edges from each particle i to its neighbours j.

    Two (N, P, C) and index (N, P, k) -> (N, P, k, C).
    """
    if use_torch_operations(x):
        return _plain_edge_sum(centre, x, rows_of(index, x, x.shape[1]))
    dim = x.shape[-1]
    y = _EdgeSum.apply(centre.reshape(-1, dim), x.reshape(-1, dim), Edges(index))  # (R k, C)
    return y.view(*index.shape, -1)  # (N, P, k, C)


class Rows(NamedTuple):
    """The rows of each particle's neighbours (N, P, k), as in `Edges`, and P (`particles`).

    In a traced graph, P is a constant if `particles` is a Python int. If it is read from a shape,
    the graph computes it in each run.
    """

    neighbours: torch.Tensor
    particles: int


def rows_of(index: torch.Tensor, batch: torch.Tensor, particles: int) -> Rows:
    """Convert neighbours from positions within their jet, `index` (N, P, k), to rows.

    Only the length N of `batch` (N, ...) is used. If all blocks of a network pass the same tensor,
    an exported graph computes the first row of each jet only once.
    """
    jet = torch.arange(batch.shape[0], device=index.device)[:, None, None]  # (N, 1, 1)
    return Rows(index + jet * particles, particles)


def _plain_edge_sum(centre: torch.Tensor, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Compute edge_sum by rows: the exporter turns an embedding into a plain Gather."""
    k = int(rows.neighbours.shape[2])
    dim = int(x.shape[2])
    centre = centre.unsqueeze(2)  # (N, P, 1, C)
    others = functional.embedding(rows.neighbours.reshape(-1), x.reshape(-1, dim))  # (N P k, C)
    return centre + others.view(-1, rows.particles, k, dim)  # (N, P, k, C)


def edge_sum_norm_relu(
    centre: torch.Tensor, x: torch.Tensor, index: torch.Tensor, norm: nn.Module
) -> torch.Tensor:
    """Compute ReLU(norm(centre_i + x_j)) on the edges: shapes as of edge_sum.

    In training, `norm` uses the mean and variance over all edges. Both are computed from sums over
    particles, so that `norm` is applied to the particles, of which there are k times fewer.
    """
    if not _is_computed_here(norm, x):
        return batch_norm(edge_sum(centre, x, index), norm, relu=True)
    edges = Edges(index)
    dim = x.shape[-1]
    centre = centre.reshape(-1, dim)  # (R, C)
    x = x.reshape(-1, dim)  # (R, C)
    # in float32 also under autocast, as batch normalisation counts
    mean, variance = _edge_statistics(centre.to(norm.weight.dtype), x.to(norm.weight.dtype), edges)
    _update_running_statistics(norm, mean.detach(), variance.detach(), edges.to.numel())

    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    shifted = torch.addcmul(norm.bias - mean * scale, centre, scale).to(x.dtype)
    y = _EdgeSum.apply(shifted, (x * scale).to(x.dtype), edges)  # (R k, C)
    return functional.relu(y, inplace=True).view(*index.shape, dim)  # (N, P, k, C)


def _edge_statistics(
    centre: torch.Tensor, x: torch.Tensor, edges: Edges
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance (C,) of centre_i + x_j over all edges, from (R, C) each."""
    number = edges.to.numel()
    counts = edges.counts.to(x.dtype)  # (R, 1)
    mean_centre = centre.mean(dim=0)
    mean_x = (counts.t() @ x)[0] / number  # each particle as often as it is a neighbour

    # the means first, so that no digits are lost in the squares
    centre = centre - mean_centre
    x = x - mean_x

    # (c_i + x_j)^2 over the edges of i: k c_i^2 + 2 c_i sum of x_j, and x_j^2 counted by neighbour
    of_centre = centre * (edges.k * centre + 2 * _NeighbourSum.apply(x, edges))  # (R, C)
    squares = torch.addcmul(of_centre, counts * x, x)
    return mean_centre + mean_x, squares.sum(dim=0) / number


# In an exported graph the layers on edges, and the PFN's on particles, are products without biases:
# ONNX Runtime would add a bias in a further pass over all rows. One more feature, the last, is one
# in every row and carries the biases from product to product.


def edges_with_one(
    x: torch.Tensor, rows: Rows, weight: torch.Tensor, bias: torch.Tensor, *, keep: bool
) -> torch.Tensor:
    """Compute ReLU(W (x_i, x_j - x_i) + b) on edges: x (N, P, C), weight (D, 2C) -> (N, P, k, D).

    With `keep` the answer has D + 1 features, the last of which is one.
    """
    of_self, of_difference = weight.chunk(2, dim=1)  # (D, C) each
    of_centre = of_self - of_difference
    if keep:
        none = torch.zeros_like(of_self[:1])
        of_centre = torch.cat((of_centre, none))  # (D + 1, C)
        of_difference = torch.cat((of_difference, none))
        bias = torch.cat((bias, torch.ones_like(bias[:1])))
    centre = functional.linear(x, of_centre, bias)
    others = functional.linear(x, of_difference)
    return functional.relu(_plain_edge_sum(centre, others, rows))


def linear_with_one(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, keep: bool
) -> torch.Tensor:
    """W x + b where the last feature of x (..., C + 1) is one: -> (..., D).

    With `keep` the answer has D + 1 features, the last of which is one again.
    """
    weight = torch.cat((weight, bias[:, None]), dim=1)  # (D, C + 1)
    if keep:
        zeros = torch.zeros_like(weight[:1, 1:])
        unit = torch.ones_like(weight[:1, :1])
        weight = torch.cat((weight, torch.cat((zeros, unit), dim=1)))  # (D + 1, C + 1)
    return x @ weight.t()


def mean_of_neighbours(edges: torch.Tensor) -> torch.Tensor:
    """Return mean over k: (N, P, k, C) -> (N, P, C)."""
    if use_torch_operations(edges):
        return edges.sum(dim=2) * (1 / int(edges.shape[2]))  # mean() is slower backward
    return _MeanOfNeighbours.apply(edges)


def sum_of_particles(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum over particles, weighted by the mask: x (N, P, C) and mask (N, 1, P) -> (N, C).

    The mask is one for a particle and zero for padding. As a product: in one pass over x, where to
    multiply and then to add takes two.
    """
    # flatten and not squeeze, for which the exporter must ask how large the axis is
    return torch.bmm(mask, x).flatten(1)  # (N, 1, C) -> (N, C)


# Sums of rows go through embedding_bag: its kernels run in parallel over bags and, for bfloat16,
# add in float32.


def _sums_of_edges(rows: torch.Tensor, k: int) -> torch.Tensor:
    """Sum over each particle's own k edges: (R k, C) -> (R, C)."""
    own = torch.arange(len(rows), device=rows.device).view(-1, k)  # (R, k)
    return functional.embedding_bag(own, rows, mode="sum")


class _EdgeSum(torch.autograd.Function):
    """Sum centre[i] + x[to] on edges: two (R, C) -> (R k, C)."""

    @staticmethod
    def forward(ctx, centre, x, edges):
        ctx.edges = edges
        # Each bag holds two rows of (centre, x), one below the other: (2 R, C).
        itself = torch.arange(len(x), device=x.device)[:, None].expand_as(edges.to)  # (R, k)
        pairs = torch.stack((itself, edges.to + len(x)), dim=-1).view(-1, 2)  # (R k, 2)
        return functional.embedding_bag(pairs, torch.cat((centre, x)), mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        edges = ctx.edges
        gradient = gradient.contiguous()  # (R k, C)
        of_centre = _sums_of_edges(gradient, edges.k)
        of_x = functional.embedding_bag(edges.order, gradient, edges.starts, mode="sum")
        return of_centre, of_x, None


class _NeighbourSum(torch.autograd.Function):
    """Sum of x over each particle's neighbours: (R, C) -> (R, C)."""

    @staticmethod
    def forward(ctx, x, edges):
        ctx.edges = edges
        return functional.embedding_bag(edges.to, x, mode="sum")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        edges = ctx.edges
        particle = edges.order // edges.k  # (R k,), at which each edge begins
        of_x = functional.embedding_bag(particle, gradient.contiguous(), edges.starts, mode="sum")
        return of_x, None


class _MeanOfNeighbours(torch.autograd.Function):
    """Mean over k: (N, P, k, C) -> (N, P, C).

    Its gradient lies contiguously, on which the next backward pass is quickest.
    """

    @staticmethod
    def forward(ctx, edges):
        ctx.shape = jets, particles, k, dim = edges.shape
        sums = _sums_of_edges(edges.reshape(-1, dim), k)  # (N P k, C) -> (N P, C)
        return sums.mul_(1 / k).view(jets, particles, dim)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        jets, particles, k, dim = ctx.shape
        of_edge = gradient.reshape(-1, dim) / k  # (N P, C)
        return of_edge.repeat(1, k).view(jets, particles, k, dim)


def _image(x: torch.Tensor) -> torch.Tensor:
    """View (..., C) as an image (1, C, R, 1) whose channels lie next to each other.

    No copy if x is contiguous.
    """
    return x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)


def _rows(image: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Back from (1, C, R, 1) to (..., C)."""
    return image.permute(0, 2, 3, 1).reshape(shape)


def _is_computed_here(norm: nn.Module, x: torch.Tensor) -> TypeGuard[TrackingNorm]:
    """Return whether this module computes the normalisation, and not PyTorch's."""
    # SyncBatchNorm is another class; it needs the statistics of the other GPUs
    if type(norm) not in (nn.BatchNorm1d, nn.BatchNorm2d):
        return False
    tracks = bool(norm.affine and norm.track_running_stats and norm.momentum is not None)
    return tracks and norm.training and not use_torch_operations(x)


@torch.no_grad()
def _update_running_statistics(
    norm: TrackingNorm, mean: torch.Tensor, variance: torch.Tensor, rows: int
) -> None:
    """Update the running statistics as PyTorch does: with the unbiased variance."""
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (rows / max(rows - 1, 1)), norm.momentum)


class _LinearBF16(torch.autograd.Function):
    """_product, with the gradient of the weight added up in float32.

    That gradient is made of batched products of parts of the rows: oneDNN's own gradient of a
    convolution's weight takes 3 to 4 times as long in bfloat16 where the CPU has AMX. Has no second
    derivative.
    """

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        parts = math.gcd(len(x), PARTS)  # S
        of_parts = gradient.view(parts, -1, gradient.shape[1]).transpose(1, 2)  # (S, D, R / S)
        products = torch.bmm(of_parts, x.view(parts, -1, x.shape[1]))  # (S, D, C)
        of_weight = products.sum(dim=0, dtype=torch.float32).to(weight.dtype)
        of_x = _product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        of_bias = gradient.sum(dim=0) if ctx.has_bias else None
        return of_x, of_weight, of_bias


class _BatchNormReLU(torch.autograd.Function):
    """Batch normalisation and ReLU, with the statistics in float32 for every type of x.

    PyTorch's kernels process the features of a row in full vector registers, and the remaining ones
    one by one. This is slow for 50 features (in bfloat16 by a factor of 7). So `_wide` views
    several rows as one long row that fills registers completely; the statistics of its parts are
    combined afterwards.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps, relu):
        wide = _wide(x)  # (R / fold, fold C)
        fold = wide.shape[1] // x.shape[-1]
        mean, variance = _statistics(wide, fold, weight.dtype)
        invstd = torch.rsqrt(variance + eps)
        scale = weight * invstd
        y = _affine(wide, scale, bias - mean * scale, fold)
        y = y.relu_() if relu else y
        ctx.save_for_backward(wide, y, weight, mean, invstd)
        ctx.relu = relu
        ctx.mark_non_differentiable(mean, variance)
        return y.view(x.shape), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient, *_):
        wide, y, weight, mean, invstd = ctx.saved_tensors
        fold = wide.shape[1] // len(mean)
        rows = wide.numel() // len(mean)
        g = gradient.reshape(wide.shape)  # (R / fold, fold C)
        if ctx.relu:
            g = torch.ops.aten.threshold_backward(g, y, 0)
        of_weight, of_bias = _gradient_sums(g, wide, mean, invstd, fold)
        # d/dx = scale (g - mean of g - xhat * mean of g xhat), an affine function of g and of x in
        # each feature
        scale = weight * invstd
        slope = -scale * invstd * of_weight / rows
        shift = -scale * of_bias / rows - slope * mean
        of_x = _affine(wide, slope, shift, fold)
        of_x.add_(_affine(g, scale, torch.zeros_like(scale), fold))
        return of_x.view(gradient.shape), of_weight, of_bias, None, None


def _wide(x: torch.Tensor) -> torch.Tensor:
    """View `fold` rows of x (..., C) as one row that fills vector registers: (R / fold, fold C)."""
    dim = x.shape[-1]
    rows = x.numel() // dim
    fold = math.gcd(math.lcm(dim, LANES) // dim, rows)
    return x.reshape(rows // fold, fold * dim)


def _statistics(
    wide: torch.Tensor, fold: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and biased variance (C,) in `dtype`, float32 also where x is bfloat16."""
    # running statistics in float32 make the kernel answer in float32
    running_statistics = torch.zeros(2, wide.shape[1], dtype=dtype)
    mean, variance = torch.ops.aten.batch_norm_update_stats(
        _image(wide), running_statistics[0], running_statistics[1], 0.0
    )
    mean = mean.view(fold, -1)  # (fold, C)
    variance = variance.view(fold, -1)
    # the variance of all rows: the mean of those within the folds, and that between their means
    return mean.mean(dim=0), variance.mean(dim=0) + mean.var(dim=0, correction=0)


def _affine(
    wide: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, fold: int
) -> torch.Tensor:
    """Compute scale * x + shift in one pass, with scale and shift (C,) in float32.

    It is a batch normalisation with fixed statistics: mean 0 and variance 1.
    """
    scale = scale.repeat(fold)  # (fold C,)
    shift = shift.repeat(fold)
    mean = torch.zeros_like(scale)
    variance = torch.ones_like(scale)
    y = torch.ops.aten.native_batch_norm(
        _image(wide), scale, shift, mean, variance, False, 0.0, 0.0
    )[0]
    return _rows(y, wide.shape)


def _gradient_sums(g, wide, mean, invstd, fold) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum g (x - mean) invstd and g over rows: the gradients (C,) of weight and bias."""
    mean = mean.repeat(fold)  # (fold C,)
    invstd = invstd.repeat(fold)
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        _image(g),
        _image(wide),
        torch.ones_like(mean),
        None,
        None,
        mean,
        invstd,
        True,
        0.0,
        [False, True, True],
    )
    return of_weight.view(fold, -1).sum(dim=0), of_bias.view(fold, -1).sum(dim=0)
