"""Optimizers with Weaver's names, and Lookahead: `ranger` is RAdam within Lookahead.

M. Zhang et al., Lookahead Optimizer: k steps forward, 1 step back, arXiv:1907.08610; L. Liu et al.,
RAdam, arXiv:1908.03265.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from common.errors import InputError, unknown
from weaver.fit.checkpoint import State
from weaver.fit.options import OPTIMIZERS, OptionValues

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "adamW": {"betas": (0.95, 0.999), "weight_decay": 0.0},
    # weaver-core's RAdam applies decay to the weights; PyTorch's by default adds it to the gradient
    "ranger": {"betas": (0.95, 0.999), "eps": 1e-5, "decoupled_weight_decay": True},
}
"""Weaver-core's defaults where they differ from PyTorch's."""

ParamGroup = dict[str, Any]
"""One of an optimizer's param_groups: "params", "lr", "scale" and its options, as torch.optim has
them."""

LOOKAHEAD = {"alpha": 0.5, "k": 6}
# last parts of the names of parameters without weight decay, as in weaver-core
NO_DECAY_NAMES = frozenset({"pos_embed", "cls_token", "mask_token", "register_token"})


class Lookahead:
    """Every `k` steps of an inner optimizer, keep only a fraction `alpha` of their total change."""

    def __init__(self, inner: torch.optim.Optimizer, alpha: float = 0.5, k: int = 6) -> None:
        """Wrap an optimizer. Raises InputError for alpha or k out of range."""
        if not 0 < alpha <= 1 or k < 1:
            raise InputError(
                f"optimizer options: alpha must be above 0 and at most 1, k at least 1, not {alpha}"
                f" and {k}"
            )
        self.inner = inner
        self.alpha = alpha
        self.k = k
        self.steps = 0
        self.slow = [parameter.detach().clone() for parameter in self._parameters()]

    @property
    def param_groups(self) -> list[ParamGroup]:
        """The inner optimizer's groups of parameters."""
        return self.inner.param_groups

    def zero_grad(self) -> None:
        """Set the gradients to zero."""
        self.inner.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Take a step; every k steps, move the slow weights by alpha and restart from them."""
        self.inner.step()
        self.steps += 1
        if self.steps % self.k == 0:
            fast = self._parameters()
            torch._foreach_lerp_(self.slow, fast, self.alpha)
            torch._foreach_copy_(fast, self.slow)

    def state_dict(self) -> State:
        """Return state of the inner optimizer, slow weights and number of steps, to resume from."""
        return {"inner": self.inner.state_dict(), "slow": self.slow, "steps": self.steps}

    def load_state_dict(self, state: State) -> None:
        """Restore a state that `state_dict` returned."""
        self.inner.load_state_dict(state["inner"])
        self.steps = state["steps"]
        for weights, stored_weights in zip(self.slow, state["slow"], strict=True):
            weights.copy_(stored_weights)

    def _parameters(self) -> list[torch.Tensor]:
        parameters: list[torch.Tensor] = []
        for group in self.inner.param_groups:
            parameters += group["params"]
        return parameters


def make_optimizer(
    name: str, model: nn.Module, lr: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer | Lookahead:
    """Make the optimizer called `name` over a model's trainable parameters.

    Weight decay is not applied to biases, other parameters with one axis, tokens, position
    embeddings, and parameters that the model's `no_weight_decay()` names, as in weaver-core. The
    option `lr_mult`, (pattern, factor), multiplies the learning rate of parameters whose names
    match the pattern.

    Raises InputError for an unknown name or option, a value that the optimizer does not accept, or
    a model without trainable parameters.
    """
    if name not in OPTIMIZERS:
        raise InputError(unknown("optimizer", name, OPTIMIZERS))
    kind: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, OPTIMIZERS[name])

    # Separate the options of Lookahead, of the parameter groups, and of the inner optimizer.
    takes = inspect.signature(kind).parameters
    ahead = {key: options.get(key, value) for key, value in LOOKAHEAD.items()}
    if name != "ranger":
        ahead = {}
    known_options = {*takes, *ahead, "lr_mult"} - {"params", "lr"}
    own: OptionValues = {}
    for key, value in options.items():
        if key not in known_options:
            raise InputError(f"optimizer {name}: {unknown('option', key, known_options)}")
        if key not in ahead and key != "lr_mult":
            own[key] = value

    groups = _groups(model, own.get("weight_decay", 0.0), _multiplier(options.get("lr_mult")))
    if not groups:
        raise InputError(
            "no weight of the network is left to train; --freeze-model-weights matches them all"
        )
    settings = {**DEFAULTS.get(name, {}), **own}
    # On a GPU use one kernel for all parameters if PyTorch has it; elsewhere PyTorch's default.
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    if on_gpu and "fused" in takes:
        settings.setdefault("fused", True)
    try:
        inner = kind(groups, lr=lr, **settings)
    except (ValueError, TypeError) as error:
        raise InputError(f"optimizer {name} refuses its options {own}: {error}") from None
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
    """Set the learning rate of all parameters, and the momentum or first beta unless it is None.

    flat: where some parameters have a multiplier (`lr_mult`), the rate of all others, because
    weaver-core's flat+decay then applies the decay only to parameters with a multiplier.
    """
    has_multipliers = any(group["scale"] != 1 for group in optimizer.param_groups)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]
        if flat is not None and has_multipliers and group["scale"] == 1:
            group["lr"] = flat
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        elif momentum is not None and "momentum" in group:
            group["momentum"] = momentum


def _multiplier(option: object) -> tuple[re.Pattern[str], float] | None:
    """Parse the option `lr_mult` into (pattern, factor); None if it is not set."""
    if option is None:
        return None
    try:
        pattern, factor = cast(tuple[str, float], option)
        return re.compile(pattern), float(factor)
    except (TypeError, ValueError, re.error):
        raise InputError(
            f"optimizer option lr_mult must be (pattern, factor) as in ('fc.*', 50), not {option!r}"
        ) from None


def _groups(
    model: nn.Module, weight_decay: float, multiplier: tuple[re.Pattern[str], float] | None
) -> list[ParamGroup]:
    """Group the trainable parameters by weight decay and by learning-rate factor ("scale")."""
    exempt: set[str] = set()
    if hasattr(model, "no_weight_decay"):
        exempt = set(cast(Callable[[], Iterable[str]], model.no_weight_decay)())
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # weaver-core's list has last parts of names, a network's own list has whole names
        last = name.rpartition(".")[2]
        is_exempt = (
            parameter.ndim == 1
            or name.endswith(".bias")
            or last in NO_DECAY_NAMES
            or name in exempt
        )
        scale = multiplier[1] if multiplier and multiplier[0].match(name) else 1.0
        groups.setdefault((bool(weight_decay) and not is_exempt, scale), []).append(parameter)
    return [
        {"params": parameters, "scale": scale, "weight_decay": weight_decay if decays else 0.0}
        for (decays, scale), parameters in groups.items()
    ]
