"""How a new model replaces the former one: beside it, by surge or recreate, and back again."""

from __future__ import annotations

import copy
import json
import threading

import pytest

from clusters import service_rollout
from clusters.protocol import RUN_LABEL
from clusters.service_rollout import no_room, pod_needs
from common.errors import ClusterError, DeadlineError, GateError, InputError, InterruptedRun
from tests.clusters.contract import service
from tests.clusters.controllers import KServe, Play
from tests.clusters.fake_api import has_condition
from tests.clusters.scripts import CRASH, UP, node_of

OTHER = "s3://models/other/model"
RUN = service()["metadata"]["labels"][RUN_LABEL]
QUOTA_OF_ONE = {"pods": "1", "requests.cpu": "8"}


def service_object(backend, name: str = "jec-pfn") -> dict | None:
    return backend.api.find("inferenceservices", name)


def uids(backend) -> list[str]:
    selector = "serving.kserve.io/inferenceservice"
    return [pod["metadata"]["uid"] for pod in backend.api.all("pods", selector)]


def add_quota(backend, hard: dict[str, str], in_use: dict[str, str]) -> None:
    quota = {"metadata": {"name": "kf"}, "spec": {"hard": hard}}
    backend.api.create("resourcequotas", quota)["status"] = {"hard": hard, "used": in_use}


class Checks:
    """A check that records the names of the services, and refuses the models that a test names."""

    def __init__(self, *wrong_models: str) -> None:
        self.wrong_models, self.names = wrong_models, []

    def __call__(self, deployed) -> None:
        self.names.append(deployed.name)
        if deployed.name in self.wrong_models:
            raise GateError(f"{deployed.name} serves another model")


def after_first_deploy(fake, *plays: Play, kserve: KServe | None = None):
    """Deploy a first model on a fake cluster, with success.

    Returns the backend, the InferenceService, and the uids of its pods. plays: what the pods of
    later deployments do, in order.
    """
    backend = fake(node_of(UP, *plays), kserve=kserve)
    backend.deploy(service())
    return backend, copy.deepcopy(service_object(backend)), uids(backend)


def as_before(backend, before: dict) -> bool:
    """Whether the service has the spec, labels and annotations that it had."""
    now = copy.deepcopy(service_object(backend))
    # how the next pod replaces this one is no part of the model
    now["spec"]["predictor"].pop("deploymentStrategy", None)
    metadata = ("labels", "annotations")
    return now["spec"] == before["spec"] and all(
        (now["metadata"].get(part) or {}) == (before["metadata"].get(part) or {})
        for part in metadata
    )


def test_a_new_model_is_checked_in_a_second_service_before_it_replaces_the_former(fake):
    backend, _, first = after_first_deploy(fake, UP)
    check = Checks()
    backend.deploy(service(uri=OTHER), check=check)
    assert check.names == ["jec-pfn-next", "jec-pfn"]
    assert service_object(backend, "jec-pfn-next") is None
    assert service_object(backend)["spec"]["predictor"]["model"]["storageUri"] == OTHER
    assert len(uids(backend)) == 1
    assert uids(backend) != first


@pytest.mark.parametrize(
    ("play", "wrong_models", "error", "reason"),
    [
        pytest.param(CRASH, (), ClusterError, "unexpected shape", id="it crashes"),
        pytest.param(UP, ("jec-pfn-next",), GateError, "another model", id="wrong answers"),
        pytest.param(Play(pending="image"), (), DeadlineError, "cannot be pulled", id="no image"),
    ],
)
def test_a_bad_model_never_changes_the_service(fake, play, wrong_models, error, reason):
    backend, before, first = after_first_deploy(fake, play)
    with pytest.raises(error, match=reason) as error_info:
        backend.deploy(service(uri=OTHER), check=Checks(*wrong_models), deadline=1.5)
    assert "jec-pfn still serves the previous model" in str(error_info.value)
    assert as_before(backend, before)
    assert service_object(backend)["metadata"]["generation"] == before["metadata"]["generation"]
    assert service_object(backend, "jec-pfn-next") is None
    backend.api.wait_for(lambda: uids(backend) == first)


@pytest.mark.parametrize(
    ("play", "wrong_models", "error", "reason"),
    [
        pytest.param(CRASH, (), ClusterError, "unexpected shape", id="it crashes"),
        pytest.param(UP, ("jec-pfn",), GateError, "another model", id="wrong answers"),
    ],
)
def test_a_bad_model_that_replaced_the_former_in_place_is_rolled_back(
    fake, play, wrong_models, error, reason
):
    backend, before, _ = after_first_deploy(fake, play)
    manifest = service(uri=OTHER, deploymentStrategy={"type": "Recreate"}, run_id="b-00000000")
    with pytest.raises(error, match=reason) as error_info:
        backend.deploy(manifest, check=Checks(*wrong_models))
    assert f"is as it was before: its model is that of {RUN}" in str(error_info.value)
    assert as_before(backend, before)


