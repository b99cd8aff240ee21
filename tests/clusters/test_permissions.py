"""The table of permissions has exactly the rights that a run uses (see also the fixture `fake`)."""

from __future__ import annotations

import math

import pytest
from kubernetes import client

from clusters import permissions
from clusters.api import connect
from clusters.survey import Survey
from common.errors import ClusterError, DeadlineError
from tests.clusters.contract import RUN_ID, experiment, job, service
from tests.clusters.controllers import Play
from tests.clusters.scripts import UP, act_for, loss, make_workflow, node_of

ASKED_BY_OTHERS = {
    ("create", "workflowtaskresults.argoproj.io"): "Argo's executor in a step's pod",
    ("patch", "workflowtaskresults.argoproj.io"): "Argo's executor in a step's pod",
    ("get", "configmaps"): "KFP's driver and launcher in a step's pod",
    ("get", "workflows.argoproj.io"): "the summary of a terminated run",
    ("get", "pods"): "a step that reads its own pod, KFP's launcher, and kubectl logs",
    ("get", "trials.kubeflow.org"): "kubectl get trial, by hand",
}


def test_every_row_of_the_table_is_used_by_a_run(fake):
    """Jobs that fail and succeed, a search that is extended, one that meets its goal, a service."""
    scripts = [
        Play(exit_code=1),
        Play(),
        loss(0.5),
        loss(0.4),
        loss(0.1),
        Play(seconds=math.inf),
        UP,
    ]
    backend = fake(node_of(*scripts))
    backend.operator.quota = True
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass"), deadline=0.5)
    backend.operator.quota = False
    with pytest.raises(ClusterError):
        backend.run_job(job("pass"))
    # a job that its workflow owns until it has ended well
    act_for(backend, make_workflow(backend))
    backend.run_job(job("pass", name="pfn-0a1b2c3d-evaluate"))
    for trials in (1, 2):
        backend.run_experiment(
            experiment(
                ["1", "2"],
                failure_limit=1,
                parallel=1,
                maxTrialCount=trials,
                resumePolicy="LongRunning",
            )
        )
    goal = experiment(["1", "2"], name="pfn-0a1b2c3d-goal")
    goal["spec"]["objective"]["goal"] = 0.2
    backend.run_experiment(goal)
    backend.deploy(service())
    backend.deploy(service(uri="s3://models/another"))
    survey = Survey(connect(), "physics")
    assert survey.secret("s3") is None
    assert survey.account_secrets("default") is None
    assert survey.quotas() == []
    # where pods may not be listed, the Deployment says whether an update is through
    backend.api.forbid("list", "pods")
    backend.deploy(service(uri="s3://models/a-third"))
    backend.cluster.delete(RUN_ID)
    table = {(verb, permission.name) for permission, verb in permissions.requests()}
    assert backend.api.allowed_requests == table - set(ASKED_BY_OTHERS)


def test_requests_outside_the_table_are_refused_and_recorded(fake):
    backend = fake()
    core = client.CoreV1Api(connect().client)
    with pytest.raises(client.exceptions.ApiException) as error_info:
        core.delete_namespaced_pod("x", "physics")
    assert error_info.value.status == 403
    with pytest.raises(client.exceptions.ApiException) as error_info:
        core.list_namespaced_pod("another-namespace")
    assert error_info.value.status == 403
    assert backend.api.exceeded == {("delete", "pods"), ("list", "pods")}
    backend.api.exceeded.clear()
