"""The quick kernels against PyTorch's own operations: values, gradients, running statistics, in
float32 and bfloat16.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from networks.fast import (
    Edges,
    batch_norm,
    edge_sum,
    edge_sum_norm_relu,
    linear,
    mean_of_neighbours,
)


def rows(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        .to(dtype)
        .requires_grad_()
    )


def assert_equal(
    ours: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor], tolerance: float = 2e-5
) -> None:
    """Compare the values of both and their gradients with respect to the inputs."""
    torch.testing.assert_close(ours.float(), plain.float(), rtol=tolerance, atol=tolerance)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(9))
    mine, theirs = (torch.autograd.grad((y.float() * weights).sum(), inputs) for y in (ours, plain))
    for gradient, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(
            gradient.float(),
            other.float(),
            rtol=tolerance,
            atol=tolerance * other.abs().max().item(),
        )


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (40, 7), (1, 1, 7)])
def test_linear_equals_pytorch_s(shape):
    x, weight, bias = rows(*shape), rows(4, 7, seed=2), rows(4, seed=3)
    assert_equal(linear(x, weight, bias), F.linear(x, weight, bias), [x, weight, bias])


@pytest.mark.parametrize("number", [1, 63, 128, 6400])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_in_bfloat16_has_the_gradients_of_float32(number, has_bias):
    x, weight = rows(number, 50, dtype=torch.bfloat16), rows(20, 50, seed=2, dtype=torch.bfloat16)
    bias = rows(20, seed=3, dtype=torch.bfloat16) if has_bias else None
    exact = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    assert_equal(
        linear(x, weight, bias),
        exact,
        [x, weight, *([] if bias is None else [bias])],
        tolerance=0.02,
    )


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)]
)
def test_linear_under_autocast_has_the_type_of_torch(dtype, expected):
    x, weight = rows(3, 7, dtype=dtype), rows(4, 7, seed=2, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == F.linear(x, weight).dtype == expected


@pytest.mark.parametrize("particles", [40, 2**15 + 7], ids=["16 bits", "more"])
def test_edges_are_sorted_by_neighbour(particles):
    index = torch.randint(
        0, particles, (2, particles, 1), generator=torch.Generator().manual_seed(1)
    )
    edges = Edges(index)
    assert (edges.to.view(-1)[edges.order].diff() >= 0).all()
    assert (
        edges.to.view(-1)[edges.order][edges.starts[edges.counts[:, 0] > 0]].tolist()
        == edges.to.unique().tolist()
    )


@pytest.mark.parametrize("dim", [1, 7, 50, 64])
@pytest.mark.parametrize("number", [3, 96, 1600])
@pytest.mark.parametrize("relu", [True, False])
def test_batch_norm_equals_pytorch_s(dim, number, relu):
    norm = torch.nn.BatchNorm1d(dim)
    torch.nn.init.uniform_(norm.weight, -1, 1)
    torch.nn.init.normal_(norm.bias)
    plain, x = copy.deepcopy(norm), rows(number, dim)
    for _ in range(2):  # the second time the running statistics are no longer the initial ones
        expected, ours = plain(x), batch_norm(x, norm, relu=relu)
    assert_equal(ours, F.relu(expected) if relu else expected, [x])
    for mine, theirs in zip(norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_batch_norm_in_bfloat16_keeps_its_statistics_in_float32():
    norm, x = torch.nn.BatchNorm2d(50), rows(3200, 50, dtype=torch.bfloat16)
    with torch.no_grad():
        x += 10  # far from zero, where squares would lose all digits
    ours = batch_norm(x, norm, relu=False)
    assert_equal(
        ours,
        F.batch_norm(x.float(), None, None, norm.weight, norm.bias, training=True),
        [x],
        tolerance=0.02,
    )
    torch.testing.assert_close(
        norm.running_mean, 0.1 * x.detach().float().mean(0), rtol=1e-5, atol=1e-5
    )


def neighbours(jets: int, particles: int, k: int) -> torch.Tensor:
    return torch.randint(
        0, particles, (jets, particles, k), generator=torch.Generator().manual_seed(4)
    )


def plain_edges(centre: torch.Tensor, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return centre[:, :, None] + torch.stack([x[n][index[n]] for n in range(len(x))])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.02)])
def test_edge_sum_and_mean_of_neighbours_equal_the_plain_form(dtype, tolerance):
    centre, x, index = (
        rows(3, 8, 6, dtype=dtype),
        rows(3, 8, 6, seed=2, dtype=dtype),
        neighbours(3, 8, 4),
    )
    assert_equal(edge_sum(centre, x, index), plain_edges(centre, x, index), [centre, x], tolerance)
    mean = mean_of_neighbours(edge_sum(centre, x, index))
    assert_equal(mean, plain_edges(centre, x, index).mean(dim=2), [centre, x], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_normalised_edges_equal_the_plain_form(dtype, tolerance):
    centre, x, index = (
        rows(4, 20, 6, dtype=dtype),
        rows(4, 20, 6, seed=2, dtype=dtype),
        neighbours(4, 20, 5),
    )
    norm = torch.nn.BatchNorm2d(6)
    torch.nn.init.uniform_(norm.weight, 0.5, 1, generator=torch.Generator().manual_seed(3))
    plain = copy.deepcopy(norm)
    normalised = plain(plain_edges(centre.float(), x.float(), index).permute(0, 3, 1, 2)).permute(
        0, 2, 3, 1
    )
    # Rounding to bfloat16 may carry an edge over ReLU's kink and so change its whole gradient:
    # such edges are left out.
    clear = (normalised.abs() > (0.03 if dtype == torch.bfloat16 else 1e-6)).float()
    assert_equal(
        edge_sum_norm_relu(centre, x, index, norm) * clear,
        F.relu(normalised) * clear,
        [centre, x],
        tolerance,
    )
    for mine, theirs in zip(norm.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
