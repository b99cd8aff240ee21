"""Jobs on the Kubernetes backend before a fake API server: each ends, with a reason."""

from __future__ import annotations

import math
import re

import pytest

from common.errors import ClusterError, DeadlineError
from tests.clusters.contract import job
from tests.clusters.controllers import Play
from tests.clusters.fake_api import set_condition
from tests.clusters.scripts import EXPORT, later, node_of


def test_an_evicted_job_says_so(fake):
    backend = fake(node_of(Play(reason="Evicted", log="epoch 3\n")))
    with pytest.raises(ClusterError, match=rf"job {EXPORT} .*Evicted: .*memory.*: epoch 3"):
        backend.run_job(job("pass"))


def test_an_evicted_job_that_is_restarted_succeeds(fake):
    backend = fake(node_of([Play(reason="Evicted", seconds=0.1), Play()]))
    backend.run_job(job("pass", restart="OnFailure"))
    assert backend.lines[-1] == f"job {EXPORT}: succeeded"


def test_a_restart_is_told_with_its_reason_while_the_job_goes_on(fake):
    backend = fake(node_of([Play(exit_code=1, log="connection lost\n"), Play(seconds=0.3)]))
    backend.run_job(job("pass", restart="OnFailure"))
    assert re.search(f"{EXPORT}-master-0 .*: exit code 1: connection lost", backend.text)


def test_the_last_lines_are_kept_when_the_last_crash_could_not_be_read(fake):
    backend = fake(node_of(Play(exit_code=1, log="error: no space left\n", seconds=0.1)))
    later(
        lambda: backend.api.fail("GET", "/log", times=math.inf, code=404),
        lambda: "no space left" in backend.text,
        backend.api,
    )
    with pytest.raises(ClusterError, match=r"exit code 1: .*space left") as raised:
        backend.run_job(job("pass", restart="OnFailure"))
    assert re.search(r"\n  \| .*space left", str(raised.value))


def test_a_failed_job_whose_pods_are_gone_still_ends(fake):
    backend = fake(node_of(Play(exit_code=1)))
    manifest = job("pass")
    manifest["spec"]["runPolicy"]["cleanPodPolicy"] = "All"
    backend.api.fail("GET", "/pods", times=math.inf, code=403)
    with pytest.raises(ClusterError, match=r"1 replica.*pods are gone"):
        backend.run_job(manifest)


def test_a_job_in_a_full_namespace_says_which_quota(fake):
    backend = fake()
    backend.operator.quota = True
    with pytest.raises(DeadlineError, match="kf-resource-quota"):
        backend.run_job(job("pass"), deadline=0.5)


def test_a_job_in_a_queue_says_so(fake):
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