@pytest.mark.parametrize(
    ("play", "wrong_models", "error"),
    [
        pytest.param(CRASH, (), ClusterError, id="it crashes"),
        pytest.param(UP, ("jec-pfn",), GateError, id="wrong answers"),
        pytest.param(Play(pending="unschedulable"), (), DeadlineError, id="no node"),
    ],
)
def test_a_first_deploy_that_fails_leaves_nothing(fake, play, wrong_models, error):
    backend = fake(node_of(play))
    with pytest.raises(error, match="was new and is removed"):
        backend.deploy(service(), check=Checks(*wrong_models), deadline=1)
    assert service_object(backend) is None
    backend.api.wait_for(lambda: uids(backend) == [])


def test_a_killed_steps_successor_restores_the_first_service(fake):
    backend, before, _ = after_first_deploy(fake, UP)
    manifest = service(uri=OTHER, deploymentStrategy={"type": "Recreate"}, run_id="b-00000000")

    def kill_step(_) -> None:
        raise InterruptedRun("told to stop")

    with pytest.raises(InterruptedRun):
        backend.deploy(manifest, check=kill_step)
    assert service_object(backend)["metadata"]["labels"][RUN_LABEL] == "b-00000000"
    with pytest.raises(GateError):
        backend.deploy(manifest, check=Checks("jec-pfn"))
    assert as_before(backend, before)


def test_a_step_that_was_killed_in_a_first_deploy_still_removes_it(fake):
    backend = fake(node_of(UP))

    def kill_step(_) -> None:
        raise InterruptedRun("told to stop")

    with pytest.raises(InterruptedRun):
        backend.deploy(service(), check=kill_step)
    with pytest.raises(GateError):
        backend.deploy(service(), check=Checks("jec-pfn"))
    assert service_object(backend) is None


def test_a_step_that_is_repeated_after_its_success_keeps_its_service(fake):
    backend, before, first = after_first_deploy(fake)
    with pytest.raises(GateError):
        backend.deploy(service(), check=Checks("jec-pfn"))
    assert as_before(backend, before)
    assert uids(backend) == first
    assert json.loads((backend.folder / "former_service.json").read_text())["service"]


def test_a_service_that_somebody_else_deployed_meanwhile_is_not_changed(fake):
    backend, _, _ = after_first_deploy(fake, UP)
    manifest = service(uri=OTHER, deploymentStrategy={"type": "Recreate"})

    def replace_service(_) -> None:
        with backend.api.lock:
            theirs = service_object(backend)
            theirs["metadata"]["labels"]["jec/revision"] = "theirs"
        raise GateError("another model")

    with pytest.raises(GateError, match="was not changed"):
        backend.deploy(manifest, check=replace_service)
    assert service_object(backend)["spec"]["predictor"]["model"]["storageUri"] == OTHER


def test_without_room_in_the_quota_the_former_pod_is_deleted_first(fake):
    backend, _, first = after_first_deploy(fake, UP, kserve=KServe(room=1))
    add_quota(backend, QUOTA_OF_ONE, {"pods": "1", "requests.cpu": "1"})
    check = Checks()
    backend.deploy(service(uri=OTHER), check=check)
    assert check.names == ["jec-pfn"]
    assert service_object(backend)["spec"]["predictor"]["deploymentStrategy"] == {
        "type": "Recreate"
    }
    assert "rollout by recreate (quota kf allows 1 of pods, of which 1 are in use)" in backend.text
    assert uids(backend) != first


def test_a_bad_model_is_rolled_back_where_the_quota_has_no_room_for_a_second_pod(fake):
    backend, before, _ = after_first_deploy(fake, UP, kserve=KServe(room=1))
    add_quota(backend, QUOTA_OF_ONE, {"pods": "1", "requests.cpu": "1"})
    with pytest.raises(GateError):
        backend.deploy(service(uri=OTHER, run_id="b-00000000"), check=Checks("jec-pfn"))
    assert as_before(backend, before)

    def serves_again() -> bool:
        pods = backend.api.all("pods")
        return [pod["metadata"]["labels"][RUN_LABEL] for pod in pods] == [RUN]

    backend.api.wait_for(serves_again)


def test_a_rollout_by_surge_waits_for_the_quota_and_reports_it(fake):
    backend, before, _ = after_first_deploy(fake, UP, kserve=KServe(room=1))
    add_quota(backend, QUOTA_OF_ONE, {"pods": "1", "requests.cpu": "1"})
    manifest = service(uri=OTHER, deploymentStrategy={"type": "RollingUpdate"})
    with pytest.raises(DeadlineError, match=r"jec-pfn-next: no pod .*exceeded quota"):
        backend.deploy(manifest, deadline=0.6)
    assert as_before(backend, before)


def test_a_pod_that_the_quota_refuses_is_reported_within_seconds(fake):
    backend = fake(node_of(UP), kserve=KServe(room=0))
    with pytest.raises(DeadlineError, match=r"jec-pfn: no pod .*exceeded quota: kf-resource"):
        backend.deploy(service(), deadline=0.6)
    lines = [line for line in backend.lines if "exceeded quota" in line]
    assert len(lines) == 1


