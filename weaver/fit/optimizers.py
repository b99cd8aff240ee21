"""Optimizers by Weaver's names, and Lookahead, which makes `ranger` of RAdam.

M. Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, arXiv:1907.08610; L. Liu et al.,
RAdam, arXiv:1908.03265.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from common.errors import InputError, unknown
from weaver.fit.options import TORCH_OPTIMIZERS

# Betas and epsilon of ranger, and adamW's betas and absent decay, are weaver-core's defaults; the
# rest are PyTorch's.
CLASSES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamW": (torch.optim.AdamW, {"betas": (0.95, 0.999), "weight_decay": 0.0}),
    "ranger": (torch.optim.RAdam, {"betas": (0.95, 0.999), "eps": 1e-5}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    **{name: (getattr(torch.optim, name), {}) for name in TORCH_OPTIMIZERS},
}
LOOKAHEAD = {"alpha": 0.5, "k": 6}
# last parts of names, as in weaver-core
NOT_DECAYED = frozenset({"pos_embed", "cls_token", "mask_token", "register_token"})


class Lookahead:
    """Every `k` steps of the inner optimizer, go back to `alpha` of the way from where the last
    such round ended.
    """

    def __init__(self, inner: torch.optim.Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        if not 0 < alpha <= 1 or k < 1:
            raise InputError(
                f"optimizer options: alpha must be above 0 and at most 1, k at least 1, not {alpha}"
                f" and {k}"
            )
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
            fast = self._parameters()
            torch._foreach_lerp_(self.slow, fast, self.alpha)
            torch._foreach_copy_(fast, self.slow)

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]
        for mine, stored in zip(self.slow, state["slow"], strict=True):
            mine.copy_(stored)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]


def make_optimizer(
    name: str, model: nn.Module, lr: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer | Lookahead:
    """The optimizer called `name` over a model's trainable parameters.

    Weight decay, where asked for, leaves out what Weaver leaves out: biases, all other parameters
    of one axis, tokens and embeddings of position, and what the model's `no_weight_decay()` names.
    The option `lr_mult`, (pattern, factor), multiplies the learning rate of the parameters whose
    names match the pattern.

    Raises InputError for an unknown name or option, a value that the optimizer refuses, or a model
    without trainable parameters.
    """
    if name not in CLASSES:
        raise InputError(unknown("optimizer", name, CLASSES))
    kind, defaults = CLASSES[name]
    multiplier = _multiplier(options.get("lr_mult"))
    ahead = (
        {key: options.get(key, value) for key, value in LOOKAHEAD.items()}
        if name == "ranger"
        else {}
    )
    rest = {key: value for key, value in options.items() if key not in ahead and key != "lr_mult"}
    _check_options(name, kind, rest, ahead)
    groups = _groups(model, rest.get("weight_decay", 0.0), multiplier)
    if not groups:
        raise InputError(
            "no weight of the network is left to train; --freeze-model-weights matches them all"
        )
    try:
        inner = kind(groups, lr=lr, **{**defaults, **_fused(kind, groups), **rest})
    except (ValueError, TypeError) as error:
        raise InputError(f"optimizer {name} refuses its options {dict(rest)}: {error}") from None
    for group in inner.param_groups:
        group["lr"] = lr * group["scale"]
    return Lookahead(inner, **ahead) if ahead else inner


def set_rate(
    optimizer: torch.optim.Optimizer | Lookahead,
    lr: float,
    momentum: float | None = None,
    *,
    flat: float | None = None,
) -> None:
    """Set the learning rate, and where given the momentum or first beta, of all parameters.

    `flat`: the rate of parameters without a multiplier where others have one. weaver-core's
    flat+decay lets only those decay.
    """
    scaled = any(group["scale"] != 1 for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = (
            flat if flat is not None and scaled and group["scale"] == 1 else lr * group["scale"]
        )
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif momentum is not None and "momentum" in group:
            group["momentum"] = momentum


def _check_options(
    name: str, kind: type, options: Mapping[str, Any], ahead: Mapping[str, Any]
) -> None:
    known = {*inspect.signature(kind).parameters, *ahead, "lr_mult"} - {"params", "lr"}
    for key in options:
        if key not in known:
            raise InputError(f"optimizer {name}: {unknown('option', key, known)}")


def _multiplier(given: Any) -> tuple[re.Pattern, float] | None:
    """Pattern and factor of `lr_mult`."""
    if given is None:
        return None
    try:
        pattern, factor = given
        return re.compile(pattern), float(factor)
    except (TypeError, ValueError, re.error):
        raise InputError(
            f"optimizer option lr_mult must be (pattern, factor) as in ('fc.*', 50), not {given!r}"
        ) from None


def _fused(kind: type, groups: list[dict[str, Any]]) -> dict[str, bool]:
    """On a GPU one kernel for all parameters, where PyTorch has it; elsewhere its own choice."""
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return {"fused": True} if on_gpu and "fused" in inspect.signature(kind).parameters else {}


def _groups(
    model: nn.Module, weight_decay: float, multiplier: tuple[re.Pattern, float] | None
) -> list[dict[str, Any]]:
    """Parameters by whether they decay and by their factor of the learning rate ("scale")."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = bool(weight_decay) and not _is_exempt(name, parameter, exempt)
            scale = multiplier[1] if multiplier and multiplier[0].match(name) else 1.0
            groups.setdefault((decays, scale), []).append(parameter)
    return [
        {"params": found, "scale": scale, "weight_decay": weight_decay if decays else 0.0}
        for (decays, scale), found in groups.items()
    ]


def _is_exempt(name: str, parameter: nn.Parameter, exempt: set[str]) -> bool:
    return (
        parameter.ndim <= 1
        or name.endswith(".bias")
        or name.split(".")[-1] in NOT_DECAYED
        or name in exempt
    )
