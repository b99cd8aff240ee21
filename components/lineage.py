"""Publish the data and the model of a run as Kubeflow artifacts, with addresses and origin.

An artifact's file is a small JSON with its metadata, in Kubeflow's own store. The data and models
stay in the run's folder, whose address is part of the metadata. They cannot be artifacts
themselves: the launcher fails a step whose artifact has an address outside of Kubeflow's store, and
copies everything below an artifact's address into the pod of each step that takes it (KFP 2.15.0
backend/src/v2/component/launcher_v2.go:637, 765).
"""

from __future__ import annotations

import json

from common import project
from common.config import NONE
from common.records import ExportRecord
from common.run import Run
from components import step

Metadata = dict[str, str | float]
"""Key -> text or number; Kubeflow stores no null values, and its UI shows no nested ones."""


def publish_dataset(run: Run, artifacts: step.Artifacts) -> None:
    """Publish the prepared data of a run as an artifact of the type Dataset."""
    _publish("dataset", dataset(run), artifacts)


def publish_model(run: Run, trial: str, artifacts: step.Artifacts) -> None:
    """Publish the exported model of a run as an artifact of the type Model."""
    _publish("model", model(run, trial), artifacts)


def dataset(run: Run) -> Metadata:
    """Return the metadata of the prepared data: address and number of jets of each set."""
    metadata: Metadata = {
        "framework": "Weaver",
        "format": "NumPy columns, decoded from ROOT",
        "data_config": run.folder.data_config,
    }
    for split, data in run.record.data.items():
        metadata[split] = data.dataset
        metadata[f"{split}_jets"] = data.jets
    return {**metadata, **origin(run)}


def model(run: Run, trial: str) -> Metadata:
    """Return the metadata of the exported model: Triton repository, trial, digest, versions."""
    metadata: Metadata = {
        "framework": "ONNX",
        "format": "Triton model repository",
        "name": run.model_name,
        "repository": run.folder.models,
        "trial": trial,
    }
    if export := ExportRecord.find(run.folder.export):
        metadata |= {"sha256": export.sha256, "opset": export.opset}
        if export.versions:
            metadata["packages"] = export.versions
    return {**metadata, **origin(run)}


def origin(run: Run) -> Metadata:
    """Return the origin of a result: run, version, commit, data and images."""
    record = run.record
    metadata: Metadata = {
        "run_id": run.id,
        "run": run.uri,
        "version": project.version(),
        "commit": record.git_commit,
        "data_fingerprint": record.data_fingerprint,
    }
    for name, image in record.images.items():
        if image != NONE:
            metadata[f"image_{name}"] = image
            metadata[f"image_{name}_digest"] = record.image_digests.get(name) or "unknown"
    return {name: value for name, value in metadata.items() if value != ""}


def _publish(name: str, metadata: Metadata, artifacts: step.Artifacts) -> None:
    artifacts.set(name, metadata=metadata, content=json.dumps(metadata, indent=2))