def test_a_pod_that_pod_security_refuses_fails_at_once_with_the_message(fake):
    words = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
    backend = fake(node_of(UP), kserve=KServe(refuses=words))
    with pytest.raises(ClusterError, match=r"violates PodSecurity .*runAsNonRoot != true"):
        backend.deploy(service(), deadline=60)
    assert service_object(backend) is None


def test_events_of_an_earlier_deploy_are_not_reported(fake):
    backend = fake(node_of(UP), kserve=KServe(room=0))
    with pytest.raises(DeadlineError):
        backend.deploy(service(), deadline=0.4)
    backend.kserve.room = 1
    backend.lines.clear()
    with backend.api.lock:
        for event in backend.api.all("events"):
            event["lastTimestamp"] = "2026-01-01T00:00:00Z"
        # as if KServe took a moment to make the pod
        backend.api.controllers.remove(backend.kserve)
    threading.Timer(0.3, backend.api.controllers.append, (backend.kserve,)).start()
    backend.deploy(service())
    assert "has no pod yet" in backend.text
    assert "quota" not in backend.text


def test_the_reason_why_kserve_makes_no_pod_is_reported(fake):
    backend = fake(node_of(UP))
    with backend.api.lock:
        backend.api.controllers.remove(backend.kserve)
    about = {"kind": "InferenceService", "metadata": {"name": "jec-pfn", "uid": "1"}}
    threading.Timer(
        0.3, backend.api.event, (about, "InternalError", "fails to reconcile predictor: no such SA")
    ).start()
    with pytest.raises(DeadlineError, match="InferenceService jec-pfn: InternalError: fails to"):
        backend.deploy(service(), deadline=1.5)


def test_conflicts_of_kserves_own_updates_are_not_reported(fake):
    backend = fake(node_of(UP), kserve=KServe(lag=0.3))
    conflict = (
        'Operation cannot be fulfilled on inferenceservices.serving.kserve.io "jec-pfn": the object'
        " has been modified; please apply your changes to the latest version and try again"
    )
    about = {"kind": "InferenceService", "metadata": {"name": "jec-pfn", "uid": "1"}}
    backend.api.event(about, "InternalError", conflict)
    backend.deploy(service())
    assert "modified" not in backend.text


def test_the_former_pod_is_deleted_first_if_no_node_has_room_for_a_second_one(fake, monkeypatch):
    monkeypatch.setattr(service_rollout, "NO_NODE_SECONDS", 0.2)
    backend, _, _ = after_first_deploy(fake, Play(pending="unschedulable"), UP)
    backend.deploy(service(uri=OTHER))
    assert service_object(backend)["spec"]["predictor"]["deploymentStrategy"] == {
        "type": "Recreate"
    }
    assert service_object(backend, "jec-pfn-next") is None
    assert has_condition(service_object(backend), "Ready")


def test_a_service_whose_name_is_too_long_for_a_second_service_is_updated_in_place(fake):
    name = "jec-" + "x" * 37  # 41 characters; 45 are allowed in namespace physics
    backend = fake(node_of(UP))
    backend.deploy(service(name))
    check = Checks()
    backend.deploy(service(name, uri=OTHER), check=check)
    assert check.names == [name]
    assert "not tested as a second service first" in backend.text


def test_a_name_that_kserve_would_never_reconcile_is_refused_before_anything_is_made(fake):
    backend = fake(node_of(UP))
    with pytest.raises(InputError, match=r"has 46 characters; .*at most 45,"):
        backend.deploy(service("j" * 46))
    assert backend.api.all("inferenceservices") == []
    assert backend.deploy(service("j" * 45)).name == "j" * 45


def test_the_needs_of_a_pod_include_its_storage_initializer():
    needs = pod_needs(service())
    assert needs["requests.cpu"] == needs["cpu"] == 1
    assert needs["limits.memory"] == 2 * 2**30
    small = service()
    amounts = {"cpu": "50m", "memory": "64Mi"}
    small["spec"]["predictor"]["model"]["resources"] = {"requests": amounts, "limits": amounts}
    needs = pod_needs(small)
    assert (needs["requests.cpu"], needs["limits.cpu"]) == (0.1, 1.0)
    assert needs["limits.memory"] == 2**30


@pytest.mark.parametrize(
    ("hard", "in_use", "fits"),
    [
        pytest.param({"requests.cpu": "2"}, {"requests.cpu": "1"}, True, id="just enough"),
        pytest.param({"requests.cpu": "2"}, {"requests.cpu": "1500m"}, False, id="cpu"),
        pytest.param({"cpu": "1"}, {"cpu": "500m"}, False, id="cpu by its short name"),
        pytest.param({"limits.memory": "4Gi"}, {"limits.memory": "3Gi"}, False, id="memory"),
        pytest.param({"pods": "3"}, {"pods": "3"}, False, id="pods"),
        pytest.param({"requests.nvidia.com/gpu": "0"}, {}, True, id="not asked for"),
    ],
)
def test_a_pod_fits_if_the_unused_quota_covers_its_needs(hard, in_use, fits):
    quota = {"metadata": {"name": "kf"}, "status": {"hard": hard, "used": in_use}}
    reason = no_room([quota], pod_needs(service()))
    assert (reason == "") == fits
    assert fits or "kf" in reason
