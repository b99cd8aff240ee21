"""Check whether a run's pods fit the namespace's quota and the nodes, and how many trials at once.

The trials are not all: the search step, the pod of Katib's algorithm and the metrics collector in
each trial run at the same time, and at the end the service does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from clusters.protocol import Manifest
from clusters.survey import Node, Survey
from common.config import RunConfig, selector
from common.run import Run
from operations.quantities import amount, quantity_text
from operations.render import objects
from operations.table import Line, error, not_seen, ok, warning

Needs = dict[str, float]
"""Amounts by the names that a ResourceQuota uses: requests.cpu, limits.memory, pods."""

SMALLER = "--num-gpus, --num-cpus, --memory, --num-replicas"
# What Katib gives the algorithm's pod and the metrics collector, unless KatibConfig says otherwise
# (katib v0.19.0 pkg/apis/config/v1beta1/defaults.go:27-38).
KATIB: Manifest = {
    "requests": {"cpu": "50m", "memory": "10Mi", "ephemeral-storage": "500Mi"},
    "limits": {"cpu": "500m", "memory": "100Mi", "ephemeral-storage": "5Gi"},
}
# Argo's container beside each step, as the manifests of Kubeflow Pipelines set it.
ARGO: Manifest = {
    "requests": {"cpu": "10m", "memory": "32Mi"},
    "limits": {"cpu": "500m", "memory": "512Mi"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """One resource of a ResourceQuota."""

    quota: str
    resource: str
    available: float
    hard: float


def check_capacity(survey: Survey, run: Run, *, on_kubeflow: bool) -> Iterator[Line]:
    """Yield the lines on the quota and on the nodes.

    `on_kubeflow`: the steps run in pods too, which need room beside the trials and the service.
    """
    step = step_needs(run.config) if on_kubeflow else {}
    yield from check_quota(survey, run, step)
    yield from check_nodes(survey, run, step)


def check_quota(survey: Survey, run: Run, step: Needs) -> Iterator[Line]:
    """Yield a line on how many trials fit the unused quota, and lines if the service does not."""
    quotas = survey.quotas()
    if quotas is None:
        yield not_seen("quota", survey.unseen.get("ResourceQuotas", "not readable"))
        return
    limits = []
    for name, hards, usage in quotas:
        for resource, text in hards.items():
            hard = amount(text)
            available = hard - amount(usage.get(resource, "0"))
            limits.append(Limit(quota=name, resource=resource, available=available, hard=hard))
    if not limits:
        yield ok("quota", "the namespace has none")
        return
    yield trials_line(limits, run, step)
    yield from service_lines(limits, run, step)


def trials_line(limits: list[Limit], run: Run, step: Needs) -> Line:
    """Return the line on how many trials fit beside the search step and the algorithm's pod."""
    needs, parallel = trial_needs(run), run.config.parallel_trials
    beside = total_needs(step, of_containers([KATIB]))
    fits, tightest = parallel, ""
    for limit in limits:
        need, others = needs.get(limit.resource, 0.0), beside.get(limit.resource, 0.0)
        text = f"a trial asks for {limit.resource} {quantity_text(need)}"
        if others:
            text += f", the algorithm needs {quantity_text(others)} more" + (
                " and a step" if step else ""
            )
        if need and need + others > limit.hard:
            # more than the whole quota: waiting does not help
            return error(
                "quota",
                f"{text}; {limit.quota} allows {quantity_text(limit.hard)} in all",
                f"ask for less ({SMALLER}) or for a larger quota",
            )
        room = max(0, int((limit.available - others) // need)) if need else fits
        if room < fits:
            fits = room
            rest = quantity_text(max(limit.available, 0.0))
            total = quantity_text(limit.hard)
            tightest = f"{limit.resource}: {rest} of {total} left in {limit.quota}, {text}"
    if not tightest:
        return ok("quota", f"{parallel} trials fit at once")
    if fits == 0:
        return warning(
            "quota",
            f"no trial fits now ({tightest})",
            "the search will wait; --status shows for what",
        )
    return warning(
        "quota",
        f"{fits} of {parallel} parallel trials fit ({tightest})",
        f"--parallel-trials {fits}",
    )


def service_lines(limits: list[Limit], run: Run, step: Needs) -> Iterator[Line]:
    """Yield a line for each limit that the service exceeds; it starts after the trials."""
    needs = service_needs(run)
    together = total_needs(
        step, {key: max(run.config.min_replicas, 1) * value for key, value in needs.items()}
    )
    for limit in limits:
        need = together.get(limit.resource, 0.0)
        amount_text = f"{limit.resource} {quantity_text(need)}"
        text = f"the service and the step that deploys it ask for {amount_text}"
        if need > limit.hard:
            yield error(
                "quota",
                f"{text}; {limit.quota} allows {quantity_text(limit.hard)} in all",
                "ask for a larger quota",
            )
        elif need > limit.available:
            yield warning(
                "quota",
                f"{text}; {quantity_text(max(limit.available, 0.0))} of {quantity_text(limit.hard)}"
                f" are left in {limit.quota}",
                "the service will wait for room; if it runs already, it is part of what is used",
            )


def check_nodes(survey: Survey, run: Run, step: Needs) -> Iterator[Line]:
    """Yield a line for each kind of pod that no node is large enough for."""
    nodes = survey.nodes()
    if nodes is None:
        yield not_seen(
            "nodes",
            f"how large they are ({survey.unseen.get('Nodes', '')})",
            "ask somebody who may list nodes for the output of kubectl describe nodes",
        )
        return
    labels = selector(run.config.node_selector)
    usable = [node for node in nodes if node.schedulable and fits_labels(node, labels)]
    if not usable:
        what = f" with {run.config.node_selector}" if labels else ""
        yield error("nodes", f"none of the {len(nodes)} nodes{what} takes pods", "--node-selector")
        return
    kinds = {
        "a trial": of_containers(
            [*largest_pod(objects(run)["experiment.yaml"]), KATIB], requests_only=True
        ),
        "the service": requests_of(service_needs(run)),
        "a step": requests_of(step),
    }
    all_fit = True
    for what, needs in kinds.items():
        reason = too_large(needs, usable)
        if reason:
            all_fit = False
            yield error("nodes", f"no node is large enough for {what}: {reason}", f"less {SMALLER}")
    if all_fit:
        yield ok("nodes", f"each pod of the run fits one of {len(usable)} nodes when it is empty")


def too_large(needs: Needs, nodes: list[Node]) -> str:
    """Return why no single node can hold a pod; empty if one can."""
    for node in nodes:
        if all(amount(node.allocatable.get(key, "0")) >= need for key, need in needs.items()):
            return ""
    for key, need in needs.items():
        largest = max(amount(node.allocatable.get(key, "0")) for node in nodes)
        if need > largest:
            return (
                f"it asks for {key} {quantity_text(need)}, the largest has {quantity_text(largest)}"
            )
    return "no single node has all that it asks for: " + ", ".join(
        f"{key} {quantity_text(need)}" for key, need in needs.items()
    )


def fits_labels(node: Node, labels: Mapping[str, str]) -> bool:
    """Return whether a node has all labels of a node selector."""
    return all(node.labels.get(key) == value for key, value in labels.items())


def trial_needs(run: Run) -> Needs:
    """Return what a trial's pods ask for, with the collector in the Master."""
    job = objects(run)["experiment.yaml"]["spec"]["trialTemplate"]["trialSpec"]["spec"]
    needs: Needs = {}
    for replica in job["pytorchReplicaSpecs"].values():
        containers = [
            container["resources"] for container in replica["template"]["spec"]["containers"]
        ]
        for _ in range(replica["replicas"]):
            needs = total_needs(needs, of_containers(containers))
    collector = of_containers([KATIB])
    collector.pop("pods")  # it is no pod of its own
    return total_needs(needs, collector)


def largest_pod(experiment: Manifest) -> list[Manifest]:
    """Return the resources of the containers of a trial's Master, which has the collector."""
    job = experiment["spec"]["trialTemplate"]["trialSpec"]["spec"]
    master = job["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    return [container["resources"] for container in master["containers"]]


def service_needs(run: Run) -> Needs:
    """Return what one pod of the service asks for."""
    predictor = objects(run)["inference_service.yaml"]["spec"]["predictor"]
    return of_containers([predictor[run.config.predictor_form]["resources"]])


def step_needs(config: RunConfig) -> Needs:
    """Return what the pod of a step asks for, from the compiled pipeline."""
    from google.protobuf import json_format

    from components import chain

    spec = json_format.MessageToDict(chain.pipeline(config).pipeline_spec)
    container = spec["deploymentSpec"]["executors"]["exec-search"]["container"]["resources"]
    own = {
        "requests": {
            "cpu": container["resourceCpuRequest"],
            "memory": container["resourceMemoryRequest"],
        },
        "limits": {
            "cpu": container["resourceCpuLimit"],
            "memory": container["resourceMemoryLimit"],
        },
    }
    return of_containers([own, ARGO])


def of_containers(containers: list[Manifest], *, requests_only: bool = False) -> Needs:
    """Return what a pod with containers of these resources asks for.

    The keys are a quota's (requests.cpu, limits.memory, pods), or with `requests_only` a node's
    (cpu, memory, nvidia.com/gpu).
    """
    needs: Needs = {"pods": 1.0}
    for resources in containers:
        for kind in ("requests", "limits"):
            for resource, text in (resources.get(kind) or {}).items():
                name = f"{kind}.{resource}"
                needs[name] = needs.get(name, 0.0) + amount(text)
    # A quota may name these without 'requests.'.
    for resource in ("cpu", "memory", "ephemeral-storage"):
        if f"requests.{resource}" in needs:
            needs[resource] = needs[f"requests.{resource}"]
    return requests_of(needs) if requests_only else needs


def requests_of(needs: Needs) -> Needs:
    """Return the requests among the needs of a pod, by the names of a node's resources."""
    start = "requests."
    return {key.removeprefix(start): need for key, need in needs.items() if key.startswith(start)}


def total_needs(*parts: Needs) -> Needs:
    """Return the sum of needs."""
    total: Needs = {}
    for part in parts:
        for key, need in part.items():
            total[key] = total.get(key, 0.0) + need
    return total
