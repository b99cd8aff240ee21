"""The search algorithms: one table, from which everything that depends on an algorithm derives.

The flag --algorithm, the checks of the search space, the Experiment and the search on one machine
all read it. To add an algorithm, add its entry to TABLE.

Sources: kubeflow/katib v0.19 (cmd/suggestion, pkg/suggestion/v1beta1) and Optuna 5
(optuna.samplers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from common.errors import InputError, unknown

Plan = Literal["none", "sequence", "grid"]
"""How one machine chooses trials: one at a time by the sampler, along a Sobol sequence, or point by
point of a grid.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
    """A search algorithm: its settings in Katib, what it can search, how one machine runs it."""

    name: str
    """Katib's name."""
    seed_setting: str = "random_state"
    """Katib's setting for the seed; empty where the algorithm draws nothing at random."""
    same_seed_by_default: bool = False
    """Whether Katib draws from one fixed seed where the setting is left out.

    goptuna takes 0; hyperopt and Optuna take entropy of the system.
    """
    learns: bool = False
    """Whether the results of finished trials determine the next trials."""
    min_ranges: int = 0
    """Least number of parameters of type int or double that it needs; lists do not count."""
    log_integers: bool = True
    """Whether it can draw whole numbers logarithmically."""
    step_caution: str = ""
    """Warning about uniform parameters with a step, such as integers.

    `{names}` is replaced by their names. Empty where Katib draws each value with equal
    probability.
    """
    log_caution: str = ""
    """Warning about logUniform parameters; `{names}` is replaced by their names.

    Empty where Katib draws them logarithmically.
    """
    sampler: str = ""
    """Class of optuna.samplers that draws its trials on one machine.

    Empty where this project does not offer the algorithm.
    """
    sampler_options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Further arguments of the class, beside the seed."""
    random_start: bool = False
    """Whether the first batch of trials is drawn at random (the sampler's n_startup_trials)."""
    plan: Plan = "none"
    """Where the points of all trials are known beforehand, which points these are."""

    @property
    def is_offered(self) -> bool:
        """Whether this project offers it, on a cluster and on one machine."""
        return bool(self.sampler)

    @property
    def is_grid(self) -> bool:
        """Whether it visits the points of a grid, each once.

        A double then needs a step, and there are no more trials than points.
        """
        return self.plan == "grid"


_UNIFORM_ON_KATIB = (
    "Katib up to 0.19 draws {names} uniformly, whatever the search space says (katib#2688); random"
    " and tpe draw it logarithmically"
)

_UNIFORM_ON_OLD_KATIB = (
    "Katib up to 0.17 drops `distribution` and draws {names} uniformly; since 0.18 logarithmically"
)
_HALF_AT_ENDS = (
    "Katib draws {names} by hyperopt's quniform, which rounds: the lowest and the highest value"
    " come half as often as each of the others"
)

TABLE: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            name="random",
            step_caution=_HALF_AT_ENDS,
            log_caution=_UNIFORM_ON_OLD_KATIB,
            sampler="RandomSampler",
        ),
        Algorithm(
            name="tpe",
            learns=True,
            step_caution=_HALF_AT_ENDS,
            log_caution=_UNIFORM_ON_OLD_KATIB,
            sampler="TPESampler",
            # Trials run in parallel: without it they would all be drawn at the same point.
            sampler_options={"constant_liar": True},
            # Katib's tpe draws only its first batch at random, too.
            random_start=True,
        ),
        Algorithm(
            name="cmaes",
            same_seed_by_default=True,
            learns=True,
            # The covariance matrix of one parameter is no matrix: goptuna refuses it.
            min_ranges=2,
            log_integers=False,
            log_caution=_UNIFORM_ON_KATIB,
            sampler="CmaEsSampler",
            # Lists are drawn independently, on purpose.
            sampler_options={"warn_independent_sampling": False},
        ),
        Algorithm(
            name="sobol",
            # Katib's sequence is always the same and ignores the seed; on one machine
            # the seed scrambles the sequence.
            seed_setting="random_state",
            log_integers=False,
            log_caution=_UNIFORM_ON_KATIB,
            sampler="RandomSampler",
            plan="sequence",
        ),
        Algorithm(name="grid", seed_setting="", sampler="RandomSampler", plan="grid"),
        # Katib has these as well; this project does not offer them.
        Algorithm(name="bayesianoptimization", learns=True),
        Algorithm(name="multivariate-tpe", learns=True),
        Algorithm(name="hyperband", learns=True),
    )
}
"""Katib's name -> algorithm, in the order in which `--help` lists them."""


def offered_names() -> tuple[str, ...]:
    """Return the algorithms that this project offers."""
    return tuple(name for name, algorithm in TABLE.items() if algorithm.is_offered)


def katib_names() -> tuple[str, ...]:
    """Return the algorithms that Katib has."""
    return tuple(TABLE)


def find_offered(name: str) -> Algorithm:
    """Return the algorithm of that name. Raises InputError where this project does not offer it."""
    if name not in offered_names():
        raise InputError(unknown("algorithm", name, offered_names()))
    return TABLE[name]
