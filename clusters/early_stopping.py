"""Katib's medianstop rule, reimplemented: which trials are stopped before their end.

When a trial is created, the first `start_step` values of the objective are averaged for each trial
that has succeeded, and the mean of these averages becomes the limit of the new trial. (Katib calls
it the median, but its code takes the mean, as this one does.) Trials that were stopped early,
failed or still run do not count. With fewer than `min_trials_required` successful trials there is
no limit. Each trial is checked once: when it has reported the objective for the `start_step`-th
time, it is stopped if its best value so far is worse than its limit.

Sources: kubeflow/katib v0.19, pkg/earlystopping/v1beta1/medianstop/service.py and updateStopRules
in cmd/metricscollector/v1beta1/file-metricscollector/main.go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from clusters.protocol import Manifest
from common.choices import EARLY_STOPPING
from common.cli import is_whole, require
from common.errors import unknown

ALGORITHMS = tuple(name for name in EARLY_STOPPING if name != "none")
DEFAULTS = {"min_trials_required": 3, "start_step": 4}  # Katib's defaults


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopRule:
    """The limit of one trial, fixed when the trial is created."""

    value: float
    start_step: int

    def stops(self, values: Sequence[float], objective: str) -> bool:
        """Return whether a trial with these values of the objective, in order, is stopped.

        `objective` is 'minimize' or 'maximize'.

        >>> StopRule(value=0.1, start_step=2).stops([0.3, 0.2, 0.05], "minimize") True
        """
        first = values[: self.start_step]
        if len(first) < self.start_step:
            return False
        return min(first) > self.value if objective == "minimize" else max(first) < self.value


def settings(manifest: Manifest) -> dict[str, int] | None:
    """Return min_trials_required and start_step of an Experiment; None without early stopping.

    Raises:
        InputError: If Katib's own validation would refuse the settings.
    """
    spec = manifest["spec"].get("earlyStopping")
    if not spec:
        return None
    name = spec.get("algorithmName", "")
    require(
        name in ALGORITHMS,
        f"spec.earlyStopping.algorithmName: {unknown('algorithm', name, ALGORITHMS)}",
    )
    values = dict(DEFAULTS)
    for setting in spec.get("algorithmSettings", []):
        name = setting["name"]
        value = setting["value"]
        require(name in values, f"spec.earlyStopping: {unknown('setting', name, values)}")
        require(
            is_whole(str(value)) and int(value) >= 1,
            f"spec.earlyStopping.algorithmSettings.{name}: '{value}' is not a whole number"
            f" from 1 up; write one, such as {DEFAULTS.get(name)}",
        )
        values[name] = int(value)
    return values


def rule_for(manifest: Manifest, successful_values: Iterable[Sequence[float]]) -> StopRule | None:
    """Return the rule of a trial that is created now; None if there is no limit.

    Args:
        manifest: The Experiment.
        successful_values: Values of the objective, in order, of each successful trial.
    """
    options = settings(manifest)
    if options is None:
        return None
    start = options["start_step"]
    averages = [sum(values[:start]) / len(values[:start]) for values in successful_values if values]
    if len(averages) < options["min_trials_required"]:
        return None
    return StopRule(value=sum(averages) / len(averages), start_step=start)
