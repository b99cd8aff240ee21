"""Learning-rate schedules as pure functions of the step, so that they have no state to resume.

Names and curves are those of weaver-core. `Schedule.factor(step)` multiplies --start-lr; steps are
counted from 0 over the whole training. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from common.errors import InputError, unknown

FLAT_SHARE = 0.7  # fraction of the training before the final decay
SMALLEST = 0.001  # the factor of a decaying rate never falls below this value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the step, for `num_epochs` of `steps_per_epoch` steps."""

    name: str
    num_epochs: int
    steps_per_epoch: int
    warmup_steps: float = 0.25
    """Steps in which `flat+linear`, `flat+cos` and `warmup+cos` rise from 0; a value below 1 is a
    fraction of all steps.
    """

    def __post_init__(self) -> None:
        """Raise InputError for an unknown name."""
        if self.name not in CURVES:
            raise InputError(unknown("learning-rate scheduler", self.name, CURVES))

    def factor(self, step: int) -> float:
        """Return the factor that multiplies --start-lr at a step."""
        return CURVES[self.name](self, step)

    def momentum(self, step: int) -> float | None:
        """Return the optimizer's momentum (first beta) at a step, if the schedule sets it.

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
        """Number of steps in which the rate rises, for schedules with a warm-up."""
        return self.warmup_steps * self.total_steps if self.warmup_steps < 1 else self.warmup_steps


def constant(_schedule: Schedule, _step: int) -> float:
    """Keep the start rate."""
    return 1.0


def thirds(schedule: Schedule, step: int) -> float:
    """Multiply by 0.1 after each third of the epochs."""
    third = round(schedule.num_epochs / 3)
    epoch = step // schedule.steps_per_epoch
    return 0.1 ** ((epoch >= third) + (epoch >= 2 * third))


def flat_decay(schedule: Schedule, step: int) -> float:
    """Stay flat, then fall exponentially to 0.01 over the last 30 % of the epochs."""
    decaying = max(1, int(schedule.num_epochs * 0.3))
    epochs = step // schedule.steps_per_epoch - (schedule.num_epochs - decaying) + 1
    return 0.01 ** (max(0, epochs) / decaying)


def flat_linear(schedule: Schedule, step: int) -> float:
    """Rise, stay flat, then fall linearly to the end."""
    return flat_then(schedule, step, lambda fraction: 1 - fraction)


def flat_cos(schedule: Schedule, step: int) -> float:
    """Rise, stay flat, then fall along half a cosine to the end."""
    return flat_then(schedule, step, lambda fraction: 0.5 * (math.cos(math.pi * fraction) + 1))


def flat_then(schedule: Schedule, step: int, decay: Callable[[float], float]) -> float:
    """Rise, stay flat, then follow `decay`, a function of the fraction of the decay's steps."""
    flat = schedule.total_steps * FLAT_SHARE - 1
    if step < schedule.rise:
        return step / schedule.rise
    if step <= flat:
        return 1.0
    return max(SMALLEST, decay((step - flat) / (schedule.total_steps - flat)))


def warmup_cos(schedule: Schedule, step: int) -> float:
    """Rise, then fall along half a cosine to zero."""
    if step < schedule.rise:
        return step / max(1.0, schedule.rise)
    fraction = (step - schedule.rise) / max(1.0, schedule.total_steps - schedule.rise)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * fraction)))


def one_cycle(schedule: Schedule, step: int) -> float:
    """Rise from 1/25 to 1 in 30 % of the steps, then fall to 1/250,000.

    L. Smith, N. Topin, arXiv:1708.07120.
    """
    return cycle(schedule, step, first=(1 / 25, 1.0), second=(1.0, 1 / 25 / 1e4))


def cycle(
    schedule: Schedule, step: int, *, first: tuple[float, float], second: tuple[float, float]
) -> float:
    """Follow half a cosine in the first 30 % of the steps, and another one after it.

    first, second: their values (start, end).
    """
    top = 0.3 * schedule.total_steps - 1
    if step <= top:
        start, end = first
        fraction = step / top
    else:
        start, end = second
        fraction = (step - top) / (schedule.total_steps - 1 - top)
    return end + (start - end) / 2 * (math.cos(math.pi * fraction) + 1)


CURVES: dict[str, Callable[[Schedule, int], float]] = {
    "none": constant,
    "steps": thirds,
    "flat+decay": flat_decay,
    "flat+linear": flat_linear,
    "flat+cos": flat_cos,
    "warmup+cos": warmup_cos,
    "one-cycle": one_cycle,
}
"""Name of --lr-scheduler -> function of schedule and step that returns the factor."""
WARMUP_CURVES = ("flat+linear", "flat+cos", "warmup+cos")
"""Curves that depend on --warmup-steps."""
