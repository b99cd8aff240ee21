"""Every wait of the Kubernetes backend ends in time, and its error has a reason.

This holds for any fault of the API server, the controllers or the pods.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest

from clusters import kubernetes_objects
from common.errors import ClusterError
from tests.clusters.contract import RUN_ID, experiment, job, service
from tests.clusters.controllers import Play
from tests.clusters.scripts import EXPORT, UP, loss, node_of

DEADLINE = 0.2  # of the wait under test (s)
LIMIT = 10.0  # seconds until a test fails: far above DEADLINE, because the machine may be slow

GOOD = {"experiment": loss(0.1), "job": Play(), "service": UP}
TROUBLE: dict[str, Play] = {
    "pod fails": Play(exit_code=1, log="error: no jets\n"),
    "killed for memory": Play(reason="OOMKilled"),
    "evicted": Play(reason="Evicted", seconds=0.05),
    "unschedulable": Play(pending="unschedulable"),
    "image": Play(pending="image"),
    "config": Play(pending="config"),
    "mount": Play(pending="mount"),
    "ready, then crash-looping": Play(exit_code=1, seconds=0.08, log="signal 11\n"),
    "runs for ever": Play(seconds=math.inf),
}
FAULTS: dict[str, dict] = {
    "429": {"code": 429, "headers": {"Retry-After": "0"}},
    "500": {"code": 500},
    "503": {"code": 503},
    "409": {"code": 409},
    "410": {"code": 410},
    "401": {"code": 401},
    "403": {"code": 403},
    "cut": {"cut_connection": "before"},
    "cut after": {"cut_connection": "after"},
}


def end_of(wait: Callable[[], object]) -> str:
    """Wait; return the text of the error, or 'done' without one. Fails if it took too long."""
    start, message = time.monotonic(), "done"
    try:
        wait()
    except ClusterError as error:
        message = str(error)
    assert time.monotonic() - start < LIMIT
    assert message
    return message


def waits_of(backend) -> dict[str, Callable[[], object]]:
    return {
        "experiment": lambda: backend.run_experiment(
            experiment(["0.1", "0.2"], failure_limit=1, parallel=1), deadline=DEADLINE
        ),
        "job": lambda: backend.run_job(job("pass"), deadline=DEADLINE),
        "service": lambda: backend.deploy(service(), deadline=DEADLINE),
    }


@pytest.mark.parametrize(
    ("what", "trouble"),
    [
        *(("job", trouble) for trouble in TROUBLE),
        *(
            ("experiment", trouble)
            for trouble in ("pod fails", "unschedulable", "image", "evicted")
        ),
        *(
            ("service", trouble)
            for trouble in ("image", "ready, then crash-looping", "evicted", "runs for ever")
        ),
    ],
)
def test_a_wait_ends_for_every_behaviour_of_its_pods(fake, what, trouble):
    # A service is deployed once its pod was ready in two looks. These are far enough apart for a
    # pod to crash in between.
    backend = fake(node_of(TROUBLE[trouble]), poll=0.1 if what == "service" else 0.02)
    message = end_of(waits_of(backend)[what])
    fine = (what, trouble) == ("service", "runs for ever")
    assert (message == "done") == fine, message


@pytest.mark.parametrize("what", GOOD)
def test_a_full_namespace_ends_a_wait_with_the_quotas_name(fake, what):
    backend = fake(node_of(GOOD[what]))
    backend.operator.quota = True
    message = end_of(waits_of(backend)[what])
    assert message == "done" if what == "service" else "kf-resource-quota" in message


@pytest.mark.parametrize(
    ("what", "fault"),
    [*(("job", fault) for fault in FAULTS), ("experiment", "500"), ("service", "cut")],
)
def test_a_wait_ends_although_the_server_always_fails(fake, what, fault):
    """The server answers one request before it fails, because the first contact has other rules."""
    backend = fake(node_of(GOOD[what]))
    backend.cluster.find(RUN_ID)
    backend.api.fail("*", ".", times=math.inf, **FAULTS[fault])
    assert end_of(waits_of(backend)[what]) != "done"


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("experiment", "429"),
        ("experiment", "cut after"),
        ("job", "500"),
        ("job", "cut"),
        ("service", "503"),
        ("service", "cut after"),
    ],
)
def test_every_wait_survives_temporary_faults(fake, what, fault):
    backend = fake(node_of(GOOD[what]))
    backend.api.fail("*", ".", times=3, **FAULTS[fault])
    long = {
        "experiment": lambda: backend.run_experiment(experiment(["0.1", "0.2"])),
        "job": lambda: backend.run_job(job("pass")),
        "service": lambda: backend.deploy(service()),
    }
    assert end_of(long[what]) == "done"


@pytest.mark.parametrize("fault", ["403", "500", "cut"])
def test_a_removal_ends_although_the_server_fails(fake, monkeypatch, fault):
    backend = fake(node_of(Play(seconds=math.inf)))
    end_of(waits_of(backend)["job"])
    monkeypatch.setattr(kubernetes_objects, "REMOVAL_SECONDS", 0.2)
    backend.api.fail("*", ".", times=math.inf, **FAULTS[fault])
    assert end_of(lambda: backend.cluster.delete(RUN_ID)) != "done"


def test_a_removal_waits_for_pods_that_end_slowly(fake, monkeypatch):
    backend = fake(node_of(Play(seconds=math.inf)))
    end_of(waits_of(backend)["job"])
    with backend.api.lock:
        backend.api.all("pods")[0]["metadata"]["finalizers"] = ["example.org/slow"]
        backend.api.all("pods")[0]["metadata"].pop("ownerReferences")
    monkeypatch.setattr(kubernetes_objects, "REMOVAL_SECONDS", 0.2)
    assert f"Pod {EXPORT}-master-0" in end_of(lambda: backend.cluster.delete(RUN_ID))
