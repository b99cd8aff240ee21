"""Learning-rate schedules as pure functions of the step.

So a resumed run needs no scheduler state. The names and curves are weaver-core's.
`Schedule.factor(step)` multiplies --start-lr; steps count from 0 over the whole training. Imports
no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from common.errors import InputError, unknown

FLAT_SHARE = 0.7  # of the training, in front of the final decay
SMALLEST = 0.001  # a decaying rate never falls below this share of its start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes over `num_epochs` epochs of `steps_per_epoch` steps.

    Raises InputError for an unknown name.
    """

    name: str
    num_epochs: int
    steps_per_epoch: int
    warmup_steps: float = 0.25
    """Steps in which `flat+linear`, `flat+cos` and `warmup+cos` rise from 0; below 1, that share of
    all steps.
    """

    def __post_init__(self) -> None:
        """Check the name. Raises InputError."""
        if self.name not in CURVES:
            raise InputError(unknown("learning-rate scheduler", self.name, CURVES))

    def factor(self, step: int) -> float:
        """The factor of --start-lr at a step."""
        return CURVES[self.name](self, step)

    def momentum(self, step: int) -> float | None:
        """The optimizer's momentum (first beta) at a step, if the schedule sets it.

        one-cycle lowers it while the rate is high.
        """
        if self.name != "one-cycle":
            return None
        return cycle(self, step, first=(0.95, 0.85), second=(0.85, 0.95))

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training."""
        return self.num_epochs * self.steps_per_epoch

    @property
    def rise(self) -> float:
        """Steps in which the rate rises, where it does."""
        return self.warmup_steps * self.total_steps if self.warmup_steps < 1 else self.warmup_steps


def constant(_schedule: Schedule, _step: int) -> float:
    """Always the rate at the start."""
    return 1.0


def thirds(schedule: Schedule, step: int) -> float:
    """A tenth after each third of the epochs."""
    third = round(schedule.num_epochs / 3)
    epoch = step // schedule.steps_per_epoch
    return 0.1 ** ((epoch >= third) + (epoch >= 2 * third))


def flat_decay(schedule: Schedule, step: int) -> float:
    """Flat, then down to a hundredth in equal factors over the last 30 % of the epochs."""
    decaying = max(1, int(schedule.num_epochs * 0.3))
    epochs = step // schedule.steps_per_epoch - (schedule.num_epochs - decaying) + 1
    return 0.01 ** (max(0, epochs) / decaying)


def flat_linear(schedule: Schedule, step: int) -> float:
    """Rise, flat, then a straight line down to the end."""
    return flat_then(schedule, step, lambda done: 1 - done)


def flat_cos(schedule: Schedule, step: int) -> float:
    """Rise, flat, then half a cosine down to the end."""
    return flat_then(schedule, step, lambda done: 0.5 * (math.cos(math.pi * done) + 1))


def flat_then(schedule: Schedule, step: int, decay: Callable[[float], float]) -> float:
    """Rise, flat, then `decay`, a function of the share of the decay that is done."""
    flat = schedule.total_steps * FLAT_SHARE - 1
    if step < schedule.rise:
        return step / schedule.rise
    if step <= flat:
        return 1.0
    return max(SMALLEST, decay((step - flat) / (schedule.total_steps - flat)))


def warmup_cos(schedule: Schedule, step: int) -> float:
    """Rise, then half a cosine down to zero."""
    if step < schedule.rise:
        return step / max(1.0, schedule.rise)
    done = (step - schedule.rise) / max(1.0, schedule.total_steps - schedule.rise)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))


def one_cycle(schedule: Schedule, step: int) -> float:
    """From a 25th up in 30 % of the steps, then down to a 10,000th of that.

    L. Smith, N. Topin, arXiv:1708.07120.
    """
    return cycle(schedule, step, first=(1 / 25, 1.0), second=(1.0, 1 / 25 / 1e4))


def cycle(
    schedule: Schedule, step: int, *, first: tuple[float, float], second: tuple[float, float]
) -> float:
    """Half a cosine from one number to another in 30 % of the steps, and a second one after it."""
    top = 0.3 * schedule.total_steps - 1
    if step <= top:
        start, end = first
        done = step / top
    else:
        start, end = second
        done = (step - top) / (schedule.total_steps - 1 - top)
    return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)


CURVES: dict[str, Callable[[Schedule, int], float]] = {
    "none": constant,
    "steps": thirds,
    "flat+decay": flat_decay,
    "flat+linear": flat_linear,
    "flat+cos": flat_cos,
    "warmup+cos": warmup_cos,
    "one-cycle": one_cycle,
}
"""Names of --lr-scheduler and their curves."""
WARMED_UP = ("flat+linear", "flat+cos", "warmup+cos")
"""Those that --warmup-steps changes."""
