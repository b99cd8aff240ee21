"""Optimizers by Weaver's names, and Lookahead, which makes `ranger` of RAdam.

M. Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, arXiv:1907.08610; L. Liu et al., RAdam, arXiv:1908.03265.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from common.errors import InputError, unknown

# Betas and epsilon of ranger, and adamW's betas and absent decay, are weaver-core's defaults; the rest are PyTorch's.
CLASSES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamW": (torch.optim.AdamW, {"betas": (0.95, 0.999), "weight_decay": 0.0}),
    "ranger": (torch.optim.RAdam, {"betas": (0.95, 0.999), "eps": 1e-5}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adagrad": (torch.optim.Adagrad, {}),
}
LOOKAHEAD = {"alpha": 0.5, "k": 6}


class Lookahead:
    """Every `k` steps of the inner optimizer, go back to `alpha` of the way from where the last such round ended."""

    def __init__(self, inner: torch.optim.Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        if not 0 < alpha <= 1 or k < 1:
            raise InputError(f"optimizer options: alpha must be above 0 and at most 1, k at least 1, not {alpha} and {k}")
        self.inner, self.alpha, self.k = inner, alpha, k
        self.steps = 0
        self.slow = [parameter.detach().clone() for parameter in self._parameters()]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.inner.step()
        self.steps += 1
        if self.steps % self.k == 0:
            for slow, fast in zip(self.slow, self._parameters(), strict=True):
                slow.lerp_(fast, self.alpha)
                fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]
        for mine, stored in zip(self.slow, state["slow"], strict=True):
            mine.copy_(stored)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]


def make_optimizer(name: str, model: nn.Module, lr: float, options: Mapping[str, Any]) -> torch.optim.Optimizer | Lookahead:
    """The optimizer called `name` over a model's trainable parameters.

    Weight decay, where asked for, leaves out biases and all other parameters of one axis, as Weaver does.
    Raises InputError for an unknown name or option, or a value that the optimizer refuses.
    """
    if name not in CLASSES:
        raise InputError(unknown("optimizer", name, CLASSES))
    kind, defaults = CLASSES[name]
    ahead = {key: options.get(key, value) for key, value in LOOKAHEAD.items()} if name == "ranger" else {}
    rest = {key: value for key, value in options.items() if key not in ahead}
    _check_options(name, kind, rest, ahead)
    try:
        inner = kind(_groups(model, rest.get("weight_decay", 0.0)), lr=lr, **{**defaults, **rest})
    except (ValueError, TypeError) as error:
        raise InputError(f"optimizer {name} refuses its options {dict(rest)}: {error}") from None
    return Lookahead(inner, **ahead) if ahead else inner


def set_rate(optimizer: torch.optim.Optimizer | Lookahead, lr: float, momentum: float | None = None) -> None:
    """Set the learning rate, and where given the momentum or first beta, of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif momentum is not None and "momentum" in group:
            group["momentum"] = momentum


def _check_options(name: str, kind: type, options: Mapping[str, Any], ahead: Mapping[str, Any]) -> None:
    known = {*inspect.signature(kind).parameters, *ahead} - {"params", "lr"}
    for key in options:
        if key not in known:
            raise InputError(f"optimizer {name}: {unknown('option', key, known)}")


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weight_decay:
        return [{"params": parameters}]
    groups = [[p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]]
    decays = [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]
    return [group for group in decays if group["params"]]
