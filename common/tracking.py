"""Log a run to an MLflow tracking server: one MLflow run, with a nested run for each trial.

    tracker = connect(address, experiment="jec", run_id=run.id)
    tracker.start(parameters, tags)
    trial = tracker.trial("pfn-0a1b2c3d-000")
    tracker.log_epochs(trial, history)

MLflow's runs are known by their tags, so that a run that is resumed, a pod that is started again
and a trial that is logged again all use the same MLflow run, and nothing is logged twice.

No result depends on the server: code that logs during a run does so within `tolerate_failures`. The
package mlflow (or mlflow-skinny) is imported where it is used, because importing it takes seconds.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import AUTO, NONE, RunConfig
from common.errors import InputError, InterruptedRun, JecError, UnreachableError, without_secrets
from common.http import reason_of
from common.storage.addresses import SQLITE, check_tracking_address

ADDRESS = "MLFLOW_TRACKING_URI"
EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
"""MLflow's variable for the experiment of a pod's run."""
RUN = "JEC_MLFLOW_RUN"
"""Variable for the id of a pod's run; without it the pod logs nothing."""
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
SECRET_KEYS = (ADDRESS, *CREDENTIALS)
"""Keys of the Secret of --mlflow-secret, and the variables that they become."""

REQUEST_SECONDS = 15
"""Timeout of one request, unless the user sets MLFLOW_HTTP_REQUEST_TIMEOUT."""
RETRIES = 1
MOST_METRICS = 1000  # metrics in one request of log-batch
MOST_PARAMETERS = 100
LONGEST_VALUE = 6000  # characters of a parameter
LONGEST_TAG = 2000

RUN_ID, KIND, TRIAL, STATUS = "jec.run_id", "jec.kind", "jec.trial", "jec.status"
"""Tags: the run's id; run or trial; the trial's name; how it ended, in our words."""
INSTALL = "pip install 'mlflow-skinny>=3.1' pandas"
INSTALL_WHOLE = "pip install 'mlflow>=3.1'"

Say = Callable[[str], None]
Epoch = Mapping[str, Any]
"""One epoch as history.json has it (weaver.fit.metrics_log.EpochRecord)."""


def address_of(config: RunConfig) -> str:
    """Return the server's address from the configuration or environment; empty for no tracking."""
    if config.mlflow == NONE:
        return ""
    if config.mlflow != AUTO:
        return config.mlflow
    return os.environ.get(ADDRESS, "").strip()


def with_server_address(config: RunConfig, *, on_this_machine: bool) -> RunConfig:
    """Replace 'auto' by the server's address where the environment has one.

    'auto' stays if no address is set, or if pods read the address from a Secret.

    Raises:
        InputError: If the address is invalid or contains a login, or is a file that no pod can
            read.
    """
    address = address_of(config)
    if not address:
        return config
    try:
        check_tracking_address(address)
    except InputError as error:
        where = ADDRESS if config.mlflow == AUTO else "--mlflow"
        raise InputError(f"{where}: {error}") from None
    if address.startswith(SQLITE):
        if not on_this_machine:
            raise InputError(f"--mlflow {address}: no pod can read this file; give a server's URL")
        # Steps run in other working directories.
        address = SQLITE + str(Path(address.removeprefix(SQLITE)).absolute())
    elif config.mlflow == AUTO and config.mlflow_secret != NONE and not on_this_machine:
        return config
    return config.replace(mlflow=address)


