"""Katib's algorithms on one machine: draw the parameters of each trial with Optuna.

The values that random, sobol and grid draw for a trial depend only on the seed and the number of
the trial, not on interruptions or on the number of parallel trials.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clusters.protocol import Manifest
from common import algorithms
from common.errors import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import BaseSampler

# As Katib's tpe, which draws only its first batch at random. Optuna's default of 10 would be half
# of a search of 20 trials.
STARTUP_TRIALS = 5
SEEDS = 2**32  # Optuna's samplers take seeds below this


class Sampling:
    """The search space and the algorithm of one Experiment."""

    def __init__(self, spec: Manifest) -> None:
        """Read the algorithm and its settings from the spec of the Experiment.

        Raises:
            InputError: If this backend does not have the algorithm, or a grid has a range without a
                step.
        """
        try:
            self.algorithm = algorithms.find_offered(spec["algorithm"]["algorithmName"])
        except InputError as error:
            raise InputError(f"on one machine: {error}") from None
        settings = {
            setting["name"]: setting["value"]
            for setting in spec["algorithm"].get("algorithmSettings", [])
        }
        self.seed = int(settings.get(self.algorithm.seed_setting, 0))
        self.startup = max(STARTUP_TRIALS, spec["parallelTrialCount"])
        self.parameters: list[Manifest] = spec["parameters"]
        self.distributions = {
            parameter["name"]: _distribution(parameter) for parameter in self.parameters
        }
        self.points: list[dict[str, Any]] | None = None
        """The points of grid and sobol, in order; None for algorithms that learn from results."""
        if self.algorithm.plan == "grid":
            self.points = _grid_points(self.distributions)
        elif self.algorithm.plan == "sequence":
            self.points = _sobol_points(self.distributions, self.seed, spec["maxTrialCount"])

    def sampler(self, number: int) -> BaseSampler:
        """Return Optuna's sampler for the trial of this number.

        Each trial has its own sampler, so that its values do not depend on earlier restarts.
        """
        from optuna import samplers

        seed = (self.seed * 100_003 + number) % SEEDS
        with _quiet():  # some samplers warn that they are experimental
            options = dict(self.algorithm.sampler_options)
            if self.algorithm.random_start:
                options["n_startup_trials"] = self.startup
            sampler: BaseSampler = getattr(samplers, self.algorithm.sampler)(seed=seed, **options)
            if self.points is None:
                return sampler
            return samplers.PartialFixedSampler(self.points[number], sampler)

    def assignments(self, values: dict[str, Any]) -> dict[str, str]:
        """Return the drawn values as text for the manifest of a trial."""
        return {
            parameter["name"]: _text(parameter, values[parameter["name"]])
            for parameter in self.parameters
        }


def _distribution(parameter: Manifest) -> BaseDistribution:
    """Return Optuna's distribution of a Katib parameter. Lists stay text, in their order."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space = parameter["feasibleSpace"]
    if "list" in space:
        return CategoricalDistribution(space["list"])
    log = space.get("distribution") == "logUniform"
    if parameter["parameterType"] == "int":
        return IntDistribution(
            int(space["min"]), int(space["max"]), log=log, step=int(space.get("step", 1))
        )
    step = float(space["step"]) if "step" in space else None
    with _quiet():  # it warns where the range is no multiple of the step, which Katib allows
        return FloatDistribution(float(space["min"]), float(space["max"]), log=log, step=step)


def _text(parameter: Manifest, value: Any) -> str:
    if parameter["parameterType"] == "double" and not isinstance(value, str):
        return f"{value:.8g}"
    return str(value)


# ---------------------------------------------------------------------------------- planned points


def _grid_points(distributions: dict[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return all combinations of values; the last parameter changes fastest."""
    axes = [_grid_values(distribution) for distribution in distributions.values()]
    return [dict(zip(distributions, point, strict=True)) for point in itertools.product(*axes)]


def _grid_values(distribution: Any) -> list[Any]:
    from optuna.distributions import CategoricalDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if distribution.step is None:
        raise InputError("algorithm grid needs a 'step' for every double, or a 'list'")
    count = int((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
    return [distribution.low + i * distribution.step for i in range(count)]


def _sobol_points(
    distributions: dict[str, BaseDistribution], seed: int, count: int
) -> list[dict[str, Any]]:
    """Return the first `count` points of a scrambled Sobol sequence over the search space."""
    from scipy.stats import qmc

    with _quiet():  # it warns where the count is no power of two
        sequence = qmc.Sobol(len(distributions), scramble=True, rng=seed).random(count)
    points = []
    for quantiles in sequence:
        point = {}
        for (name, distribution), u in zip(distributions.items(), quantiles, strict=True):
            point[name] = _value_at(distribution, u)
        points.append(point)
    return points


def _value_at(distribution: Any, u: float) -> Any:
    """Return the value at the quantile u in [0, 1) of a distribution."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(u * len(distribution.choices))]
    if isinstance(distribution, IntDistribution):
        return _int_at(distribution, u)
    return _float_at(distribution, u)


def _int_at(distribution: IntDistribution, u: float) -> int:
    low = distribution.low
    high = distribution.high
    if distribution.log:
        return min(high, int(math.exp(math.log(low) + u * math.log((high + 1) / low))))
    return low + distribution.step * int(u * ((high - low) // distribution.step + 1))


def _float_at(distribution: FloatDistribution, u: float) -> float:
    low = distribution.low
    high = distribution.high
    if distribution.log:
        value = math.exp(math.log(low) + u * math.log(high / low))
    else:
        value = low + u * (high - low)
    if distribution.step:
        return low + round((value - low) / distribution.step) * distribution.step
    return value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of Optuna and SciPy about what this module does on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
