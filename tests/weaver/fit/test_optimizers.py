"""Optimizers follow their papers and restore their state; schedules equal weaver-core's."""

from __future__ import annotations

import pytest
import torch

from common.errors import InputError
from weaver.fit.optimizers import DEFAULTS, Lookahead, make_optimizer, set_rate
from weaver.fit.options import OPTIMIZERS
from weaver.fit.schedulers import CURVES, Schedule


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2)


def descend(model, optimizer, steps: int, start: int = 0) -> float:
    """Steps down a quadratic; returns the last loss."""
    for step in range(start, start + steps):
        torch.manual_seed(step)
        x = torch.randn(16, 4)
        loss = (model(x) - x[:, :2] * 3).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", ["adam", "adamW", "ranger", "rmsprop", "adagrad"])
def test_weavers_optimizers_descend(name):
    model = network()
    optimizer = make_optimizer(name, model, 0.1, {})
    first = descend(model, optimizer, 1)
    assert descend(model, optimizer, 300) < 0.1 * first


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_optimizer_makes_the_same_steps(name):
    model = network()
    optimizer = make_optimizer(name, model, 0.05, {})
    descend(model, optimizer, 8)
    weights, state = {k: v.clone() for k, v in model.state_dict().items()}, optimizer.state_dict()
    state = torch.utils._pytree.tree_map(
        lambda x: x.clone() if isinstance(x, torch.Tensor) else x, state
    )
    descend(model, optimizer, 8, start=8)

    other = network()
    other.load_state_dict(weights)
    again = make_optimizer(name, other, 0.05, {})
    again.load_state_dict(state)
    descend(other, again, 8, start=8)
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(model.bias, other.bias)


def test_lookahead_interpolates_the_weights_every_k_steps():
    parameter = torch.nn.Parameter(torch.tensor([10.0]))
    optimizer = Lookahead(torch.optim.SGD([parameter], lr=1.0), alpha=0.25, k=2)
    path = []
    for _ in range(4):
        optimizer.zero_grad()
        parameter.sum().backward()  # each inner step goes down by 1
        optimizer.step()
        path.append(parameter.item())
    # 10 -> 8, a quarter of the way: 9.5; 9.5 -> 7.5, a quarter: 9.0
    assert path == [9.0, 9.5, 8.5, 9.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.789922, -0.5456415, 0.171576, 1.2586128]),
        ({"weight_decay": 0.3}, [0.6946285, -0.4839862, 0.1683761, 1.1071765]),
        (
            {"weight_decay": 0.3, "lr_mult": (".*weight", 2.0)},
            [0.7748197, -0.5422329, 0.190647, 1.0801834],
        ),
    ],
    ids=["plain", "decayed", "with multiplied rates"],
)
def test_ranger_reaches_the_weights_of_weaver_core(options, expected):
    """The weights after 15 steps of weaver-core 0.5.3 (its init_opt) on the same network and
    jets.
    """
    model = torch.nn.Sequential(torch.nn.Linear(2, 1))
    model.scale = torch.nn.Parameter(torch.tensor(1.0))  # decays, although it has no axis
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.5, -0.25]]))
        model[0].bias.fill_(0.125)
    x = torch.tensor([[0.0, 1.0], [1.0, 0.5], [-1.0, 2.0], [0.5, -0.5]])
    y = 2 * x[:, :1] - x[:, 1:] + 0.5
    optimizer = make_optimizer("ranger", model, 0.05, options)
    for _ in range(15):
        optimizer.zero_grad()
        (model.scale * model(x) - y).square().mean().backward()
        optimizer.step()
    weights = [*model[0].weight.flatten().tolist(), model[0].bias.item(), model.scale.item()]
    assert weights == pytest.approx(expected, abs=1e-6)


def test_ranger_is_lookahead_over_radam():
    optimizer = make_optimizer("ranger", network(), 1e-3, {"k": 5, "betas": (0.9, 0.99)})
    assert isinstance(optimizer, Lookahead)
    assert isinstance(optimizer.inner, torch.optim.RAdam)
    assert (optimizer.k, optimizer.alpha, optimizer.param_groups[0]["betas"]) == (
        5,
        0.5,
        (0.9, 0.99),
    )


