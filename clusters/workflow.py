"""The Workflow that Argo makes of a KFP run: why a step of it was stopped.

A step's pod is killed half a second after it was told to stop, whoever stopped it (seen with KFP
2.15.0 and Argo 3.7.3), so that it cannot say why. The exit handler asks afterwards. A pod that
could not be created says nothing at all: its reason is in a node of the Workflow.
"""

from __future__ import annotations

import re

from clusters.api import WORKFLOW, Api
from clusters.owner import workflow_of
from clusters.protocol import STEP_LABEL, Manifest, Stop
from clusters.reasons import crash_of, is_true, message_of, reason_of, short
from clusters.waiting import Wait
from common.errors import ClusterError
from common.records import TERMINATED

KFP_RUN_LABEL = "pipeline/runid"  # on the pods of a KFP run
MAIN = "main"  # the container with the step's own program; the others are Argo's
STOPPED = "the step was stopped or evicted, or its pod was deleted, from outside"
POD_DELETED = "pod deleted"
"""Argo's message of a node whose pod is gone: deleted, drained or evicted, which it cannot tell
apart (seen with Argo 3.7.3)."""
EVICTIONS = ("Evicted", "Preempted", "TaintManagerEviction")
"""Reasons of the events of a pod that was removed by the kubelet, the scheduler or a taint. The
eviction API writes none (seen with Kubernetes 1.34.4: Killing alone)."""
EXECUTOR = re.compile(r"executor(\(\d+\))?")
DRIVER = "-driver"


def why_stopped(api: Api, kfp_run: str, step: str, wait: Wait) -> Stop:
    """Why the last attempt of a step of a KFP run, or the step after it, ended without a word."""
    pods = api.pods(f"{KFP_RUN_LABEL}={kfp_run}", wait) or []
    owner = next(filter(None, map(workflow_of, pods)), None)
    workflow = None
    try:
        if owner:
            workflow = api.get(WORKFLOW, owner.name, wait)
    except ClusterError as error:
        # without this right only the reason is less exact
        wait.tell("workflow", f"whether the run was terminated is not known: {error}")
    attempts = [pod for pod in pods if _labels(pod).get(STEP_LABEL) == step]
    attempts.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    stop = stop_of(workflow, attempts[-1] if attempts else None)
    if stop.reason == STOPPED and (deleted := _deleted_pod(workflow or {}, step)):
        # events stay for an hour after their pod
        eviction = eviction_of(api.events(deleted, wait))
        return Stop(state="interrupted", reason=eviction or STOPPED)
    return stop


def stop_of(workflow: Manifest | None, pod: Manifest | None) -> Stop:
    """Why a step was stopped, by its run's Workflow and the last pod it had, if it is still there.

    The Stop names another task where that one could not begin.
    """
    if workflow and is_terminated(workflow):
        return Stop(state="interrupted", reason=TERMINATED)
    for task, reason in refusals(workflow or {}).items():
        return Stop(state="failed", reason=reason, task=task)
    if pod is None:
        return Stop(state="interrupted", reason=STOPPED)
    if is_true(pod, "DisruptionTarget"):
        cause = reason_of(pod, "DisruptionTarget") or "no reason given"
        if message := message_of(pod, "DisruptionTarget"):
            cause += f": {message}"
        return Stop(state="interrupted", reason=f"the step's pod was evicted or preempted: {cause}")
    crash = crash_of(_with_main_only(pod))
    if pod.get("status", {}).get("reason") in ("Evicted", "Preempting") and crash:
        return Stop(state="interrupted", reason=f"the step's pod was evicted: {crash.reason}")
    if pod["metadata"].get("deletionTimestamp") or crash is None:
        return Stop(state="interrupted", reason=STOPPED)
    return Stop(state="failed", reason=f"the step's pod ended without a word: {crash.reason}")


def is_terminated(workflow: Manifest) -> bool:
    """Whether a user has ended the run.

    KFP does so by a deadline of 0 s on its Workflow; Argo's own clients set `shutdown`.
    """
    spec = workflow.get("spec", {})
    return spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))


def refusals(workflow: Manifest) -> dict[str, str]:
    """Task -> why its pod, or that of its driver, could not be created or did not end well.

    In their order. Tasks are those of the pipeline, also `root`, `exit-handler-1`, `condition-2`.
    A step whose own program has run is left out: its status.json says more.
    """
    nodes = [
        node
        for node in workflow.get("status", {}).get("nodes", {}).values()
        if node.get("type") == "Pod" and node.get("phase") in ("Error", "Failed")
    ]
    told: dict[str, str] = {}
    for node in sorted(nodes, key=lambda node: node.get("startedAt") or ""):
        # as in WORKFLOW.root.exit-handler-1.search.executor(0), or ...search-driver
        path = [part for part in node["name"].split(".") if not EXECUTOR.fullmatch(part)]
        message = re.sub(r"^task '[^']*' errored: ", "", node.get("message") or "")
        if not message or message == POD_DELETED:
            continue
        if path[-1].endswith(DRIVER):
            task = path[-1].removesuffix(DRIVER)
            told.setdefault(task, f"the pod of its driver failed: {short(message)}")
        elif node["phase"] == "Error":
            # Argo calls a pod that has run Failed, whatever its end was
            told.setdefault(path[-1], f"its pod could not be created: {short(message)}")
    return told


def _deleted_pod(workflow: Manifest, step: str) -> str:
    """The name of a step's pod that Argo missed; empty if it missed none.

    argo v3.7.3 workflow/util/pod_name.go:50: a node's id without its template's name.
    """
    for node in workflow.get("status", {}).get("nodes", {}).values():
        path = node["name"].split(".")
        if step in path and node.get("type") == "Pod" and node.get("message") == POD_DELETED:
            flow, _, number = str(node["id"]).rpartition("-")
            return f"{flow}-{node.get('templateName', '')}-{number}"
    return ""


def eviction_of(events: list[Manifest]) -> str:
    """Who evicted a pod, by its events; empty if none says so."""
    for event in events:
        if event.get("reason") in EVICTIONS:
            message = short(event.get("message", ""))
            return f"the step's pod was evicted or preempted: {event['reason']}: {message}"
    return ""


def _with_main_only(pod: Manifest) -> Manifest:
    """The pod without Argo's own containers, which end because the step's does."""
    status = pod.get("status", {})
    own = [one for one in status.get("containerStatuses") or [] if one.get("name") == MAIN]
    return {**pod, "status": {**status, "initContainerStatuses": [], "containerStatuses": own}}


def _labels(pod: Manifest) -> dict[str, str]:
    return pod["metadata"].get("labels") or {}
