"""The manifests of a real run, from its own makers, through the Kubernetes backend to their ends.

Then the run is removed.
"""

from __future__ import annotations

import pytest

from clusters.protocol import KFP_POD
from common.config import RunConfig
from common.errors import DeadlineError, InterruptedRun
from common.run import Run
from components import step
from evaluating.evaluate_job import evaluate_job
from exporting.export_job import export_job
from serving.inference_service import inference_service
from tests.clusters.controllers import Play
from tests.clusters.scripts import UP, loss, node_of
from training.experiment import experiment


@pytest.fixture
def run():
    return Run(
        config=RunConfig(
            s3_bucket="s3://jec/runs",
            run_id="pfn-regressor-open-0123abcd",
            max_trials=4,
            parallel_trials=2,
        )
    )


def test_every_object_of_a_run_is_accepted_succeeds_and_is_deleted_by_run_id(fake, run):
    backend = fake(node_of(loss(0.09), loss(0.08), loss(0.085), loss(0.1), Play(), Play(), UP))
    result = backend.run_experiment(experiment(run))
    assert len(result.trials) == 4
    best = next(trial for trial in result.trials if trial.name == result.optimal)
    assert best.metrics["AvgLoss"].min == 0.08
    backend.run_job(export_job(run, result.optimal))
    backend.run_job(evaluate_job(run, result.optimal))
    assert backend.deploy(inference_service(run)).name == run.model_name
    kinds = {entry.split("/")[0] for entry in backend.cluster.delete(run.id)}
    assert kinds == {"Experiment", "PyTorchJob", "InferenceService"}
    assert backend.cluster.delete(run.id) == []


@pytest.mark.parametrize("reason", [InterruptedRun, DeadlineError, KeyboardInterrupt])
def test_a_stopped_step_removes_its_job(fake, run, reason):
    backend = fake(node_of(Play(seconds=60)))
    manifest = export_job(run, "trial")
    with pytest.raises(DeadlineError):
        backend.run_job(manifest, deadline=0.5)
    name = manifest["metadata"]["name"]
    assert backend.api.find("pytorchjobs", name), "the backend removes no job itself"
    cluster = backend.cluster
    with pytest.raises(reason), step.remove_if_stopped(cluster, cluster.delete_job, name):
        raise reason("enough")
    assert backend.api.find("pytorchjobs", name) is None
    assert backend.cluster.delete(run.id) == []


@pytest.mark.parametrize(("reason", "stays"), [(InterruptedRun, True), (DeadlineError, False)])
def test_in_a_kubeflow_pod_a_terminated_step_leaves_the_removal_of_its_job_to_finish(
    fake, run, monkeypatch, reason, stays
):
    """Its pod is killed half a second later, and another attempt may continue with the job.

    A step that reaches its own deadline has time to remove the job.
    """
    monkeypatch.setenv(KFP_POD, "jec-pipeline-x-export")
    backend = fake(node_of(Play(seconds=60)))
    manifest = export_job(run, "trial")
    with pytest.raises(DeadlineError):
        backend.run_job(manifest, deadline=0.5)
    name = manifest["metadata"]["name"]
    cluster = backend.cluster
    with pytest.raises(reason), step.remove_if_stopped(cluster, cluster.delete_job, name):
        raise reason("enough")
    assert bool(backend.api.find("pytorchjobs", name)) == stays
