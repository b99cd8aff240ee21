"""Register the exported models in MLflow, with the verdict of the gate as tags.

A model has the flavours onnx and pyfunc, the signature of its ONNX file, and a golden jet as input
example. It belongs to the MLflow run of the pipeline's run.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from common import scratch, storage, tracking
from common.layout import RunFolder
from common.records import ExportRecord, MetricsRecord, ModelRecord
from common.run import Run
from jec_client.protocol import arrays
from serving.golden import file_names

SHA256 = "jec.sha256"
PACKAGES = ("onnx", "onnxruntime", "numpy")
"""Packages that load the model; MLflow records the versions with which it was measured."""
CONSEQUENCE = "the evaluation is valid, but its model is not in the registry of MLflow"


def log_models(uri: str, metrics: MetricsRecord) -> None:
    """Log and register the models of a run in MLflow, if tracking is configured for this process.

    A model that is registered already gets the tags of this evaluation. Errors of MLflow become
    warnings.
    """
    with tracking.tolerate_failures(_say, CONSEQUENCE):
        tracker = tracking.of_environment()
        if tracker is None:
            return
        run, export = Run.load(uri), ExportRecord.load(RunFolder(uri).export)
        for model in filter(None, (export, export.raw)):
            number = _version_of(tracker, model) or _register(tracker, run.folder, model)
            for name, value in _tags(run, export, model, metrics).items():
                tracker.client.set_model_version_tag(model.model, number, name, value)
            _say(f"MLflow: {model.model} is version {number} in the registry of models")


def _version_of(tracker: tracking.Tracker, model: ModelRecord) -> str:
    """Return the version under which this file of this run is registered; empty if it is not."""
    versions = tracker.client.search_model_versions(f"name = '{model.model}'")
    for version in versions:
        if version.run_id == tracker.parent and version.tags.get(SHA256) == model.sha256:
            return str(version.version)
    return ""


def _register(tracker: tracking.Tracker, folder: RunFolder, model: ModelRecord) -> str:
    """Upload the model as an artifact of the run and register it as a new version."""
    client = tracker.client
    with scratch.folder("jec-mlflow-") as work:
        target = work / "model"
        _write(folder, model.model, target, tracker.parent)
        client.log_artifacts(tracker.parent, str(target), model.model)
    if not client.search_registered_models(f"name = '{model.model}'"):
        client.create_registered_model(model.model)
    # The server opens no `runs:/...` of its own: its page would show no signature.
    artifacts = client.get_run(tracker.parent).info.artifact_uri
    version = client.create_model_version(
        model.model,
        source=f"{artifacts}/{model.model}",
        run_id=tracker.parent,
        tags={SHA256: model.sha256},
        await_creation_for=0,  # the files are uploaded already
    )
    return str(version.version)


def _write(folder: RunFolder, name: str, target: Path, mlflow_run: str) -> None:
    """Write an exported model in the format of MLflow into the folder `target`."""
    import mlflow.onnx
    import onnx
    from mlflow.models import Model

    graph = onnx.load_model_from_string(storage.read_bytes(folder.onnx(name)))
    request = storage.read_json(storage.join(folder.golden(name), file_names(1)[0]))
    mlflow.onnx.save_model(
        graph,
        str(target),
        mlflow_model=Model(artifact_path=name, run_id=mlflow_run),
        signature=signature_of(graph),
        input_example=arrays(request["inputs"]),
        pip_requirements=[
            f"{package}=={importlib.metadata.version(package)}" for package in PACKAGES
        ],
        onnx_execution_providers=["CPUExecutionProvider"],
    )


def signature_of(graph: Any) -> Any:
    """Return the MLflow signature of an ONNX model: names, types and shapes, -1 for a free size."""
    from mlflow.models import ModelSignature

    return ModelSignature(
        inputs=_schema(graph.graph.input),
        outputs=_schema(graph.graph.output),
    )


def _schema(values: Any) -> Any:
    """Return the inputs or outputs of an ONNX graph as a schema of MLflow."""
    from mlflow.types import ColSpec, Schema, TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    tensors: list[ColSpec | TensorSpec] = []
    for value in values:
        kind = value.type.tensor_type
        shape = [size.dim_value or -1 for size in kind.shape.dim]
        dtype = tensor_dtype_to_np_dtype(kind.elem_type)
        tensors.append(TensorSpec(dtype, shape, name=value.name))
    return Schema(tensors)


def _tags(
    run: Run, export: ExportRecord, model: ModelRecord, metrics: MetricsRecord
) -> dict[str, str]:
    """Return the tags of a version: its origin and the verdict of the gate."""
    tags = {
        SHA256: model.sha256,
        tracking.RUN_ID: run.id,
        "jec.trial": export.trial,
        "jec.folder": run.uri,
        "jec.commit": run.record.git_commit,
        "jec.data_fingerprint": run.record.data_fingerprint,
        **tracking.verdict(passed=metrics.passed, reasons=metrics.reasons),
    }
    if metrics.gain:
        tags["jec.gain"] = metrics.gain.percent()
    return tags


def _say(line: str) -> None:
    print(line, flush=True)
