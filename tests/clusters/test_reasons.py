"""Why a pod waits or died, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusters.reasons import crash_loops, crash_of, short, stuck, waiting_of, warning_of

MISSING_IMAGE = json.loads(
    (Path(__file__).parent / "recordings" / "missing_image.json").read_text()
)


def pod(phase: str = "Running", *, containers=(), init=(), spec=None, **status) -> dict:
    return {
        "metadata": {"name": "search-x1-master-0"},
        "spec": spec or {},
        "status": {
            "phase": phase,
            "containerStatuses": list(containers),
            "initContainerStatuses": list(init),
            **status,
        },
    }


def container(
    name: str = "pytorch",
    *,
    restarts: int = 0,
    ready: bool = False,
    last: dict | None = None,
    **state,
) -> dict:
    return {
        "name": name,
        "image": "weaver:1",
        "state": state,
        "lastState": last or {},
        "restartCount": restarts,
        "ready": ready,
    }


def end_of(code: int, reason: str = "Error", at: str = "2026-01-01T00:00:00Z", **more) -> dict:
    return {"exitCode": code, "reason": reason, "finishedAt": at, **more}


UNSCHEDULABLE = [
    {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu.",
    }
]
MISSING = (
    "its image weaver:1 cannot be pulled (check its name, and the pull secret of its registry)"
)
SCHEDULED = [{"type": "PodScheduled", "status": "True"}]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        pytest.param(pod("Running"), "", id="runs"),
        pytest.param(pod("Pending"), "not scheduled yet", id="new"),
        pytest.param(
            pod("Pending", conditions=SCHEDULED),
            "its containers are being created",
            id="being created",
        ),
        pytest.param(
            pod("Pending", conditions=UNSCHEDULABLE),
            "no node takes it: 0/3 nodes: 3 Insufficient nvidia.com/gpu.",
            id="unschedulable",
        ),
        pytest.param(
            pod(
                "Pending",
                containers=[
                    container(waiting={"reason": "ErrImagePull", "message": "manifest unknown"})
                ],
            ),
            f"{MISSING}: manifest unknown",
            id="image",
        ),
        pytest.param(
            pod("Pending", containers=[container(waiting={"reason": "InvalidImageName"})]),
            MISSING,
            id="image without a message",
        ),
        pytest.param(
            pod(
                "Pending",
                containers=[
                    container(
                        waiting={
                            "reason": "CreateContainerConfigError",
                            "message": 'secret "s3" not found',
                        }
                    )
                ],
            ),
            "its container pytorch cannot be created: CreateContainerConfigError:"
            ' secret "s3" not found',
            id="secret",
        ),
        pytest.param(
            pod(
                "Pending",
                conditions=SCHEDULED,
                init=[container("init", waiting={"reason": "ImagePullBackOff", "message": "x"})],
            ),
            f"{MISSING}: x",
            id="init container",
        ),
    ],
)
def test_why_a_pod_waits(status, reason):
    assert waiting_of(status) == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        pytest.param(pod(containers=[container(running={})]), None, id="runs"),
        pytest.param(
            pod("Succeeded", containers=[container(terminated=end_of(0, "Completed"))]),
            None,
            id="succeeded",
        ),
        pytest.param(
            pod("Failed", containers=[container(terminated=end_of(1))]),
            "exit code 1",
            id="error",
        ),
        pytest.param(
            pod("Failed", containers=[container(terminated=end_of(137, "OOMKilled"))]),
            "OOMKilled (exit code 137): it used more memory than its limit",
            id="memory",
        ),
        pytest.param(
            pod(
                "Failed",
                containers=[
                    container(
                        terminated=end_of(128, "StartError", message="exec: python: not found")
                    )
                ],
            ),
            "StartError (exit code 128): exec: python: not found",
            id="start",
        ),
        pytest.param(
            pod(
                "Failed",
                reason="Evicted",
                message="The node was low on resource: memory.",
                containers=[container(terminated=end_of(137))],
            ),
            "Evicted: The node was low on resource: memory.",
            id="evicted",
        ),
        pytest.param(pod("Failed", reason="NodeLost", containers=()), "NodeLost", id="node lost"),
    ],
)
def test_why_a_container_crashed(status, reason):
    crash = crash_of(status)
    assert (crash and crash.reason) == reason


def test_the_crash_is_that_of_the_container_that_ended_first_and_no_sidecar():
    early, late = (
        end_of(1, at="2026-01-01T00:00:00Z"),
        end_of(2, at="2026-01-01T00:00:09Z"),
    )
    both = [
        container("istio-proxy", terminated=early),
        container("metrics-logger-and-collector", terminated=early),
        container(terminated=late),
    ]
    assert crash_of(pod("Failed", containers=both)).container == "pytorch"
    assert (
        crash_of(
            pod(
                "Failed",
                containers=[container("a", terminated=late), container("b", terminated=early)],
            )
        ).container
        == "b"
    )


def test_a_restarted_container_is_described_by_its_previous_end_and_counted_once():
    waits = crash_of(pod(containers=[container(restarts=2, terminated=end_of(1))]))
    again = crash_of(
        pod(containers=[container(restarts=3, running={}, last={"terminated": end_of(1)})])
    )
    assert (waits.previous, again.previous) == (False, True)
    assert waits.attempt == again.attempt == 2


@pytest.mark.parametrize(
    ("restarts", "ready", "loops"),
    [(1, False, False), (2, False, True), (5, True, False)],
    ids=["once", "twice", "well again"],
)
def test_a_crash_loop_is_recognised(restarts, ready, loops):
    assert (
        crash_loops(
            pod(
                containers=[
                    container(
                        restarts=restarts,
                        ready=ready,
                        running={},
                        last={"terminated": end_of(1)},
                    )
                ]
            )
        )
        is loops
    )


def test_a_pod_is_stuck_only_for_reasons_that_waiting_does_not_cure():
    assert stuck(pod("Pending", containers=[container(waiting={"reason": "ImagePullBackOff"})]))
    assert stuck(
        pod("Pending", containers=[container(waiting={"reason": "CreateContainerConfigError"})])
    )
    assert not stuck(
        pod("Pending", containers=[container(waiting={"reason": "ContainerCreating"})])
    )
    assert not stuck(pod("Pending", conditions=UNSCHEDULABLE))


def test_the_newest_warning_counts():
    events = [
        {"type": "Warning", "reason": "FailedMount", "message": "no such volume"},
        {"type": "Warning", "reason": "FailedMount", "message": "timed out"},
        {"type": "Normal", "reason": "Pulled", "message": "image present"},
    ]
    assert warning_of(events[:1]) == "FailedMount: no such volume"
    assert warning_of(events) == "FailedMount: timed out"
    assert warning_of(events[2:]) == ""


# A trial whose image is missing: Katib's collector ends with 255 again and again beside it
# ------------------------------------------------------------------------------------------------


def test_the_two_forms_of_a_missing_image_are_one_reason():
    """ErrImagePull and ImagePullBackOff alternate; their messages differ."""
    first_try = MISSING_IMAGE["pod"]
    back_off = json.loads(json.dumps(first_try))
    state = back_off["status"]["containerStatuses"][1]["state"]["waiting"]
    message = state["message"]
    state |= {
        "reason": "ImagePullBackOff",
        "message": f'Back-off pulling image "registry.example/none:1": ErrImagePull: {message}',
    }
    assert waiting_of(back_off) == waiting_of(first_try)
    assert "registry.example/none:1" in waiting_of(first_try)
    assert "no such host" in waiting_of(first_try)
    # before Kubernetes 1.32 the second form has no cause
    state["message"] = 'Back-off pulling image "registry.example/none:1"'
    assert waiting_of(first_try).startswith(waiting_of(back_off))


def test_the_collectors_end_does_not_count_before_the_training_starts():
    pod_without_image = MISSING_IMAGE["pod"]
    assert crash_of(pod_without_image) is None
    assert stuck(pod_without_image)
    assert "metrics-logger-and-collector" not in warning_of(MISSING_IMAGE["events"])


def beside(name: str, at: str, **own) -> dict:
    """A pod in which something beside the training ended with 255 at a time."""
    end = {"exitCode": 255, "reason": "Error", "startedAt": at, "finishedAt": at}
    return pod(
        spec={"containers": [{"name": "pytorch"}, {"name": name}]},
        containers=[container(**own), container(name, terminated=end)],
    )


@pytest.mark.parametrize("name", ["metrics-logger-and-collector", "istio-proxy", "vault-agent"])
@pytest.mark.parametrize(
    ("own", "blamed"),
    [
        ({"waiting": {"reason": "ContainerCreating"}}, False),
        ({"running": {"startedAt": "2026-01-01T00:09:00Z"}}, False),
        ({"running": {"startedAt": "2026-01-01T00:00:00Z"}}, True),
        (
            {"terminated": {"exitCode": 0, "startedAt": "2026-01-01T00:00:00Z"}},
            True,
        ),
    ],
    ids=["not started", "started after it", "started before it", "ended well before it"],
)
def test_a_sidecars_end_counts_only_while_the_training_runs(name, own, blamed):
    crash = crash_of(beside(name, "2026-01-01T00:05:00Z", **own))
    assert (crash is not None) is blamed
    if crash:
        assert (crash.container, crash.sidecar) == (name, True)


def test_a_failure_of_the_training_is_never_attributed_to_a_sidecar():
    training_end = {
        "terminated": end_of(1, at="2026-01-01T00:06:00Z", startedAt="2026-01-01T00:00:00Z")
    }
    crash = crash_of(beside("istio-proxy", "2026-01-01T00:05:00Z", **training_end))
    assert (crash.container, crash.sidecar) == ("pytorch", False)


def test_a_failed_init_container_counts_as_the_pods_crash():
    pod_of_failed_init = pod(
        "Pending",
        init=[container("istio-init", terminated=end_of(1))],
        containers=[container(waiting={"reason": "PodInitializing"})],
    )
    assert crash_of(pod_of_failed_init).container == "istio-init"


def test_a_container_that_ended_well_after_a_restart_did_not_crash():
    well = container(restarts=1, terminated=end_of(0, "Completed"), last={"terminated": end_of(1)})
    assert crash_of(pod("Succeeded", containers=[well])) is None


def test_short_makes_one_line_of_bounded_length():
    assert short("a\n  b\tc") == "a b c"
    assert len(short("x" * 1000)) == 400


def test_controllers_own_conflicts_and_summaries_are_no_reasons():
    message = "Operation cannot be fulfilled on deployments.apps: the object has been modified"
    conflict = {"type": "Warning", "reason": "InternalError", "message": message}
    total = {"type": "Warning", "reason": "InferenceServiceNotReady", "message": "no longer Ready"}
    mount = {"type": "Warning", "reason": "FailedMount", "message": "no such volume"}
    assert warning_of([conflict, total]) == ""
    assert warning_of([mount, conflict, total]) == "FailedMount: no such volume"


def test_a_termination_message_with_a_log_is_shortened_to_its_last_line():
    log = "INFO Copying\nTraceback (most recent call last):\nRuntimeError: No model found\n\n"
    crash = crash_of(pod("Failed", containers=[container(terminated=end_of(1, message=log))]))
    assert crash.reason == "exit code 1: RuntimeError: No model found"
