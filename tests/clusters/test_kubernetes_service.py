"""Services on the Kubernetes backend before a fake API server: each ends, with a reason."""

from __future__ import annotations

import math

import pytest

from clusters.protocol import RUN_LABEL
from common.errors import ClusterError, DeadlineError
from tests.clusters.contract import service
from tests.clusters.controllers import KServe, Play
from tests.clusters.fake_api import has_condition
from tests.clusters.scripts import CRASH, UP, later, node_of

OTHER = "s3://models/other/model"
VERSIONS = [
    pytest.param({"mode": "raw", "version": "0.15"}, id="raw 0.15"),
    pytest.param({"mode": "raw", "version": "0.16"}, id="raw 0.16"),
    pytest.param({"mode": "raw", "version": "0.20"}, id="raw 0.20"),
    pytest.param({"mode": "serverless"}, id="serverless"),
]


def uri_of(backend, name: str = "jec-pfn") -> str:
    spec = backend.api.find("inferenceservices", name)["spec"]
    return spec["predictor"]["model"]["storageUri"]


def pods_of(backend, name: str = "jec-pfn") -> list[dict]:
    return backend.api.all("pods", f"serving.kserve.io/inferenceservice={name}")


def test_the_address_of_raw_deployment_is_that_of_the_predictor_inside_the_cluster(fake):
    backend = fake(node_of(UP))
    deployed = backend.deploy(service())
    assert (deployed.name, deployed.kind, deployed.url) == (
        "jec-pfn",
        "kserve",
        "http://jec-pfn-predictor.physics.svc.cluster.local",
    )
    assert deployed.details["from_outside"].startswith(
        "kubectl -n physics port-forward service/jec-pfn-predictor 8080:80"
    )
    assert backend.lines[-1] == "service jec-pfn: ready"


def test_the_address_in_serverless_mode_is_the_reachable_one(fake):
    backend = fake(node_of(UP), kserve=KServe(mode="serverless"))
    deployed = backend.deploy(service())
    assert deployed.url == "https://jec-pfn.physics.example.org"
    assert deployed.details["from_outside"] == "https://jec-pfn.physics.example.org"
    backend.cluster._inside = True
    assert backend.deploy(service()).url == "http://jec-pfn.physics.svc.cluster.local"


@pytest.mark.parametrize("sees", ["pods", "the Deployment"])
@pytest.mark.parametrize("kserve", VERSIONS)
def test_an_update_is_not_ready_before_its_own_pods_are(fake, kserve, sees):
    backend = fake(node_of(UP, UP, Play(pending="unschedulable")), kserve=KServe(lag=0.1, **kserve))
    if sees != "pods":
        backend.api.forbid("list", "pods")
    backend.deploy(service())
    with pytest.raises(DeadlineError, match=r"service jec-pfn did not end"):
        backend.deploy(service(uri=OTHER), deadline=1.5)
    assert "service jec-pfn-next: ready" in backend.lines
    # the former spec is there again, and so is its pod
    assert uri_of(backend) == service()["spec"]["predictor"]["model"]["storageUri"]
    assert has_condition(pods_of(backend)[0], "Ready")


@pytest.mark.parametrize("kserve", VERSIONS)
def test_an_update_waits_for_its_own_pods_with_each_version_of_kserve(fake, kserve):
    backend = fake(node_of(UP), kserve=KServe(lag=0.1, **kserve))
    backend.deploy(service())
    first = pods_of(backend)[0]["metadata"]["uid"]
    deployed = backend.deploy(service(uri=OTHER))
    assert deployed.certain
    assert [pod["metadata"]["uid"] for pod in pods_of(backend)] != [first]
    assert uri_of(backend) == OTHER


def test_pods_without_the_services_labels_count_by_their_age(fake):
    backend = fake(
        node_of(UP, UP, Play(pending="unschedulable")), kserve=KServe(copies_labels=False)
    )
    backend.deploy(service())
    with pytest.raises(DeadlineError, match=r"service jec-pfn did not end"):
        backend.deploy(service(uri=OTHER), deadline=1)


def test_an_update_is_uncertain_if_pods_and_deployments_are_unreadable(fake):
    backend = fake(node_of(UP))
    backend.api.forbid("list", "pods")
    backend.api.forbid("get", "deployments")
    assert backend.deploy(service()).certain
    assert not backend.deploy(service(uri=OTHER)).certain


def test_an_update_keeps_foreign_annotations_and_waits_for_its_own_pods(fake):
    backend = fake(node_of(UP), kserve=KServe(lag=0.2))
    backend.deploy(service())
    deployed = backend.api.find("inferenceservices", "jec-pfn")
    deployed["metadata"]["annotations"] = {"serving.kserve.io/deploymentMode": "RawDeployment"}
    first = pods_of(backend)[0]["metadata"]["uid"]
    backend.deploy(service(uri=OTHER, run_id="other-00000000"))
    assert deployed["metadata"]["annotations"] == {
        "serving.kserve.io/deploymentMode": "RawDeployment"
    }
    assert deployed["metadata"]["labels"][RUN_LABEL] == "other-00000000"
    assert deployed["spec"]["predictor"]["model"]["storageUri"] == OTHER
    assert pods_of(backend)[0]["metadata"]["uid"] != first