def test_weight_decay_does_not_apply_to_biases():
    model = network()
    groups = make_optimizer("adamW", model, 1e-3, {"weight_decay": 0.1}).param_groups
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [
        (0.1, [2]),
        (0.0, [1]),
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {}, "unknown optimizer 'adamw'; did you mean 'adamW'"),
        ("adam", {"beta": 0.9}, "optimizer adam: unknown option 'beta'; did you mean 'betas'"),
        ("adam", {"alpha": 0.5}, "unknown option 'alpha'"),
        ("ranger", {"k": 0}, "k at least 1"),
        ("adam", {"betas": (2.0, 0.9)}, "optimizer adam refuses its options"),
    ],
)
def test_unknown_names_and_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        make_optimizer(name, network(), 1e-3, options)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_name_builds_its_torch_optimizer(name):
    optimizer = make_optimizer(name, network(), 0.1, {})
    inner = optimizer.inner if name == "ranger" else optimizer
    assert type(inner) is getattr(torch.optim, OPTIMIZERS[name])
    assert inner.defaults | DEFAULTS.get(name, {}) == inner.defaults


# -------------------------------------------------------------------------------------- schedules

EPOCHS, STEPS, WARMUP = 10, 7, 0.25


def weavers_curve(name: str) -> list[float]:
    """The learning rate of each step with PyTorch's scheduler set up as weaver-core does, from a
    rate of 1.
    """
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    milestones, gamma = {
        "none": ([], 1.0),
        "steps": ([3, 6], 0.1),
        "flat+decay": ([7, 8, 9], 0.01 ** (1 / 3)),
    }[name]
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
    rates = []
    for _ in range(EPOCHS):
        rates += [optimizer.param_groups[0]["lr"]] * STEPS
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("name", ["none", "steps", "flat+decay"])
def test_schedules_by_epoch_equal_weaver_core_s(name):
    schedule = Schedule(name=name, num_epochs=EPOCHS, steps_per_epoch=STEPS)
    assert [schedule.factor(step) for step in range(EPOCHS * STEPS)] == pytest.approx(
        weavers_curve(name)
    )


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_one_cycle_equals_pytorch_s_rate_and_momentum():
    schedule = Schedule(name="one-cycle", num_epochs=EPOCHS, steps_per_epoch=STEPS)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=EPOCHS * STEPS, pct_start=0.3
    )
    for step in range(EPOCHS * STEPS):
        group = optimizer.param_groups[0]
        assert (schedule.factor(step), schedule.momentum(step)) == pytest.approx(
            (group["lr"], group["betas"][0])
        )
        if step < EPOCHS * STEPS - 1:
            reference.step()


@pytest.mark.parametrize("name", ["flat+linear", "flat+cos", "warmup+cos"])
def test_schedules_that_warm_up_rise_from_zero_and_fall_at_the_end(name):
    schedule = Schedule(name=name, num_epochs=EPOCHS, steps_per_epoch=STEPS, warmup_steps=WARMUP)
    rates = [schedule.factor(step) for step in range(EPOCHS * STEPS)]
    assert rates[0] == 0
    assert rates[10] == pytest.approx(10 / 17.5)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[40] == 1.0 or name == "warmup+cos"
    assert rates[-1] < 0.06
    assert rates[18:] == sorted(rates[18:], reverse=True)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("epochs", [1, 2])
def test_short_trainings_have_finite_rates(name, epochs):
    schedule = Schedule(name=name, num_epochs=epochs, steps_per_epoch=3)
    assert all(0 <= schedule.factor(step) <= 1 for step in range(3 * epochs))


def test_rate_and_momentum_are_set_in_all_groups():
    optimizer = make_optimizer("adamW", network(), 1e-3, {"weight_decay": 0.1})
    set_rate(optimizer, 0.5, 0.85)
    assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [
        (0.5, (0.85, 0.999))
    ] * 2
    rmsprop = make_optimizer("rmsprop", network(), 1e-3, {})
    set_rate(rmsprop, 0.5, 0.85)
    assert rmsprop.param_groups[0]["momentum"] == 0.85
