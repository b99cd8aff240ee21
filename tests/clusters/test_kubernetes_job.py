"""Jobs on the Kubernetes backend before a fake API server: each ends, with a reason."""

from __future__ import annotations

import math
import re
import time

import pytest

from common.errors import ClusterError, DeadlineError
from tests.clusters.contract import job
from tests.clusters.controllers import Play
from tests.clusters.fake_api import set_condition
from tests.clusters.scripts import EXPORT, later, node_of


def test_a_job_waits_for_the_pods_of_a_deleted_job_of_its_name(fake):
    """Two pods would write to one folder."""
    backend = fake(node_of(Play(seconds=math.inf), Play()))
    labels = {"training.kubeflow.org/job-name": EXPORT}
    metadata = {"name": "old", "labels": labels}
    spec = {"containers": [{"name": "pytorch", "image": "i"}]}
    with backend.api.lock:
        old = backend.api.create("pods", {"metadata": metadata, "spec": spec})
    owners: list[dict | None] = []

    def remove() -> None:
        owners.append(backend.api.find("pytorchjobs", EXPORT))
        backend.api.delete("pods", old)

    removing = later(
        remove, lambda: f"{EXPORT}: deleted, but still there: Pod old" in backend.text, backend.api
    )
    backend.run_job(job("pass"))
    removing.join()
    assert owners == [None]


def test_the_error_of_an_evicted_job_says_that_it_was_evicted(fake):
    backend = fake(node_of(Play(reason="Evicted", log="epoch 3\n")))
    with pytest.raises(ClusterError, match=rf"job {EXPORT} .*Evicted: .*memory.*: epoch 3"):
        backend.run_job(job("pass"))


def test_an_evicted_job_that_is_restarted_succeeds(fake):
    backend = fake(node_of([Play(reason="Evicted", seconds=0.1), Play()]))
    backend.run_job(job("pass", restart="OnFailure"))
    assert backend.lines[-1] == f"job {EXPORT}: succeeded"


def test_a_restart_is_reported_with_its_reason_while_the_job_runs(fake):
    backend = fake(node_of([Play(exit_code=1, log="connection lost\n"), Play(seconds=0.3)]))
    backend.run_job(job("pass", restart="OnFailure"))
    assert re.search(f"{EXPORT}-master-0 .*: exit code 1: connection lost", backend.text)


def test_earlier_log_lines_are_kept_when_those_of_the_last_crash_are_unreadable(fake):
    backend = fake(node_of(Play(exit_code=1, log="error: no space left\n", seconds=0.1)))
    later(
        lambda: backend.api.fail("GET", "/log", times=math.inf, code=404),
        lambda: "no space left" in backend.text,
        backend.api,
    )
    with pytest.raises(ClusterError, match=r"exit code 1: .*space left") as error_info:
        backend.run_job(job("pass", restart="OnFailure"))
    assert re.search(r"\n  \| .*space left", str(error_info.value))


def test_a_failed_job_whose_pods_are_gone_still_ends(fake):
    backend = fake(node_of(Play(exit_code=1)))
    manifest = job("pass")
    manifest["spec"]["runPolicy"]["cleanPodPolicy"] = "All"
    backend.api.fail("GET", "/pods", times=math.inf, code=403)
    with pytest.raises(ClusterError, match=r"1 Master replica.*pods and their logs are gone"):
        backend.run_job(manifest)


def test_a_job_in_a_full_namespace_names_the_quota(fake):
    backend = fake()
    backend.operator.quota = True
    with pytest.raises(DeadlineError, match="kf-resource-quota"):
        backend.run_job(job("pass"), deadline=0.5)


@pytest.mark.parametrize(
    "words",
    [
        'violates PodSecurity "restricted:latest": runAsNonRoot != true',
        "exceeded quota: kf, requested: requests.nvidia.com/gpu=2, used:"
        " requests.nvidia.com/gpu=0, limited: requests.nvidia.com/gpu=1",
        "maximum cpu usage per Container is 20m, but limit is 500m",
    ],
    ids=["Pod Security", "quota below one pod", "LimitRange"],
)
def test_a_job_whose_pod_can_never_be_created_fails_at_once(fake, words):
    backend = fake()
    backend.operator.refusal = f'pods "{{name}}" is forbidden: {words}'
    start = time.monotonic()
    with pytest.raises(ClusterError, match=re.escape(words)) as error_info:
        backend.run_job(job("pass"), deadline=600)
    assert not isinstance(error_info.value, DeadlineError)
    assert time.monotonic() - start < 20
    assert backend.text.count(words) == 1


def test_a_worker_that_may_not_be_created_is_reported_although_the_master_runs(fake):
    backend = fake(node_of(Play(seconds=math.inf)))
    backend.operator.quota, backend.operator.admits = True, 1
    with pytest.raises(DeadlineError, match=f"{EXPORT}: .*kf-resource-quota"):
        backend.run_job(job("pass", replicas=2), deadline=0.5)


def test_a_job_waits_while_a_webhook_does_not_answer(fake):
    backend = fake()
    backend.operator.refusal = (
        'Internal error occurred: failed calling webhook "mutator.pod.katib.kubeflow.org": failed'
        ' to call webhook: Post "https://katib:443": connect: connection refused'
    )

    def answer() -> None:
        backend.operator.refusal = ""

    message = f"{EXPORT}: .*webhook mutator.pod.katib.kubeflow.org does not answer: .*refused"
    release = later(answer, lambda: re.search(message, backend.text), backend.api)
    backend.run_job(job("pass"))
    release.join()
    assert re.search(message, backend.text)


def test_a_suspended_job_is_reported(fake):
    backend = fake(node_of(Play(seconds=0.3)))
    later(
        lambda: set_condition(backend.api.find("pytorchjobs", EXPORT), "Suspended"),
        lambda: backend.api.all("pods"),
        backend.api,
    )
    backend.run_job(job("pass"))
    assert any(line.startswith(f"job {EXPORT}: suspended") for line in backend.lines)


def test_replicas_are_counted(fake):
    backend = fake(node_of(Play(seconds=0.3)))
    backend.run_job(job("pass", replicas=3))
    assert re.search("Master: 1 running.*Worker: 2 running", backend.text)
