"""Learning-rate schedules as pure functions of the step, so that a resumed run needs no scheduler
state.

The names and curves are weaver-core's. `Schedule.factor(step)` multiplies --start-lr; steps count
from 0 over the whole training. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math

from common.errors import InputError, unknown
from weaver.fit.options import SCHEDULERS

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
        if self.name not in SCHEDULERS:
            raise InputError(unknown("learning-rate scheduler", self.name, SCHEDULERS))

    def factor(self, step: int) -> float:
        """What --start-lr is multiplied by at a step."""
        curves = {
            "steps": self._steps,
            "flat+decay": self._flat_decay,
            "warmup+cos": self._warmup_cos,
            "one-cycle": self._one_cycle,
        }
        if self.name.startswith("flat+") and self.name not in curves:
            return self._flat_then(step)
        return curves.get(self.name, lambda step: 1.0)(step)

    def momentum(self, step: int) -> float | None:
        """The optimizer's momentum (first beta) at a step, where the schedule has one: one-cycle
        lowers it while the rate is high.
        """
        if self.name != "one-cycle":
            return None
        return self._cycle(step, first=(0.95, 0.85), second=(0.85, 0.95))

    @property
    def total_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    @property
    def _warmup(self) -> float:
        return self.warmup_steps * self.total_steps if self.warmup_steps < 1 else self.warmup_steps

    def _steps(self, step: int) -> float:
        """A tenth after each third of the epochs."""
        third = round(self.num_epochs / 3)
        epoch = step // self.steps_per_epoch
        return 0.1 ** ((epoch >= third) + (epoch >= 2 * third))

    def _flat_decay(self, step: int) -> float:
        """Flat, then down to a hundredth in equal factors over the last 30 % of the epochs."""
        decaying = max(1, int(self.num_epochs * 0.3))
        epochs = step // self.steps_per_epoch - (self.num_epochs - decaying) + 1
        return 0.01 ** (max(0, epochs) / decaying)

    def _flat_then(self, step: int) -> float:
        """Rise, flat, then a straight line or half a cosine down to the end."""
        flat = self.total_steps * FLAT_SHARE - 1
        if step < self._warmup:
            return step / self._warmup
        if step <= flat:
            return 1.0
        done = (step - flat) / (self.total_steps - flat)
        return max(
            SMALLEST,
            1 - done if self.name == "flat+linear" else 0.5 * (math.cos(math.pi * done) + 1),
        )

    def _warmup_cos(self, step: int) -> float:
        if step < self._warmup:
            return step / max(1.0, self._warmup)
        done = (step - self._warmup) / max(1.0, self.total_steps - self._warmup)
        return max(0.0, 0.5 * (1 + math.cos(math.pi * done)))

    def _one_cycle(self, step: int) -> float:
        """From a 25th up in 30 % of the steps, down to a 10,000th of that (L. Smith, N. Topin,
        arXiv:1708.07120).
        """
        return self._cycle(step, first=(1 / 25, 1.0), second=(1.0, 1 / 25 / 1e4))

    def _cycle(
        self, step: int, *, first: tuple[float, float], second: tuple[float, float]
    ) -> float:
        top = 0.3 * self.total_steps - 1
        (start, end), done = (
            (first, step / top)
            if step <= top
            else (second, (step - top) / (self.total_steps - 1 - top))
        )
        return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)
