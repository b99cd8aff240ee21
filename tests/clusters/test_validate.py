"""Objects are refused here for what a controller would refuse, or would accept and then not run."""

from __future__ import annotations

import copy
import re

import pytest

from clusters.validate import problems
from common.config import RunConfig
from common.run import Run
from evaluating.evaluate_job import evaluate_job
from exporting.export_job import export_job
from serving.inference_service import inference_service
from training.experiment import experiment


def run(**values) -> Run:
    return Run(
        config=RunConfig(s3_bucket="s3://jec/runs", run_id="pfn-regressor-open-0123abcd", **values)
    )


def objects(**values) -> dict[str, dict]:
    test_run = run(**values)
    return {
        "experiment": experiment(test_run),
        "export": export_job(test_run, "t"),
        "evaluate": evaluate_job(test_run, "t"),
        "service": inference_service(test_run),
    }


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"num_gpus": 2, "num_replicas": 3, "namespace": "physics"},
        {"predictor_form": "triton", "algorithm": "grid"},
    ],
)
def test_objects_of_a_run_are_valid(values):
    assert {name: problems(manifest) for name, manifest in objects(**values).items()} == {
        name: [] for name in objects()
    }


def with_value(manifest: dict, path: str, value) -> dict:
    """A copy with the value at a path of keys and indices joined by '/'; None removes it."""
    new_manifest = copy.deepcopy(manifest)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place = new_manifest
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return new_manifest


POD = "spec/pytorchReplicaSpecs/Master/template/spec"
TRIAL = f"spec/trialTemplate/trialSpec/{POD}"


@pytest.mark.parametrize(
    ("name", "path", "value", "facts"),
    [
        (
            "experiment",
            "spec/paralelTrialCount",
            2,
            r"spec\.paralelTrialCount: .*'parallelTrialCount'",
        ),
        (
            "experiment",
            "spec/maxTrialCount",
            "30",
            r"spec\.maxTrialCount: '30' .*whole number",
        ),
        (
            "experiment",
            "spec/parameters/0/feasibleSpace/min",
            1,
            r"spec\.parameters\[0\]\.feasibleSpace\.min: 1 .*text",
        ),
        ("experiment", "spec/objective/type", "minimise", "'minimise'.*'minimize'"),
        (
            "experiment",
            "spec/trialTemplate/primaryContainerName",
            "main",
            "container 'main'.*pytorch",
        ),
        (
            "experiment",
            f"{TRIAL}/containers/0/comand",
            [],
            r"spec\.containers\[0\]\.comand: .*'command'",
        ),
        (
            "experiment",
            f"{TRIAL}/containers/0/name",
            "main",
            "'pytorch'",
        ),
        ("export", "metadata/name", "9-export", "a letter first"),
        ("export", "metadata/labels/jec~1user", "me@home", "unknown"),
        ("export", f"{POD}/containers/0/image", None, "image: missing"),
        ("export", f"{POD}/containers/0/resources", {}, "resources.limits: missing"),
        ("export", f"{POD}/volumes", [], "volume 'shared-memory'"),
        (
            "export",
            "spec/pytorchReplicaSpecs/Master/replicas",
            2,
            r"Master\.replicas: .*\b1\b",
        ),
        (
            "export",
            f"{POD}/containers/0/env",
            [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
            "as plain text",
        ),
        ("service", "spec/predictor/triton", {}, "exactly one of"),
        ("service", "spec/predictor/model/modelFormat", {}, "modelFormat.name: missing"),
        ("service", "spec/predictor/model/storageUri", None, "storageUri: missing"),
        ("service", "spec/predictor/model/protocol", "v2", "unknown field 'protocol'"),
        (
            "service",
            "metadata/annotations",
            {"serving.kubeflow.org/s3-endpoint": "x"},
            r"serving\.kserve\.io/",
        ),
        ("service", "apiVersion", "serving.kserve.io/v1alpha1", "is none of"),
    ],
)
def test_an_error_names_the_place_in_the_manifest(name, path, value, facts):
    manifest = objects()[name]
    if "~1" in path:
        manifest["metadata"]["labels"]["jec/user"] = value
        facts = "metadata.labels.jec/user"
    else:
        manifest = with_value(manifest, path, value)
    assert re.search(facts, "\n".join(problems(manifest)))
