"""Katib's medianstop, restated: which trials are stopped before their end.

When a trial is created, the objective's first `start_step` values of every trial that has succeeded
are averaged, and the mean of these averages becomes the trial's limit (Katib calls it the median;
its code takes the mean, and so does this). Trials that were stopped early, failed or still run do
not count, and with fewer than `min_trials_required` successes there is no limit. A trial is looked
at once: when it has reported the objective for the `start_step`-th time, and the best value so far
is worse than its limit, it is stopped.

Sources: kubeflow/katib v0.19, pkg/earlystopping/v1beta1/medianstop/service.py and updateStopRules
in cmd/metricscollector/v1beta1/file-metricscollector/main.go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from clusters.protocol import Manifest
from common.choices import EARLY_STOPPING
from common.cli import require
from common.errors import unknown

ALGORITHMS = tuple(name for name in EARLY_STOPPING if name != "none")
DEFAULTS = {"min_trials_required": 3, "start_step": 4}  # Katib's own


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopRule:
    """The limit of one trial, settled when it is created."""

    value: float
    start_step: int

    def stops(self, values: Sequence[float], objective: str) -> bool:
        """Whether a trial with these objective values, in order, is stopped.

        `objective` is 'minimize' or 'maximize'.

        >>> StopRule(value=0.1, start_step=2).stops([0.3, 0.2, 0.05], "minimize")
        True
        """
        first = values[: self.start_step]
        if len(first) < self.start_step:
            return False
        return min(first) > self.value if objective == "minimize" else max(first) < self.value


def settings(manifest: Manifest) -> dict[str, int] | None:
    """min_trials_required and start_step of an Experiment; None where it stops no trial early.

    Raises InputError for what Katib's own validation refuses.
    """
    asked = manifest["spec"].get("earlyStopping")
    if not asked:
        return None
    name = asked.get("algorithmName", "")
    require(
        name in ALGORITHMS,
        f"spec.earlyStopping.algorithmName: {unknown('algorithm', name, ALGORITHMS)}",
    )
    values = dict(DEFAULTS)
    for setting in asked.get("algorithmSettings", []):
        name = setting["name"]
        value = setting["value"]
        require(name in values, f"spec.earlyStopping: {unknown('setting', name, values)}")
        require(
            str(value).isdigit() and int(value) >= 1,
            f"spec.earlyStopping.algorithmSettings.{name}: '{value}' is no whole number from 1 up",
        )
        values[name] = int(value)
    return values


def rule_for(manifest: Manifest, succeeded: Iterable[Sequence[float]]) -> StopRule | None:
    """The rule of a trial that is created now; None where there is no limit.

    `succeeded` are the objective values, in order, of each trial that has succeeded.
    """
    asked = settings(manifest)
    if asked is None:
        return None
    start = asked["start_step"]
    averages = [sum(values[:start]) / len(values[:start]) for values in succeeded if values]
    if len(averages) < asked["min_trials_required"]:
        return None
    return StopRule(value=sum(averages) / len(averages), start_step=start)
