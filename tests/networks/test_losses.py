"""Each loss against its formula, jets that count as zero, and the quantiles at the minimum of the
pinball loss.
"""

from __future__ import annotations

import math

import pytest
import torch

from networks import pfn_regressor_open
from networks.losses import regression_loss

PREDICTION = torch.tensor([[0.5], [0.0], [0.0], [3.0]])
TARGET = torch.tensor([0.1, -0.2, 1.0, -1.5])  # the last two are no calibrations


@pytest.mark.parametrize(
    ("name", "of"), [("l1", abs), ("log_cosh", lambda error: math.log(math.cosh(error)))]
)
def test_wrong_matches_count_as_zero_but_in_the_denominator(name, of):
    loss, expected = regression_loss(name, ()), [of(0.4), of(0.2), 0.0, 0.0]
    assert loss(PREDICTION, TARGET).item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    assert loss(PREDICTION[:, 0], TARGET).item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    loss.reduction = "none"
    assert loss(PREDICTION, TARGET).tolist() == pytest.approx(expected, rel=1e-4)


def test_log_cosh_is_finite_where_cosh_overflows():
    prediction = torch.tensor([500.0], requires_grad=True)
    loss = regression_loss("log_cosh", ())(prediction, torch.tensor([0.0]))
    loss.backward()
    assert loss.item() == pytest.approx(500 - math.log(2))
    assert prediction.grad.item() == pytest.approx(1.0)


def test_pinball_loss_equals_a_value_computed_by_hand():
    loss = regression_loss("quantile", (0.84, 0.16))  # columns: median, 0.16, 0.84
    prediction, target = torch.tensor([[0.0, -0.1, 0.2], [9.0, 9.0, 9.0]]), torch.tensor([0.1, 2.0])
    expected = (0.5 * 0.1 + 0.16 * 0.2 + 0.16 * 0.1) / 3
    loss.reduction = "none"
    assert loss(prediction, target).tolist() == pytest.approx([expected, 0.0])


def test_pinball_loss_is_minimal_at_the_quantiles():
    target = torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 0.1
    quantiles = torch.zeros(3, requires_grad=True)
    optimizer, loss = (
        torch.optim.Adam([quantiles], lr=1e-2),
        regression_loss("quantile", (0.16, 0.84)),
    )
    for _ in range(80):
        optimizer.zero_grad()
        loss(quantiles.expand(len(target), 3), target).backward()
        optimizer.step()
    shares = [(target < quantile).float().mean().item() for quantile in quantiles]
    assert shares == pytest.approx([0.5, 0.16, 0.84], abs=0.02)


def test_a_network_file_builds_its_loss_by_name():
    loss = pfn_regressor_open.get_loss(None, loss="quantile", quantiles=[0.1, 0.9])
    assert loss.levels.tolist() == pytest.approx([0.5, 0.1, 0.9])
