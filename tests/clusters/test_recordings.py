"""What the deploy step makes of InferenceServices as a real KServe 0.15.2 left them."""

from __future__ import annotations

import pytest

from clusters.kubernetes_objects import REVISION_LABEL
from common.errors import ClusterError, DeadlineError
from tests.clusters.contract import service
from tests.clusters.fake_api import has_condition
from tests.clusters.replay import SPEED, Replay

MODEL_REASON = "dims [8] with max_batch_size 1024 mean the shape [-1, 8], the model has [-1, 7]"
FETCH_REASON = "RuntimeError: Failed to fetch model. No model found in runs/pfn-regressor-open-"


def deploy_over_recording(fake, name: str, deadline: float = 3.0):
    """Deploy over a recording, in place; returns the backend, the recording and what came."""
    backend = fake(poll=5 / SPEED)
    replay = Replay(name)
    with backend.api.lock:
        backend.api.controllers[:] = [replay]
        if replay.has_former:
            replay.make_former(backend.api)
    if replay.has_former:
        backend.api.wait_for(lambda: backend.api.all("pods"))
    manifest = service(deploymentStrategy={"type": "Recreate"})
    try:
        outcome = backend.deploy(manifest, deadline=deadline)
    except ClusterError as error:
        outcome = error
    return backend, replay, outcome


@pytest.mark.parametrize(
    "name",
    [
        "create",
        "redeploy",
        "good-after-bad",
        "good-after-first-bad",
        "good-after-nomodel",
        "stale-failure",
    ],
)
def test_a_good_model_is_ready_once_its_own_pod_is_and_no_former_one_answers(fake, name):
    backend, replay, outcome = deploy_over_recording(fake, name)
    assert getattr(outcome, "name", outcome) == "jec-pfn"
    for pod in replay.current["pods"]:
        ours = pod["metadata"]["labels"][REVISION_LABEL] == replay.revision
        assert has_condition(pod, "Ready") == ours or pod["metadata"].get("deletionTimestamp")
    assert backend.lines[-1] == "service jec-pfn: ready"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("corrupt", MODEL_REASON),
        ("first-badconfig", MODEL_REASON),
        ("first-nomodel", FETCH_REASON),
    ],
)
def test_a_bad_model_fails_with_its_reason_once_and_is_rolled_back(fake, name, reason):
    backend, replay, outcome = deploy_over_recording(fake, name)
    assert type(outcome) is ClusterError
    first_line = str(outcome).splitlines()[0]
    assert reason in first_line
    assert first_line.count(reason) == 1
    lines = [line for line in backend.lines if reason in line]
    assert lines
    assert "pod pfn-regressor-open-predictor-" in lines[0]
    service = backend.api.find("inferenceservices", "jec-pfn")
    if replay.has_former:
        assert service["metadata"]["labels"][REVISION_LABEL] == "former"
        assert service["spec"]["predictor"]["model"]["storageUri"] == "s3://models/former/model"
    else:
        assert service is None


@pytest.mark.parametrize("name", ["gpu-redeploy", "blocked-original"])
def test_a_pod_that_no_node_takes_is_waited_for_whatever_the_former_one_did(fake, name):
    _, replay, outcome = deploy_over_recording(fake, name, deadline=1.5)
    assert type(outcome) is DeadlineError
    assert "no node takes it: 0/1 nodes are available: 1 Insufficient" in str(outcome)
    assert "--rollout recreate" in str(outcome)
    assert replay.current is replay.entries[-1]
