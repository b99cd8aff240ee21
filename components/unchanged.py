"""--if-data-changed: a run whose data an earlier one has seen ends before the training, and well.

Beside the runs lies, for each set of parameters, which run has come to its end last, and on which
data. The step prepare compares. Where nothing has changed it writes unchanged.json into the run's
folder and decodes nothing; the later steps see it and end at once, as does a deployment that the
gate refused, because Kubeflow has no end of a run in its middle.
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

OF_ONE_RUN = (
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
"""Parameters on which no trained model depends; of --baseline served the run has an address."""
BY_CONTENT = ("data_config", "network_config")
"""Parameters that name files, whose content counts in place of their address."""


def inputs_digest(config: RunConfig, inputs: Inputs) -> str:
    """Digest of all that makes a run's results but the jets, as before they are looked at."""
    values = config.parameters()
    for name in (*OF_ONE_RUN, *BY_CONTENT):
        del values[name]
    contents = (storage.digest(inputs.data_config_text), inputs.network.digest())
    return storage.digest(json.dumps([values, contents], sort_keys=True).encode())


def data_fingerprint(inputs: Inputs) -> str:
    """Digest of the files of all sets: it stays the same as long as none of them changes."""
    fingerprints = "".join(storage.fingerprint(inputs.files[split]) for split in SPLITS)
    return storage.digest(fingerprints.encode())


def earlier_success(config: RunConfig, digest: str) -> SuccessRecord | None:
    """The last run of these inputs that came to its end; None where there is none (any more)."""
    record = SuccessRecord.find_readable(place(config.s3_bucket, digest))
    if record is None or not storage.exists(RunFolder(_uri(config, record.run_id)).run):
        return None
    return record


def end(run: Run, earlier: SuccessRecord, artifacts: step.Artifacts | None, job_id: str) -> None:
    """Let the run end with the step prepare: write why, which the later steps read."""
    reason = (
        f"the data are those of {earlier.run_id} ({earlier.state}, {earlier.time}), which had the"
        " same parameters; leave --if-data-changed out to run all the same"
    )
    UnchangedRecord(
        run_id=run.id, job_id=job_id, same_as=_uri(run.config, earlier.run_id), reason=reason
    ).save(run.folder.unchanged)
    step.write_status(run, "prepare", "running", job_id=job_id)
    step.write_status(run, "prepare", "done", reason, job_id=job_id)
    if artifacts:
        described = {"run": _uri(run.config, earlier.run_id)}
        artifacts.set("dataset", metadata=described, content=f"{reason}\n")
    step.say_result(f"unchanged: {reason}")


def forget(run: Run) -> None:
    """Let a run that is resumed do its work, whatever it found before."""
    if storage.exists(run.folder.unchanged):
        storage.delete(run.folder.unchanged)


def keep_success(uri: str, summary: SummaryRecord) -> None:
    """Note that a run has come to its end on its data."""
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
    ).save(place(run.config.s3_bucket, run.record.inputs_digest))


def place(bucket: str, digest: str) -> str:
    """Where the last success of some inputs is noted."""
    return storage.join(bucket, LAST_SUCCESS, f"{digest}.json")


def _uri(config: RunConfig, run_id: str) -> str:
    return storage.join(config.s3_bucket, run_id)
