"""What the artifacts of a run say of themselves in Kubeflow: where the results lie, and of what.

An artifact's file is a small JSON of the same content, in Kubeflow's own store. The data and the
models stay in the run's folder, which the artifact names: the launcher fails a step whose artifact
has an address outside of Kubeflow's own store, and copies all below an address into the pod of each
step that takes the artifact (KFP 2.15.0 backend/src/v2/component/launcher_v2.go:637, 765).
"""

from __future__ import annotations

import json

from common import project
from common.config import NONE
from common.records import ExportRecord
from common.run import Run
from components import step

Metadata = dict[str, str | float]
"""Key -> text or number: Kubeflow stores no null, and its pages show no nested values."""


def publish_dataset(run: Run, artifacts: step.Artifacts) -> None:
    """Hand Kubeflow the prepared data of a run as a Dataset."""
    _publish("dataset", dataset(run), artifacts)


def publish_model(run: Run, trial: str, artifacts: step.Artifacts) -> None:
    """Hand Kubeflow the exported model of a run as a Model."""
    _publish("model", model(run, trial), artifacts)


def dataset(run: Run) -> Metadata:
    """The prepared data: the place and number of jets of each set."""
    described: Metadata = {
        "framework": "Weaver",
        "format": "NumPy columns, decoded from ROOT",
        "data_config": run.folder.data_config,
    }
    for split, data in run.record.data.items():
        described[split] = data.dataset
        described[f"{split}_jets"] = data.jets
    return {**described, **origin(run)}


def model(run: Run, trial: str) -> Metadata:
    """The exported model: the repository that Triton serves, and the trial that trained it."""
    described: Metadata = {
        "framework": "ONNX",
        "format": "Triton model repository",
        "name": run.model_name,
        "repository": run.folder.models,
        "trial": trial,
    }
    if export := ExportRecord.find(run.folder.export):
        described |= {"sha256": export.sha256, "opset": export.opset}
        if export.versions:
            described["packages"] = export.versions
    return {**described, **origin(run)}


def origin(run: Run) -> Metadata:
    """The run, and what it was made of: version, commit, images and data."""
    record = run.record
    known: Metadata = {
        "run_id": run.id,
        "run": run.uri,
        "version": project.version(),
        "commit": record.git_commit,
        "data_fingerprint": record.data_fingerprint,
    }
    for name, image in record.images.items():
        if image != NONE:
            known[f"image_{name}"] = image
            known[f"image_{name}_digest"] = record.image_digests.get(name) or "unknown"
    return {name: value for name, value in known.items() if value != ""}


def _publish(name: str, described: Metadata, artifacts: step.Artifacts) -> None:
    artifacts.set(name, metadata=described, content=json.dumps(described, indent=2))
