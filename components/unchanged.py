"""--if-data-changed: end a run before the training if an earlier run had the same data.

A file beside the runs has, for each set of parameters, the last completed run and its data. The
step prepare compares them. If nothing has changed, it decodes nothing and writes unchanged.json
into the run's folder. The later steps read it and succeed at once, because Kubeflow cannot end a
run early with success.
"""

from __future__ import annotations

import json

from common import storage
from common.choices import SPLITS
from common.config import RunConfig
from common.layout import LAST_SUCCESS, RunFolder
from common.records import SuccessRecord, SummaryRecord, UnchangedRecord
from common.run import Run
from components import step
from components.inputs import Inputs

RUN_ONLY_PARAMETERS = (
    "run_id",
    "user",
    "namespace",
    "experiment_name",
    "webhook_secret",
    "mlflow",
    "mlflow_secret",
    "model_registry",
    "model_registry_secret",
    "delete_train_experiment",
    "delete_export_job",
    "if_data_changed",
    "baseline",
)
"""Parameters that do not change the results of a run, so that they are not compared.

`baseline` is one because 'served' becomes another address after each deployment.
"""
BY_CONTENT = ("data_config", "network_config")
"""Parameters with paths of files whose contents are compared instead of the paths."""


def inputs_digest(config: RunConfig, inputs: Inputs) -> str:
    """Return a digest of everything except the jets that determines a run's results."""
    values = config.parameters()
    for name in (*RUN_ONLY_PARAMETERS, *BY_CONTENT):
        del values[name]
    contents = (storage.digest(inputs.data_config_text), inputs.network.digest())
    return storage.digest(json.dumps([values, contents], sort_keys=True).encode())


def data_fingerprint(inputs: Inputs) -> str:
    """Return a digest of the files of all sets, which changes if a file changes."""
    fingerprints = "".join(storage.fingerprint(inputs.files[split]) for split in SPLITS)
    return storage.digest(fingerprints.encode())


def earlier_success(config: RunConfig, digest: str) -> SuccessRecord | None:
    """Return the last completed run with these inputs; None if there is none or it was removed."""
    record = SuccessRecord.find_readable(success_record_uri(config.s3_bucket, digest))
    if record is None or not storage.exists(RunFolder(_uri(config, record.run_id)).run):
        return None
    return record


def end(run: Run, earlier: SuccessRecord, artifacts: step.Artifacts | None, job_id: str) -> None:
    """End the run after prepare, by writing unchanged.json, which the later steps read."""
    reason = (
        f"run {earlier.run_id} ({earlier.state}, {earlier.time}) had the same data and parameters;"
        " leave --if-data-changed out to run anyway"
    )
    UnchangedRecord(
        run_id=run.id, job_id=job_id, same_as=_uri(run.config, earlier.run_id), reason=reason
    ).save(run.folder.unchanged)
    step.write_status(run, "prepare", "running", job_id=job_id)
    step.write_status(run, "prepare", "done", reason, job_id=job_id)
    if artifacts:
        metadata = {"run": _uri(run.config, earlier.run_id)}
        artifacts.set("dataset", metadata=metadata, content=f"{reason}\n")
    step.say_result(f"unchanged: {reason}")


def forget(run: Run) -> None:
    """Remove unchanged.json, so that a resumed run executes its steps."""
    if storage.exists(run.folder.unchanged):
        storage.delete(run.folder.unchanged)


def keep_success(uri: str, summary: SummaryRecord) -> None:
    """Record that a run has completed on its data."""
    if not storage.exists(RunFolder(uri).run):
        return
    run = Run.load(uri)
    if not run.record.inputs_digest:
        return
    SuccessRecord(
        run_id=run.id,
        data_fingerprint=run.record.data_fingerprint,
        state=summary.state,
        time=summary.time,
    ).save(success_record_uri(run.config.s3_bucket, run.record.inputs_digest))


def success_record_uri(bucket: str, digest: str) -> str:
    """Return the address of the record of the last completed run with these inputs."""
    return storage.join(bucket, LAST_SUCCESS, f"{digest}.json")


def _uri(config: RunConfig, run_id: str) -> str:
    return storage.join(config.s3_bucket, run_id)
