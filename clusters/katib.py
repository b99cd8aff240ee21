"""Katib's rules, restated: its webhook's checks, its substitution of parameters, its metrics.

Sources: kubeflow/katib v0.19 (pkg/webhook/v1beta1/experiment/validator,
pkg/controller.v1beta1/experiment/manifest, cmd/metricscollector/v1beta1/file-metricscollector,
pkg/metricscollector/v1beta1/common).
"""

from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

from clusters import early_stopping
from clusters.protocol import Manifest
from common import algorithms
from common.cli import require
from common.errors import unknown
from common.records import Observation

METRIC_PATTERN = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
"""Katib's default filter of text metrics; `loss=nan` matches it with an empty value."""

PARAMETER = re.compile(r"\$\{trialParameters\.([^}]+)\}")
TRIAL_NAME_REFERENCE = "${trialSpec.Name}"


def observations(text: str, names: list[str]) -> dict[str, Observation]:
    """What Katib's collector observes in a metrics file.

    Minimum and maximum are over *all* lines of a metric, the latest value is that of the last line.
    Each line begins with an RFC 3339 time. A value that is no finite number is left out. Where the
    last one is no finite number, Katib's latest value is empty and its suggestions stall on it.
    Such a metric is missing from the answer.
    """
    observed = {}
    for name, numbers in _values_by_metric(text, names).items():
        if numbers[-1] is not None:
            finite = [number for number in numbers if number is not None]
            observed[name] = Observation(min=min(finite), max=max(finite), latest=finite[-1])
    return observed


def values(text: str, name: str) -> list[float]:
    """The finite numbers of one metric, in the order of its lines.

    A last line that is still being written is left out.
    """
    whole = text[: text.rfind("\n") + 1]
    numbers = _values_by_metric(whole, [name]).get(name, [])
    return [value for value in numbers if value is not None]


def _values_by_metric(text: str, names: list[str]) -> dict[str, list[float | None]]:
    """Each metric's values by line; None where a value is no finite number."""
    by_metric: dict[str, list[float | None]] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(" ")
        for match in METRIC_PATTERN.finditer(rest):
            if match[1] in names:
                by_metric.setdefault(match[1], []).append(_finite(match[2]))
    return by_metric


def objective_value(manifest: Manifest, metrics: dict[str, Observation]) -> float | None:
    """The objective as Katib takes it from a trial's metrics; None if it is not among them.

    The metric's strategy decides, which is min by default for minimize and max for maximize.
    """
    objective = manifest["spec"]["objective"]
    observation = metrics.get(objective["objectiveMetricName"])
    if observation is None:
        return None
    strategies = {s["name"]: s["value"] for s in objective.get("metricStrategies", [])}
    default = "min" if objective["type"] == "minimize" else "max"
    value: float = getattr(observation, strategies.get(objective["objectiveMetricName"], default))
    return value


def experiment_of(trial: str) -> str:
    """The name of the experiment that a trial's name was made of.

    Katib appends '-' and eight characters that are never '-' (pkg/controller.v1beta1/suggestion/
    suggestionclient/suggestionclient.go:177).
    """
    return trial.rpartition("-")[0]


def metric_names(manifest: Manifest) -> list[str]:
    """Names of the metrics that the experiment collects, the objective first."""
    objective = manifest["spec"]["objective"]
    return [objective["objectiveMetricName"], *objective.get("additionalMetricNames", [])]


def substitute(manifest: Manifest, assignments: dict[str, str], trial_name: str) -> Manifest:
    """The object of a trial: its parameters substituted, named and labelled as Katib would.

    `${trialParameters.x}` becomes the value of the parameter that x refers to, or the trial's name.
    """
    template = manifest["spec"]["trialTemplate"]
    values = {}
    for parameter in template.get("trialParameters", []):
        if parameter["reference"] == TRIAL_NAME_REFERENCE:
            values[parameter["name"]] = trial_name
        else:
            values[parameter["name"]] = assignments[parameter["reference"]]
    trial: Manifest = _replace(copy.deepcopy(template["trialSpec"]), values)
    metadata = trial.setdefault("metadata", {})
    metadata["name"] = trial_name
    metadata.setdefault("labels", {}).update(manifest["metadata"].get("labels", {}))
    return trial


def check_experiment(manifest: Manifest) -> None:
    """Refuse what Katib's webhook refuses.

    Raises InputError with the path inside the object and what may stand there.
    """
    spec = manifest["spec"]
    name = manifest["metadata"]["name"]
    require(
        len(name) <= 40, f"Experiment {name}: its name has {len(name)} characters, Katib allows 40"
    )
    kinds = ("minimize", "maximize")
    kind = spec["objective"].get("type")
    require(kind in kinds, f"spec.objective.type: {unknown('type', str(kind), kinds)}")
    algorithm = spec["algorithm"].get("algorithmName", "")
    require(
        algorithm in algorithms.katib_names(),
        "spec.algorithm.algorithmName:"
        f" {unknown('algorithm', algorithm, algorithms.katib_names())}",
    )
    parallel = spec.get("parallelTrialCount", 3)
    most = spec.get("maxTrialCount", math.inf)
    require(
        parallel <= most, f"spec.parallelTrialCount: {parallel} is more than maxTrialCount {most}"
    )
    failures = spec.get("maxFailedTrialCount", 0)
    require(
        failures <= most, f"spec.maxFailedTrialCount: {failures} is more than maxTrialCount {most}"
    )
    early_stopping.settings(manifest)
    template = spec["trialTemplate"]
    require(
        bool(template.get("primaryContainerName")),
        "spec.trialTemplate.primaryContainerName is missing; name the container that trains",
    )
    require(
        "name" not in template["trialSpec"].get("metadata", {}),
        "spec.trialTemplate.trialSpec.metadata.name: Katib names the trials",
    )
    _check_references(spec)


def _check_references(spec: Manifest) -> None:
    names = [parameter["name"] for parameter in spec.get("parameters", [])]
    template = spec["trialTemplate"]
    references = {p["name"]: p["reference"] for p in template.get("trialParameters", [])}
    for name, reference in references.items():
        known = reference in names or reference.startswith("${trialSpec.")
        require(
            known,
            f"spec.trialTemplate.trialParameters.{name}: {unknown('parameter', reference, names)}",
        )
    for name in names:
        require(
            name in references.values(),
            f"spec.parameters.{name}: no trial receives it; add it to"
            " trialTemplate.trialParameters",
        )
    for used in set(PARAMETER.findall(json.dumps(template["trialSpec"]))):
        require(
            used in references,
            f"spec.trialTemplate.trialSpec: ${{trialParameters.{used}}}:"
            f" {unknown('trial parameter', used, references)}",
        )


def _replace(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _replace(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(value, values) for value in node]
    return PARAMETER.sub(lambda match: values[match[1]], node) if isinstance(node, str) else node


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
