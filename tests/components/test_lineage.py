"""The artifacts of a run: which step takes which, and their metadata."""

from __future__ import annotations

import json

import pytest

from common.config import RunConfig
from common.project import version
from common.records import DataSet, RunRecord
from common.run import Run
from components import lineage, step, steps
from tests.records import export_record

NAME = "pfn-regressor-open"
ARTIFACTS = {
    "search": {"dataset": ("prepare", "system.Dataset")},
    "export": {
        "dataset": ("prepare", "system.Dataset"),
        "trials": ("search", "system.Markdown"),
    },
    "evaluate": {
        "dataset": ("prepare", "system.Dataset"),
        "model": ("export", "system.Model"),
    },
    "deploy": {"model": ("export", "system.Model")},
}
"""Step -> artifact that it takes -> the step that made it, and its type."""


@pytest.fixture
def run(tmp_path):
    """A run whose model was exported, prepared on a cluster."""
    sets = {}
    for split, jets in {"train": 800, "val": 200, "test": 150}.items():
        sets[split] = DataSet(
            dataset=f"s3://b/prepared/{split}", jets=jets, read=jets, files=1, fingerprint=split
        )
    record = RunRecord(
        data=sets,
        data_fingerprint="f00d",
        git_commit="abc123",
        images={"steps": "registry/steps:1", "weaver": "registry/weaver:1"},
        image_digests={"steps": "sha256:11", "weaver": None},
    )
    new_run = Run(config=RunConfig(s3_bucket=str(tmp_path), run_id=f"{NAME}-1"), record=record)
    export_record(NAME, versions="torch 2.13.0").save(new_run.folder.export)
    return new_run


def test_each_step_takes_the_artifacts_that_it_reads(compiled_pipeline):
    spec = compiled_pipeline.spec
    (group,) = (part["dag"]["tasks"] for part in spec["components"].values() if "dag" in part)
    artifacts = {}
    for name, task in group.items():
        declared = spec["components"][f"comp-{name}"].get("inputDefinitions", {})
        for key, source in task["inputs"].get("artifacts", {}).items():
            output = source["taskOutputArtifact"]
            assert output["outputArtifactKey"] == key
            schema = declared["artifacts"][key]["artifactType"]["schemaTitle"]
            artifacts.setdefault(name, {})[key] = (output["producerTask"], schema)
    assert artifacts == ARTIFACTS


def test_no_artifacts_address_is_a_prefix_of_another():
    """The launcher copies all whose key begins with the artifact's (kfp 2.15.0
    backend/src/v2/objectstore/object_store.go:125); those of one step lie in one folder.
    """
    for table_step in steps.STEPS:
        names = [name for name, kind in table_step.outputs.items() if kind != "parameter"]
        for name in names:
            assert [other for other in names if other.startswith(name)] == [name]


def test_the_models_metadata_name_its_folder_and_its_sources(run):
    assert lineage.model(run, f"{NAME}-000") == {
        "framework": "ONNX",
        "format": "Triton model repository",
        "name": NAME,
        "repository": run.folder.models,
        "trial": f"{NAME}-000",
        "sha256": "00ff",
        "opset": 17,
        "packages": "torch 2.13.0",
        **ORIGIN,
        "run_id": run.id,
        "run": run.uri,
    }


def test_the_dataset_says_where_the_jets_of_each_set_are(run):
    metadata = lineage.dataset(run)
    assert {name: metadata[name] for name in ("train", "train_jets", "test_jets")} == {
        "train": "s3://b/prepared/train",
        "train_jets": 800,
        "test_jets": 150,
    }
    assert metadata.items() >= ORIGIN.items()


ORIGIN = {
    "version": version(),
    "commit": "abc123",
    "data_fingerprint": "f00d",
    "image_steps": "registry/steps:1",
    "image_steps_digest": "sha256:11",
    "image_weaver": "registry/weaver:1",
    "image_weaver_digest": "unknown",
}


def test_kubeflow_stores_the_description_as_metadata_and_as_a_small_file(run, tmp_path):
    place = tmp_path / "root" / "model"
    description = {
        "outputs": {
            "artifacts": {"model": {"artifacts": [{"name": "model", "uri": str(place)}]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        }
    }
    lineage.publish_model(run, f"{NAME}-000", step.Artifacts(json.dumps(description)))
    executor_output = json.loads((tmp_path / "executor_output.json").read_text())
    (artifact,) = executor_output["artifacts"]["model"]["artifacts"]
    assert artifact == {"metadata": lineage.model(run, f"{NAME}-000")}
    # MLMD knows no null (kfp 2.15.0 backend/src/v2/metadata/converter.go:138)
    assert {type(value) for value in artifact["metadata"].values()} <= {str, int, float}
    assert json.loads(place.read_text()) == artifact["metadata"]