class Tracker:
    """One run of the pipeline on a tracking server. Methods raise JecError where it fails."""

    def __init__(self, client: Any, experiment_id: str, run_id: str) -> None:
        """Take a client of the server, MLflow's id of the experiment and our id of the run."""
        self.client, self.experiment_id, self.run_id = client, experiment_id, run_id
        self._parent = ""
        # MLflow's id of a run -> the epochs that the server has of it
        self._logged: dict[str, set[int]] = {}

    @property
    def parent(self) -> str:
        """Id of the MLflow run, which is created if it does not exist yet."""
        if not self._parent:
            tags = {RUN_ID: self.run_id, KIND: "run"}
            self._parent = self._id_of(tags) or self._create(self.run_id, tags)
        return self._parent

    def start(self, parameters: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Mark the run as running, and log its parameters and tags.

        Under `mlflow run`, the run that MLflow created for the project is used instead of a new
        one.
        """
        if (project_run := os.environ.get("MLFLOW_RUN_ID")) and not self._id_of(
            {RUN_ID: self.run_id, KIND: "run"}
        ):
            self._parent = project_run
            tags = {RUN_ID: self.run_id, KIND: "run", "mlflow.runName": self.run_id, **tags}
        self.set_tags(self.parent, tags)
        self.log_parameters(self.parent, parameters)
        self.set_status(self.parent, "RUNNING")

    def trial(self, name: str) -> str:
        """Return the id of a trial's MLflow run, which is created if it does not exist yet."""
        tags = {RUN_ID: self.run_id, TRIAL: name}
        trial_tags = {KIND: "trial", "mlflow.parentRunId": self.parent}
        return self._id_of(tags) or self._create(name, {**tags, **trial_tags})

    def log_parameters(self, mlflow_run: str, parameters: Mapping[str, object]) -> None:
        """Log the parameters that are not logged yet, because MLflow refuses to change others."""
        from mlflow.entities import Param

        present = self.client.get_run(mlflow_run).data.params
        new = []
        for name, value in parameters.items():
            if name not in present and len(str(value)) <= LONGEST_VALUE:
                new.append(Param(name, str(value)))
        for first in range(0, len(new), MOST_PARAMETERS):
            self.client.log_batch(mlflow_run, params=new[first : first + MOST_PARAMETERS])

    def log_epochs(self, mlflow_run: str, history: Sequence[Epoch]) -> None:
        """Log the metrics of the epochs that the server lacks, with the epoch as the step."""
        from mlflow.entities import Metric

        if mlflow_run not in self._logged:
            entries = self.client.get_metric_history(mlflow_run, "train_loss")
            self._logged[mlflow_run] = {entry.step for entry in entries}
        logged_epochs = self._logged[mlflow_run]
        metrics = []
        for record in history:
            if record["epoch"] in logged_epochs:
                continue
            values = {"train_loss": record.get("train_loss"), **record.get("metrics", {})}
            moment = _milliseconds(record.get("time", ""))
            for name, value in values.items():
                if value is not None and math.isfinite(value):
                    metrics.append(Metric(name, value, moment, record["epoch"]))
        for first in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(mlflow_run, metrics=metrics[first : first + MOST_METRICS])
        logged_epochs |= {record["epoch"] for record in history}

    def log_metrics(self, mlflow_run: str, metrics: Mapping[str, float]) -> None:
        """Log metrics without a step; those that are not finite are left out."""
        for name, value in metrics.items():
            if math.isfinite(value):
                self.client.log_metric(mlflow_run, name, value)

    def set_tags(self, mlflow_run: str, tags: Mapping[str, str]) -> None:
        """Set tags, and replace existing values."""
        from mlflow.entities import RunTag

        self.client.log_batch(mlflow_run, tags=[RunTag(name, tags[name]) for name in tags])

    def set_status(self, mlflow_run: str, status: str) -> None:
        """Set MLflow's status: RUNNING, FINISHED, FAILED or KILLED."""
        if status == "RUNNING":
            self.client.update_run(mlflow_run, status=status)
        else:
            self.client.set_terminated(mlflow_run, status=status)

    def _id_of(self, tags: Mapping[str, str]) -> str:
        """Return the run with these tags; empty for none."""
        words = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        runs = self.client.search_runs([self.experiment_id], words, max_results=1)
        return str(runs[0].info.run_id) if runs else ""

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        run = self.client.create_run(self.experiment_id, run_name=name, tags=dict(tags))
        return str(run.info.run_id)


def connect(address: str, *, experiment: str, run_id: str) -> Tracker:
    """Return the run on the server at `address`; its experiment is made where there is none.

    Below `mlflow run` the experiment is that of MLflow's own run. Raises InputError where mlflow is
    not installed, the address is no tracking server or the login is refused, and UnreachableError
    where nobody answers.
    """
    client = _client(address)
    with _one_sentence(f"--mlflow {address}"):
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
        if not experiment_id or "MLFLOW_RUN_ID" not in os.environ:
            existing = client.get_experiment_by_name(experiment)
            folder = None
            if address.startswith(SQLITE):  # by itself it would be below the working directory
                folder = str(Path(address.removeprefix(SQLITE)).parent / "mlartifacts")
            mlflow_experiment = existing or client.create_experiment(
                experiment, artifact_location=folder
            )
            experiment_id = (
                mlflow_experiment
                if isinstance(mlflow_experiment, str)
                else mlflow_experiment.experiment_id
            )
    return Tracker(client, experiment_id, run_id)


def of_environment() -> Tracker | None:
    """Return the run that this pod belongs to.

    None where the pod is not to log. Raises as `connect`.
    """
    address, run_id = os.environ.get(ADDRESS), os.environ.get(RUN)
    if not address or not run_id:
        return None
    check_tracking_address(address)
    return connect(address, experiment=os.environ[EXPERIMENT], run_id=run_id)


def of_run(config: RunConfig) -> Tracker | None:
    """Return the run of a configuration; None where it is not tracked. Raises as `connect`."""
    address = address_of(config)
    if not address:
        return None
    return connect(address, experiment=config.experiment_name, run_id=config.run_id)


def is_tracked(config: RunConfig) -> bool:
    """Return whether the pods of a run are to log."""
    return config.mlflow not in (AUTO, NONE) or (
        config.mlflow == AUTO and config.mlflow_secret != NONE
    )


def verdict(*, passed: bool, reasons: Sequence[str]) -> dict[str, str]:
    """Return the verdict of the gate as tags."""
    return {
        "jec.gate": "passed" if passed else "refused",
        "jec.gate_reasons": "; ".join(reasons)[:LONGEST_TAG],
    }


@contextlib.contextmanager
def tolerate_failures(say: Say, consequence: str) -> Iterator[None]:
    """Report any failure of tracking in the block as a warning, with its consequence."""
    try:
        yield
    except InterruptedRun:
        raise
    except Exception as error:  # of mlflow, requests or a server's answer: none may end a training
        say(f"warning: {_words(error)}; {consequence}")


@contextlib.contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Turn mlflow's errors into one sentence each. Raises InputError or UnreachableError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        cause = error.__cause__ or error.__context__
        if cause is not None:
            raise UnreachableError(
                f"{what}: {reason_of(cause)}; start the server, correct the address, or leave"
                " tracking out with --mlflow none"
            ) from None
        raise InputError(
            f"{what} does not answer as an MLflow server: {_words(error)}; correct the address, or"
            f" the login in {', '.join(CREDENTIALS)}"
        ) from None


def _words(error: Exception) -> str:
    """Return an error in one line, without secrets."""
    text = str(error) if isinstance(error, JecError) else f"MLflow: {error}"
    return without_secrets(" ".join(text.split()))[:300]


def _client(address: str) -> Any:
    """Return a client of the server, whose requests have a deadline.

    Raises InputError without mlflow.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(RETRIES))
    # Else it prints two lines for each run that ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise InputError(
            f"--mlflow {address}: the package mlflow cannot be imported ({error}); type {INSTALL}"
        ) from None
    try:
        return MlflowClient(tracking_uri=address, registry_uri=address)
    except MlflowException:  # the only one seen: mlflow-skinny alone opens no SQLite file
        raise InputError(
            f"--mlflow {address}: the installed package of MLflow cannot open this address; type"
            f" {INSTALL_WHOLE}, or give the URL of a server"
        ) from None


def _milliseconds(moment: str) -> int:
    """Return milliseconds since 1970 of a time in RFC 3339; of now where there is none."""
    if not moment:
        return round(datetime.datetime.now(datetime.UTC).timestamp() * 1000)
    return round(datetime.datetime.fromisoformat(moment).timestamp() * 1000)
