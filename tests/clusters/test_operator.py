"""What --status says of the objects of a run on a cluster."""

from __future__ import annotations

import math

import pytest

from clusters.operator import Operator
from common.errors import DeadlineError
from tests.clusters.contract import RUN_ID, experiment, job
from tests.clusters.controllers import Katib, Play
from tests.clusters.scripts import EXPORT, SEARCH, act_for, loss, make_workflow, node_of

QUOTA = "exceeded quota: kf, requested: pods=1, used: pods=2, limited: pods=2"


def told_of(kind: str) -> dict[str, str]:
    findings = Operator("physics").describe(RUN_ID)
    return {finding.name: finding.state for finding in findings if finding.kind == kind}


def test_a_job_whose_pod_may_not_be_created_says_why(fake):
    backend = fake()
    backend.operator.refusal = f'pods "{{name}}" is forbidden: {QUOTA}'
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass"), deadline=0.3)
    assert QUOTA in told_of("PyTorchJob")[EXPORT]


def test_a_job_that_a_workflow_owns_is_told_of_and_a_trials_job_is_not(fake):
    backend = fake(node_of(loss(0.1)))
    act_for(backend, make_workflow(backend))
    backend.leaves_pods = "the job does not end"
    backend.run_experiment(experiment(["0.1"]))
    backend.node.play = lambda pod: Play(seconds=math.inf)
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass"), deadline=0.5)
    assert told_of("PyTorchJob") == {EXPORT: "Master: 1 running"}


@pytest.mark.parametrize("who", ["trial", "algorithm"])
def test_a_search_whose_pod_may_not_be_created_says_why(fake, who):
    node = node_of(loss(0.1))
    refusal = f'pods "{{name}}" is forbidden: {QUOTA}'
    backend = fake(node, katib=Katib(node, suggestion_refusal=refusal * (who == "algorithm")))
    backend.operator.refusal = refusal
    with pytest.raises(DeadlineError):
        backend.run_experiment(experiment(["0.1"]), deadline=0.5)
    assert QUOTA in told_of("Experiment")[SEARCH]


def test_a_pod_that_runs_again_has_not_ended(fake):
    backend = fake(node_of([Play(exit_code=1), Play(seconds=math.inf)]))
    with pytest.raises(DeadlineError):
        backend.run_job(job("pass", restart="OnFailure"), deadline=1)
    state = told_of("Pod")[f"{EXPORT}-master-0"]
    assert state.startswith("runs again")
    assert "exit code 1" in state