def test_an_update_that_conflicts_with_another_is_repeated(fake):
    backend = fake(node_of(UP))
    backend.deploy(service())
    backend.api.fail("PUT", "inferenceservices", code=409, message="the object has been modified")
    backend.deploy(service(uri="s3://models/other/model"))
    assert (
        backend.api.find("inferenceservices", "jec-pfn")["spec"]["predictor"]["model"]["storageUri"]
        == "s3://models/other/model"
    )


def test_a_predictor_that_crashes_again_and_again_fails_with_its_last_lines_and_conditions(fake):
    backend = fake(node_of(CRASH))
    with pytest.raises(
        ClusterError, match=r"jec-pfn .*exit code 1: .*unexpected shape"
    ) as error_info:
        backend.deploy(service(), deadline=60)
    assert "  | I0101 loading: jec-pfn:1" in str(error_info.value)
    assert "PredictorReady: MinimumReplicasUnavailable" in str(error_info.value)


def test_a_predictor_that_is_ready_for_a_while_between_crashes_fails(fake):
    backend = fake(node_of(Play(exit_code=1, seconds=0.1, log=CRASH.log)), poll=0.15)
    with pytest.raises(ClusterError, match="unexpected shape"):
        backend.deploy(service(), deadline=60)


def test_a_service_must_stay_ready(fake):
    backend = fake(node_of([Play(seconds=math.inf, exit_code=1), CRASH]), poll=0.3)
    marks: list[int] = []

    def backend_saw_it_ready() -> bool:
        service = backend.api.find("inferenceservices", "jec-pfn")
        if not service or not has_condition(service, "Ready"):
            return False
        marks.append(len(backend.api.requests))
        return any("/pods" in path for _, path in backend.api.requests[marks[0] :])

    def crash() -> None:
        next(iter(backend.node.plays.values())).seconds = 0

    later(crash, backend_saw_it_ready, backend.api)
    with pytest.raises(ClusterError, match="unexpected shape"):
        backend.deploy(service(), deadline=60)


def test_a_model_that_cannot_be_fetched_fails_with_the_initializers_message(fake):
    backend = fake(
        node_of(
            Play(
                exit_code=1,
                container="storage-initializer",
                log="botocore: Access Denied to s3://models\n",
            )
        )
    )
    with pytest.raises(ClusterError, match=r"exit code 1: .*Denied .*s3://models") as error_info:
        backend.deploy(service(), deadline=60)
    assert "container storage-initializer" in str(error_info.value)


def test_the_former_predictors_failure_does_not_fail_the_update(fake):
    backend = fake(node_of(CRASH, UP))
    backend.api.create("inferenceservices", service(uri="s3://models/broken/model"))
    backend.api.wait_for(lambda: restarts(pods_of(backend)) > 2)
    assert backend.deploy(service()).name == "jec-pfn"


def test_the_error_of_an_update_comes_from_its_own_pods(fake):
    backend = fake(node_of(CRASH, Play(exit_code=2, log="no such model: jec-pfn\n")))
    backend.api.create("inferenceservices", service(uri="s3://models/broken/model"))
    backend.api.wait_for(lambda: restarts(pods_of(backend)) > 2)
    with pytest.raises(ClusterError, match=r"exit code 2: .*jec-pfn"):
        backend.deploy(service())


def test_kserves_old_failure_is_not_attributed_to_the_new_pod(fake):
    """KServe keeps reporting it until a node takes the new pod."""
    fetch = Play(exit_code=1, container="storage-initializer", log="Access Denied\n")
    backend = fake(node_of(fetch, UP, Play(pending="unschedulable")))
    backend.api.create("inferenceservices", service(uri="s3://models/broken/model"))
    backend.api.wait_for(lambda: is_blocked(backend))
    with pytest.raises(DeadlineError, match=r"no node takes it"):
        backend.deploy(service(), deadline=1)
    assert is_blocked(backend)


def restarts(pods: list[dict]) -> int:
    return sum(
        container["restartCount"]
        for pod in pods
        for container in pod.get("status", {}).get("containerStatuses", [])
    )


def is_blocked(backend) -> bool:
    status = backend.api.find("inferenceservices", "jec-pfn").get("status", {})
    return status.get("modelStatus", {}).get("transitionStatus") == "BlockedByFailedLoad"


def test_a_spec_that_kserve_cannot_serve_fails_with_kserves_message(fake):
    backend = fake(kserve=KServe(invalid="No runtime found to support specified framework/version"))
    with pytest.raises(ClusterError, match="InvalidSpec: NoSupportingRuntime"):
        backend.deploy(service(), deadline=60)


def test_a_service_that_never_becomes_ready_fails_at_the_deadline_with_its_conditions(fake):
    backend = fake(node_of(Play(pending="image")))
    with pytest.raises(DeadlineError, match=r"MinimumReplicasUnavailable.*\n.*image tritonserver"):
        backend.deploy(service(), deadline=0.8)
    backend = fake(node_of(Play(pending="image")), patience=0.2)
    with pytest.raises(ClusterError, match=r"jec-pfn-predictor-00001: .*image tritonserver"):
        backend.deploy(service(), deadline=60)


def test_a_service_scaled_to_zero_is_ready_without_pods(fake):
    backend = fake(node_of(UP), kserve=KServe(mode="serverless"))
    backend.deploy(service(minReplicas=0))
    with backend.api.lock:
        backend.api.controllers.remove(backend.kserve)
        backend.api.delete("pods", backend.api.all("pods")[0])
    assert backend.deploy(service(minReplicas=0)).name == "jec-pfn"
