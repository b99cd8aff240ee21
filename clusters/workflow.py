"""The Workflow that Argo makes of a KFP run: why a step of it was stopped.

A step's pod is killed half a second after it was told to stop, whoever stopped it (seen with KFP
2.15.0 and Argo 3.7.3), so that it cannot say why. The exit handler asks afterwards.
"""

from __future__ import annotations

from clusters.api import WORKFLOW, Api
from clusters.owner import workflow_of
from clusters.protocol import STEP_LABEL, Manifest, Stop
from clusters.reasons import crash_of, is_true, message_of, reason_of
from clusters.waiting import Wait
from common.errors import ClusterError
from common.records import TERMINATED

KFP_RUN_LABEL = "pipeline/runid"  # on the pods of a KFP run
MAIN = "main"  # the container with the step's own program; the others are Argo's
STOPPED = "the step was stopped, or its pod deleted, from outside"


def why_stopped(api: Api, kfp_run: str, step: str, wait: Wait) -> Stop:
    """Why the last attempt of a step of a KFP run ended without a word."""
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
    return stop_of(workflow, attempts[-1] if attempts else None)


def stop_of(workflow: Manifest | None, pod: Manifest | None) -> Stop:
    """Why a step was stopped, by its run's Workflow and the last pod it had, if it is still there.

    KFP terminates a run by a deadline of 0 s on its Workflow; Argo's own clients set `shutdown`.
    """
    spec = (workflow or {}).get("spec", {})
    if spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown"):
        return Stop(state="interrupted", reason=TERMINATED)
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


def _with_main_only(pod: Manifest) -> Manifest:
    """The pod without Argo's own containers, which end because the step's does."""
    status = pod.get("status", {})
    own = [one for one in status.get("containerStatuses") or [] if one.get("name") == MAIN]
    return {**pod, "status": {**status, "initContainerStatuses": [], "containerStatuses": own}}


def _labels(pod: Manifest) -> dict[str, str]:
    return pod["metadata"].get("labels") or {}
