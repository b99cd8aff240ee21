"""Why a pod may not be created, by recorded and by written events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clusters.refusals import refusal_of, silent_webhook

RECORDINGS = Path(__file__).parent / "recordings"
RECORDED = json.loads((RECORDINGS / "refused_pods.json").read_text())["events"]
FACTS = {
    "quota": (
        "exceeded quota: none-at-all, requested: pods=1, used: pods=0, limited: pods=0",
        True,
    ),
    "Pod Security": ('violates PodSecurity "restricted:latest"', True),
    "LimitRange": ("maximum cpu usage per Container is 20m, but limit is 500m", True),
    "webhook": ("webhook pods.example.org does not answer: ", False),
}


def event(message: str, at: str = "2026-01-01T00:00:05Z", count: int = 1, **fields) -> dict:
    return {
        "metadata": {"name": "x1.18ec"},
        "involvedObject": {"kind": "PyTorchJob", "name": "x1"},
        "type": "Warning",
        "reason": "FailedCreatePod",
        "message": f'Error creating: pods "x1-master-0" is forbidden: {message}',
        "count": count,
        "lastTimestamp": at,
        **fields,
    }


def quota(requested: str, limit: str) -> str:
    return f"exceeded quota: kf, requested: {requested}, used: cpu=0, limited: {limit}"


@pytest.mark.parametrize("case", RECORDED)
def test_a_recorded_refusal_has_one_text_for_all_attempts(case):
    """The name of each new pod of a ReplicaSet is in its event, and so is a collective head."""
    facts, hopeless = FACTS[case.split(" of ")[0]]
    refusals = [refusal_of([event]) for event in RECORDED[case]]
    assert len({refusal.text for refusal in refusals}) == 1
    assert len({refusal.occurrence for refusal in refusals}) == len(refusals)
    assert facts in refusals[0].text
    assert [refusal.hopeless for refusal in refusals] == [hopeless] * len(refusals)


def test_a_recorded_refusal_keeps_each_field_that_pod_security_asks_for():
    text = refusal_of(RECORDED["Pod Security of a ReplicaSet"]).text
    for field in ("allowPrivilegeEscalation", "capabilities", "runAsNonRoot", "seccompProfile"):
        assert field in text
    assert "pod-security.kubernetes.io/enforce" in text


@pytest.mark.parametrize(
    ("message", "hopeless"),
    [
        pytest.param(quota("pods=1", "pods=2"), False, id="quota that is full now"),
        pytest.param(quota("pods=1", "pods=0"), True, id="quota without pods"),
        pytest.param(quota("cpu=1500m,pods=1", "cpu=1,pods=9"), True, id="one of two resources"),
        pytest.param(quota("limits.memory=12Gi", "limits.memory=12884901888"), False, id="equal"),
        pytest.param(quota("limits.memory=12Gi", "limits.memory=4G"), True, id="memory"),
        pytest.param(
            quota("requests.nvidia.com/gpu=2", "requests.nvidia.com/gpu=1"), True, id="GPUs"
        ),
        pytest.param(
            "failed quota: kf: must specify limits.cpu for: pytorch", True, id="quota wants limits"
        ),
        pytest.param("minimum memory usage per Pod is 8Gi, but request is 1Gi", True, id="minimum"),
        pytest.param("no PriorityClass with name high was found", True, id="priority class"),
        pytest.param(
            'error looking up service account physics/jec: serviceaccount "jec" not found',
            False,
            id="account that may come",
        ),
    ],
)
def test_hopeless_refusals_differ_from_temporary_ones(message, hopeless):
    refusal = refusal_of([event(message)])
    assert refusal.hopeless is hopeless
    assert message in refusal.text


def test_a_refusal_is_over_once_a_pod_was_created():
    events = [event("exceeded quota: kf"), event("", at="2026-01-01T00:00:09Z")]
    events[1]["reason"] = "SuccessfulCreatePod"
    assert refusal_of(events[:1])
    assert refusal_of(events) is None
    assert refusal_of([*events, event("x", at="2026-01-01T00:00:10Z")]).text.endswith("x")


def test_a_refusal_of_an_earlier_object_of_the_same_name_does_not_count():
    events = [event("exceeded quota: kf", at="2026-01-01T00:00:05Z")]
    assert refusal_of(events, since="2026-01-01T00:00:05Z")
    assert refusal_of(events, since="2026-01-01T00:00:06Z") is None


def test_other_warnings_are_no_refusals():
    assert refusal_of([event("x", reason="FailedCreateService")]) is None
    assert refusal_of([]) is None


@pytest.mark.parametrize(
    ("message", "name", "reason"),
    [
        (
            'Internal error occurred: failed calling webhook "v.katib.org": failed to call webhook:'
            ' Post "https://katib:443/x?timeout=10s": context deadline exceeded',
            "webhook v.katib.org",
            'Post "https://katib:443/x?timeout=10s": context deadline exceeded',
        ),
        (
            "conversion webhook for serving.kserve.io/v1alpha1, Kind=InferenceService failed: Post"
            ' "https://kserve:443/convert": connect: connection refused',
            "conversion webhook for serving.kserve.io/v1alpha1, Kind=InferenceService",
            'Post "https://kserve:443/convert": connect: connection refused',
        ),
    ],
)
def test_an_unreachable_webhook_is_named_with_the_reason(message, name, reason):
    assert silent_webhook(message) == (name, reason)


def test_a_webhook_that_denies_a_request_counts_as_reachable():
    assert silent_webhook('admission webhook "v.katib.org" denied the request: no name') is None
