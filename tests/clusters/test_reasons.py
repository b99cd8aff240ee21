"""Why a pod waits or died, in words."""

from __future__ import annotations

import pytest

from clusters.reasons import crash_loops, crash_of, short, stuck, waiting_of, warning_of


def pod(phase: str = "Running", *, containers=(), init=(), **status) -> dict:
    return {
        "metadata": {"name": "search-x1-master-0"},
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


def ended(code: int, reason: str = "Error", at: str = "2026-01-01T00:00:00Z", **more) -> dict:
    return {"exitCode": code, "reason": reason, "finishedAt": at, **more}


UNSCHEDULABLE = [
    {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes: 3 Insufficient nvidia.com/gpu.",
    }
]
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
            "its image cannot be pulled: ErrImagePull: manifest unknown",
            id="image",
        ),
        pytest.param(
            pod("Pending", containers=[container(waiting={"reason": "InvalidImageName"})]),
            "its image cannot be pulled: InvalidImageName: weaver:1",
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
            'its container cannot be created: CreateContainerConfigError: secret "s3" not found',
            id="secret",
        ),
        pytest.param(
            pod(
                "Pending",
                conditions=SCHEDULED,
                init=[container("init", waiting={"reason": "ImagePullBackOff", "message": "x"})],
            ),
            "its image cannot be pulled: ImagePullBackOff: x",
            id="init container",
        ),
    ],
)
def test_waiting(status, reason):
    assert waiting_of(status) == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        pytest.param(pod(containers=[container(running={})]), None, id="runs"),
        pytest.param(
            pod("Succeeded", containers=[container(terminated=ended(0, "Completed"))]),
            None,
            id="succeeded",
        ),
        pytest.param(
            pod("Failed", containers=[container(terminated=ended(1))]), "exit code 1", id="error"
        ),
        pytest.param(
            pod("Failed", containers=[container(terminated=ended(137, "OOMKilled"))]),
            "OOMKilled (exit code 137): it used more memory than its limit",
            id="memory",
        ),
        pytest.param(
            pod(
                "Failed",
                containers=[
                    container(
                        terminated=ended(128, "StartError", message="exec: python: not found")
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
                containers=[container(terminated=ended(137))],
            ),
            "Evicted: The node was low on resource: memory.",
            id="evicted",
        ),
        pytest.param(pod("Failed", reason="NodeLost", containers=()), "NodeLost", id="node lost"),
    ],
)
def test_crash(status, reason):
    crash = crash_of(status)
    assert (crash and crash.reason) == reason


def test_the_container_that_ended_first_is_blamed_and_a_sidecar_never():
    early, late = ended(1, at="2026-01-01T00:00:00Z"), ended(2, at="2026-01-01T00:00:09Z")
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


def test_a_restarted_container_is_told_by_its_previous_end_and_counted_once():
    waits = crash_of(pod(containers=[container(restarts=2, terminated=ended(1))]))
    again = crash_of(
        pod(containers=[container(restarts=3, running={}, last={"terminated": ended(1)})])
    )
    assert (waits.previous, again.previous) == (False, True)
    assert waits.attempt == again.attempt == 2


@pytest.mark.parametrize(
    ("restarts", "ready", "loops"),
    [(1, False, False), (2, False, True), (5, True, False)],
    ids=["once", "twice", "well again"],
)
def test_crash_loop(restarts, ready, loops):
    assert (
        crash_loops(
            pod(
                containers=[
                    container(
                        restarts=restarts, ready=ready, running={}, last={"terminated": ended(1)}
                    )
                ]
            )
        )
        is loops
    )


def test_only_what_does_not_come_by_waiting_is_stuck():
    assert stuck(pod("Pending", containers=[container(waiting={"reason": "ImagePullBackOff"})]))
    assert stuck(
        pod("Pending", containers=[container(waiting={"reason": "CreateContainerConfigError"})])
    )
    assert not stuck(
        pod("Pending", containers=[container(waiting={"reason": "ContainerCreating"})])
    )
    assert not stuck(pod("Pending", conditions=UNSCHEDULABLE))


def test_the_newest_warning_counts_and_a_quota_is_said_shortly():
    quota = (
        'Error creating: pods "x" is forbidden: exceeded quota: kf, requested:'
        " requests.nvidia.com/gpu=1"
    )
    events = [
        {"type": "Warning", "reason": "FailedMount", "message": "no such volume"},
        {"type": "Warning", "reason": "FailedCreatePod", "message": quota},
        {"type": "Normal", "reason": "Pulled", "message": "image present"},
    ]
    assert warning_of(events[:1]) == "FailedMount: no such volume"
    assert warning_of(events) == "quota: exceeded quota: kf, requested: requests.nvidia.com/gpu=1"
    assert warning_of(events[2:]) == ""


def test_short_makes_one_line_of_bounded_length():
    assert short("a\n  b\tc") == "a b c"
    assert len(short("x" * 1000)) == 400


def test_what_controllers_say_of_their_own_retries_and_sums_is_no_reason():
    message = "Operation cannot be fulfilled on deployments.apps: the object has been modified"
    conflict = {"type": "Warning", "reason": "InternalError", "message": message}
    total = {"type": "Warning", "reason": "InferenceServiceNotReady", "message": "no longer Ready"}
    mount = {"type": "Warning", "reason": "FailedMount", "message": "no such volume"}
    assert warning_of([conflict, total]) == ""
    assert warning_of([mount, conflict, total]) == "FailedMount: no such volume"


def test_a_termination_message_that_holds_a_log_is_told_by_its_last_line():
    log = "INFO Copying\nTraceback (most recent call last):\nRuntimeError: No model found\n\n"
    crash = crash_of(pod("Failed", containers=[container(terminated=ended(1, message=log))]))
    assert crash.reason == "exit code 1: RuntimeError: No model found"
