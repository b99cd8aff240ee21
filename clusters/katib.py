"""Katib's rules, restated: what its webhook refuses, how it substitutes parameters, how it reads a
metrics file.

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
from clusters.protocol import Manifest, Observation
from common.cli import require
from common.errors import unknown

METRIC_PATTERN = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
"""Katib's default filter of text metrics; `loss=nan` matches it with an empty value."""

ALGORITHMS = (
    "random",
    "grid",
    "bayesianoptimization",
    "tpe",
    "multivariate-tpe",
    "cmaes",
    "sobol",
    "hyperband",
)
PARAMETER = re.compile(r"\$\{trialParameters\.([^}]+)\}")
TRIAL_NAME_REFERENCE = "${trialSpec.Name}"


def observations(text: str, names: list[str]) -> dict[str, Observation]:
    """What Katib's collector observes in a metrics file: min and max over *all* lines of a metric,
    and the last one.

    Each line begins with an RFC 3339 time. A value that is no finite number is left out of both.
    Where the last one is none, Katib's latest value is empty and its suggestions stall on it; such
    a metric is missing from the answer.
    """
    found = _found(text, names)
    return {name: _observation(seen) for name, seen in found.items() if seen[-1] is not None}


def values(text: str, name: str) -> list[float]:
    """The finite numbers of one metric, in the order of its lines.

    A last line that is still being written is left out.
    """
    whole = text[: text.rfind("\n") + 1]
    return [value for value in _found(whole, [name]).get(name, []) if value is not None]


def _found(text: str, names: list[str]) -> dict[str, list[float | None]]:
    """Each metric's values by line; None where a value is no finite number."""
    found: dict[str, list[float | None]] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(" ")
        for match in METRIC_PATTERN.finditer(rest):
            if match[1] in names:
                found.setdefault(match[1], []).append(_finite(match[2]))
    return found


def _observation(values: list[float | None]) -> Observation:
    finite = [value for value in values if value is not None]
    return Observation(min=min(finite), max=max(finite), latest=finite[-1])


def objective_value(manifest: Manifest, metrics: dict[str, Observation]) -> float | None:
    """The objective as Katib takes it: the strategy of the metric, by default min for minimize and
    max for maximize.
    """
    objective = manifest["spec"]["objective"]
    seen = metrics.get(objective["objectiveMetricName"])
    if seen is None:
        return None
    strategies = {s["name"]: s["value"] for s in objective.get("metricStrategies", [])}
    default = "min" if objective["type"] == "minimize" else "max"
    return getattr(seen, strategies.get(objective["objectiveMetricName"], default))


def metric_names(manifest: Manifest) -> list[str]:
    objective = manifest["spec"]["objective"]
    return [objective["objectiveMetricName"], *objective.get("additionalMetricNames", [])]


def substitute(manifest: Manifest, assignments: dict[str, str], trial_name: str) -> Manifest:
    """The trial's own object:

    `${trialParameters.x}` and `${trialSpec.Name}` replaced, named and labelled as Katib would.
    """
    template = manifest["spec"]["trialTemplate"]
    values = {
        p["name"]: (
            trial_name if p["reference"] == TRIAL_NAME_REFERENCE else assignments[p["reference"]]
        )
        for p in template.get("trialParameters", [])
    }
    trial = _replace(copy.deepcopy(template["trialSpec"]), values)
    metadata = trial.setdefault("metadata", {})
    metadata["name"] = trial_name
    metadata.setdefault("labels", {}).update(manifest["metadata"].get("labels", {}))
    return trial


def check_experiment(manifest: Manifest) -> None:
    """Refuse what Katib's webhook refuses.

    Raises InputError with the path inside the object and what may stand there.
    """
    spec, name = manifest["spec"], manifest["metadata"]["name"]
    require(
        len(name) <= 40, f"Experiment {name}: its name has {len(name)} characters, Katib allows 40"
    )
    require(
        spec["objective"].get("type") in ("minimize", "maximize"),
        "spec.objective.type:"
        f" {unknown('type', str(spec['objective'].get('type')), ('minimize', 'maximize'))}",
    )
    algorithm = spec["algorithm"].get("algorithmName", "")
    require(
        algorithm in ALGORITHMS,
        f"spec.algorithm.algorithmName: {unknown('algorithm', algorithm, ALGORITHMS)}",
    )
    parallel, most = spec.get("parallelTrialCount", 3), spec.get("maxTrialCount", math.inf)
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
        "spec.trialTemplate.primaryContainerName: missing",
    )
    require(
        "name" not in template["trialSpec"].get("metadata", {}),
        "spec.trialTemplate.trialSpec.metadata.name: Katib names the trials",
    )
    _check_references(spec)


def _check_references(spec: dict[str, Any]) -> None:
    names = [parameter["name"] for parameter in spec.get("parameters", [])]
    given = {p["name"]: p["reference"] for p in spec["trialTemplate"].get("trialParameters", [])}
    for name, reference in given.items():
        known = reference in names or reference.startswith("${trialSpec.")
        require(
            known,
            f"spec.trialTemplate.trialParameters.{name}: {unknown('parameter', reference, names)}",
        )
    for name in names:
        require(
            name in given.values(),
            f"spec.parameters.{name}: no trial receives it; add it to"
            " trialTemplate.trialParameters",
        )
    for used in set(PARAMETER.findall(json.dumps(spec["trialTemplate"]["trialSpec"]))):
        require(
            used in given,
            f"spec.trialTemplate.trialSpec: ${{trialParameters.{used}}}:"
            f" {unknown('trial parameter', used, given)}",
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
