"""The objects of a run on a cluster, as --status describes them."""

from __future__ import annotations

import math

import pytest

from clusters.operator import Operator
from common.errors import DeadlineError
from tests.clusters.contract import RUN_ID, experiment, job
from tests.clusters.controllers import Katib, Play
from tests.clusters.scripts import EXPORT, SEARCH, act_for, loss, make_workflow, node_of

QUOTA = "exceeded quota: kf, requested: pods=1, used: pods=2, limited: pods=2"


def states_by_name(kind: str) -> dict[str, str]:
    findings = Operator("physics").describe(RUN_ID)
    return {finding.name: finding.state for finding in findings if finding.kind == kind}


def test_a_job_whose_pod_may_not_be_created_says_why(fake):
    backend = fake()
    backend.operator.refusal = f'pods "{{name}}" is forbidden: {QUOTA}'
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass"), deadline=0.3)
    assert QUOTA in states_by_name("PyTorchJob")[EXPORT]


def test_the_status_lists_a_workflows_job_and_no_trials_job(fake):
    backend = fake(node_of(loss(0.1)))
    act_for(backend, make_workflow(backend))
    backend.why_pods_remain = "the job does not end"
    backend.run_experiment(experiment(["0.1"]))
    backend.node.play = lambda pod: Play(seconds=math.inf)
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass"), deadline=0.5)
    assert states_by_name("PyTorchJob") == {EXPORT: "Master: 1 running"}


@pytest.mark.parametrize("who", ["trial", "algorithm"])
def test_a_search_whose_pod_may_not_be_created_says_why(fake, who):
    node = node_of(loss(0.1))
    refusal = f'pods "{{name}}" is forbidden: {QUOTA}'
    backend = fake(node, katib=Katib(node, suggestion_refusal=refusal * (who == "algorithm")))
    backend.operator.refusal = refusal
    with pytest.raises(DeadlineError):
        backend.run_experiment(experiment(["0.1"]), deadline=0.5)
    assert QUOTA in states_by_name("Experiment")[SEARCH]


def test_the_status_shows_a_restarted_pod_as_running(fake):
    backend = fake(node_of([Play(exit_code=1), Play(seconds=math.inf)]))
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass", restart="OnFailure"), deadline=1)
    state = states_by_name("Pod")[f"{EXPORT}-master-0"]
    assert state.startswith("runs again")
    assert "exit code 1" in state
