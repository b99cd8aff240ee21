"""Katib's rules, reimplemented: validation, substitution of parameters, collection of metrics.

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
from common.records import Observation, finite_number

METRIC_PATTERN = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
"""Katib's default filter of text metrics; `loss=nan` matches it with an empty value."""

PARAMETER = re.compile(r"\$\{trialParameters\.([^}]+)\}")
TRIAL_NAME_REFERENCE = "${trialSpec.Name}"


def observations(text: str, names: list[str]) -> dict[str, Observation]:
    """Return what Katib's collector observes in a metrics file, by metric.

    Each line begins with an RFC 3339 time. Minimum and maximum are over *all* lines of a metric,
    and the latest value is that of its last line. Values that are not finite are ignored. If the
    last value of a metric is not finite, Katib's latest value is empty and its algorithms stall on
    it; the metric is then missing from the result.
    """
    result = {}
    for name, numbers in _values_by_metric(text, names).items():
        if numbers[-1] is not None:
            finite = [number for number in numbers if number is not None]
            result[name] = Observation(min=min(finite), max=max(finite), latest=finite[-1])
    return result


def values(text: str, name: str) -> list[float]:
    """Return the finite values of one metric, in the order of its lines.

    An incomplete last line is ignored.
    """
    whole = text[: text.rfind("\n") + 1]
    numbers = _values_by_metric(whole, [name]).get(name, [])
    return [value for value in numbers if value is not None]


def _values_by_metric(text: str, names: list[str]) -> dict[str, list[float | None]]:
    """Return the values of each metric by line; None where a value is not finite."""
    by_metric: dict[str, list[float | None]] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(" ")
        for match in METRIC_PATTERN.finditer(rest):
            if match[1] in names:
                by_metric.setdefault(match[1], []).append(finite_number(match[2]))
    return by_metric


def objective_value(manifest: Manifest, metrics: dict[str, Observation]) -> float | None:
    """Return the objective as Katib computes it from the metrics of a trial; None if it is missing.

    The strategy of the metric decides; the default is min for minimize and max for maximize.
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
    """Return the name of the experiment from the name of a trial.

    Katib appends '-' and eight characters that are never '-'
    (pkg/controller.v1beta1/suggestion/suggestionclient/suggestionclient.go:177).
    """
    return trial.rpartition("-")[0]


def metric_names(manifest: Manifest) -> list[str]:
    """Return the names of the metrics that the experiment collects, the objective first."""
    objective = manifest["spec"]["objective"]
    return [objective["objectiveMetricName"], *objective.get("additionalMetricNames", [])]


def substitute(manifest: Manifest, assignments: dict[str, str], trial_name: str) -> Manifest:
    """Return the object of a trial, with its parameters, name and labels set as Katib would.

    `${trialParameters.x}` becomes the value of the parameter that x refers to, or the name of the
    trial.
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
    """Check an Experiment as Katib's webhook does.

    Raises:
        InputError: If Katib would refuse it; the error names the field and valid values.
    """
    spec = manifest["spec"]
    name = manifest["metadata"]["name"]
    require(
        len(name) <= 40,
        f"Experiment {name}: its name has {len(name)} characters, Katib allows 40; shorten"
        " metadata.name",
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
    max_trials = spec.get("maxTrialCount", math.inf)
    require(
        parallel <= max_trials,
        f"spec.parallelTrialCount: {parallel} is more than maxTrialCount {max_trials}; write at"
        f" most {max_trials}, or raise maxTrialCount",
    )
    failures = spec.get("maxFailedTrialCount", 0)
    require(
        failures <= max_trials,
        f"spec.maxFailedTrialCount: {failures} is more than maxTrialCount {max_trials}; write at"
        f" most {max_trials}, or raise maxTrialCount",
    )
    early_stopping.settings(manifest)
    template = spec["trialTemplate"]
    require(
        bool(template.get("primaryContainerName")),
        "spec.trialTemplate.primaryContainerName is missing; name the container that trains",
    )
    trial_metadata = template["trialSpec"].get("metadata", {})
    require(
        "name" not in trial_metadata,
        f"spec.trialTemplate.trialSpec.metadata.name is '{trial_metadata.get('name')}', but Katib"
        " names the trials; remove the field",
    )
    _check_references(spec)


def _check_references(spec: Manifest) -> None:
    names = [parameter["name"] for parameter in spec.get("parameters", [])]
    template = spec["trialTemplate"]
    references = {p["name"]: p["reference"] for p in template.get("trialParameters", [])}
    for name, reference in references.items():
        is_valid = reference in names or reference.startswith("${trialSpec.")
        require(
            is_valid,
            f"spec.trialTemplate.trialParameters.{name}: {unknown('parameter', reference, names)}",
        )
    for name in names:
        require(
            name in references.values(),
            f"spec.parameters.{name}: no trial receives it; add it to"
            " trialTemplate.trialParameters",
        )
    for name_in_spec in set(PARAMETER.findall(json.dumps(template["trialSpec"]))):
        require(
            name_in_spec in references,
            f"spec.trialTemplate.trialSpec: ${{trialParameters.{name_in_spec}}}:"
            f" {unknown('trial parameter', name_in_spec, references)}",
        )


def _replace(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _replace(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_replace(value, values) for value in node]
    return PARAMETER.sub(lambda match: values[match[1]], node) if isinstance(node, str) else node
