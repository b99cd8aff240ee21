"""The Argo Workflow of a KFP run, and why one of its steps was stopped.

A step's pod is killed half a second after it was told to stop, whoever stopped it (seen with KFP
2.15.0 and Argo 3.7.3), so that it cannot record the reason. The exit handler reads it afterwards.
For a pod that could not be created, the reason is in a node of the Workflow.
"""

from __future__ import annotations

import re

from clusters.api import WORKFLOW, Api
from clusters.owner import workflow_of
from clusters.protocol import STEP_LABEL, Manifest, Stop
from clusters.reasons import crash_of, is_true, labels_of, message_of, reason_of, short
from clusters.waiting import Wait
from common.errors import ClusterError
from common.records import TERMINATED

KFP_RUN_LABEL = "pipeline/runid"  # label of the pods of a KFP run
MAIN = "main"  # the container with the step's own program; the others are Argo's
STOPPED = "the step was stopped or evicted, or its pod was deleted, from outside"
POD_DELETED = "pod deleted"
"""Argo's message for a node whose pod is gone. It does not distinguish deletion, drain and eviction
(seen with Argo 3.7.3)."""
EVICTIONS = ("Evicted", "Preempted", "TaintManagerEviction")
"""Reasons in events of a pod that the kubelet, the scheduler or a taint removed. The eviction API
writes no such event (seen with Kubernetes 1.34.4: only Killing)."""
EXECUTOR = re.compile(r"executor(\(\d+\))?")
DRIVER = "-driver"


def why_stopped(api: Api, kfp_run: str, step: str, wait: Wait) -> Stop:
    """Return why the last attempt of a step, or of the step after it, ended without a message."""
    pods = api.pods(f"{KFP_RUN_LABEL}={kfp_run}", wait) or []
    owner = next(filter(None, map(workflow_of, pods)), None)
    workflow = None
    try:
        if owner:
            workflow = api.get(WORKFLOW, owner.name, wait)
    except ClusterError as error:
        # without this right the reason is only less exact
        wait.tell("workflow", f"whether the run was terminated is not known: {error}")
    attempts = [pod for pod in pods if labels_of(pod).get(STEP_LABEL) == step]
    attempts.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""))
    stop = stop_of(workflow, attempts[-1] if attempts else None)
    if stop.reason == STOPPED and (pod_name := _deleted_pod(workflow or {}, step)):
        # events outlive their pod by an hour
        eviction = eviction_of(api.events(pod_name, wait))
        return Stop(state="interrupted", reason=eviction or STOPPED)
    return stop


def stop_of(workflow: Manifest | None, pod: Manifest | None) -> Stop:
    """Return why a step was stopped, from the Workflow of its run and its last pod, if it exists.

    The Stop names another task if that one could not start.
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
    return Stop(state="failed", reason=f"the step's pod ended without a message: {crash.reason}")


def is_terminated(workflow: Manifest) -> bool:
    """Return whether a user has ended the run.

    KFP sets a deadline of 0 s on its Workflow; Argo's own clients set `shutdown`.
    """
    spec = workflow.get("spec", {})
    return spec.get("activeDeadlineSeconds") == 0 or bool(spec.get("shutdown"))


def refusals(workflow: Manifest) -> dict[str, str]:
    """Return why the pod of a task, or of its driver, could not be created or failed, by task.

    They are in their order. Tasks are those of the pipeline, and also `root`, `exit-handler-1` and
    `condition-2`. A step whose own program has run is left out, since its status.json says more.
    """
    nodes = [
        node
        for node in workflow.get("status", {}).get("nodes", {}).values()
        if node.get("type") == "Pod" and node.get("phase") in ("Error", "Failed")
    ]
    reasons: dict[str, str] = {}
    for node in sorted(nodes, key=lambda node: node.get("startedAt") or ""):
        # as in WORKFLOW.root.exit-handler-1.search.executor(0), or ...search-driver
        path = [part for part in node["name"].split(".") if not EXECUTOR.fullmatch(part)]
        message = re.sub(r"^task '[^']*' errored: ", "", node.get("message") or "")
        if not message or message == POD_DELETED:
            continue
        if path[-1].endswith(DRIVER):
            task = path[-1].removesuffix(DRIVER)
            reasons.setdefault(task, f"the pod of its driver failed: {short(message)}")
        elif node["phase"] == "Error":
            # Argo uses Failed for pods that have run, and Error for others
            reasons.setdefault(path[-1], f"its pod could not be created: {short(message)}")
    return reasons


def _deleted_pod(workflow: Manifest, step: str) -> str:
    """Return the name of a step's pod that Argo reports as deleted; empty if there is none.

    It is a node's id with the name of its template inserted (argo v3.7.3
    workflow/util/pod_name.go:50).
    """
    for node in workflow.get("status", {}).get("nodes", {}).values():
        path = node["name"].split(".")
        if step in path and node.get("type") == "Pod" and node.get("message") == POD_DELETED:
            flow, _, number = str(node["id"]).rpartition("-")
            return f"{flow}-{node.get('templateName', '')}-{number}"
    return ""


def eviction_of(events: list[Manifest]) -> str:
    """Return who evicted a pod, from its events; empty if none says so."""
    for event in events:
        if event.get("reason") in EVICTIONS:
            message = short(event.get("message", ""))
            return f"the step's pod was evicted or preempted: {event['reason']}: {message}"
    return ""


def _with_main_only(pod: Manifest) -> Manifest:
    """Return the pod without Argo's own containers, which end because that of the step does."""
    status = pod.get("status", {})
    statuses = status.get("containerStatuses") or []
    own = [container for container in statuses if container.get("name") == MAIN]
    return {**pod, "status": {**status, "initContainerStatuses": [], "containerStatuses": own}}
