"""Addresses of the files in a run's folder; no other module has their names."""

from __future__ import annotations

import dataclasses
import os
import shlex

from common import storage
from common.storage.addresses import local_path

LAST_SUCCESS = "last_success"
"""Folder beside the runs: the last completed run for each set of parameters."""
DEFAULT_OUTPUT = "runs"  # folder of the runs of this machine
RAW_SUFFIX = "-raw"  # ending of the name of the model that takes the columns of the files


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run: addresses of its files, whether they exist or not.

    >>> RunFolder("s3://bucket/runs/pfn-0a1b2c3d").trial("pfn-0a1b2c3d-000")
    's3://bucket/runs/pfn-0a1b2c3d/trials/pfn-0a1b2c3d-000'
    """

    uri: str

    def path(self, *parts: str) -> str:
        """Return an address below the folder."""
        return storage.join(self.uri, *parts)

    @property
    def resume_command(self) -> str:
        """The command that resumes the run, with the folder or address that holds it.

        >>> RunFolder("s3://bucket/runs/pfn-0a1b2c3d").resume_command
        'python pipeline.py --s3-bucket s3://bucket/runs --resume pfn-0a1b2c3d'
        """
        flag, uri = "--s3-bucket", self.uri.rstrip("/")
        if storage.is_local(uri):
            # `latest` is a link to a run, and not a run id.
            flag, uri = "--output", os.path.realpath(local_path(uri))
        place, _, run_id = uri.rpartition("/")
        return f"python pipeline.py {shlex.join([flag, place or '/', '--resume', run_id])}"

    # Records (common.records; run.json: common.run.Run)

    @property
    def run(self) -> str:
        """run.json, which makes the folder a run."""
        return self.path("run.json")

    @property
    def status(self) -> str:
        """status.json: which step the run is in."""
        return self.path("status.json")

    @property
    def start(self) -> str:
        """start_at.json: the step at which --start-at let the last job start."""
        return self.path("start_at.json")

    @property
    def unchanged(self) -> str:
        """unchanged.json: the run with the same data, for which this one did nothing."""
        return self.path("unchanged.json")

    @property
    def search(self) -> str:
        """search.json: all trials, the optimal one."""
        return self.path("search.json")

    @property
    def resumed(self) -> str:
        """resumed.json: the trials that were resumed without Katib."""
        return self.path("resumed.json")

    @property
    def export(self) -> str:
        """model/export.json: the exported models."""
        return self.path("model", "export.json")

    @property
    def residual(self) -> str:
        """residual.json: the residual correction that the models contain, for correctionlib."""
        return self.path("residual.json")

    @property
    def metrics(self) -> str:
        """metrics.json: the verdict on the test set."""
        return self.path("metrics.json")

    @property
    def service(self) -> str:
        """service.json: where the model is served."""
        return self.path("service.json")

    @property
    def former_service(self) -> str:
        """former_service.json: the service as it was, while the step deploy runs."""
        return self.path("former_service.json")

    @property
    def summary(self) -> str:
        """summary.json: how the run ended."""
        return self.path("summary.json")

    # Pages and tables

    @property
    def report(self) -> str:
        """report.html: the physics report."""
        return self.path("report.html")

    @property
    def search_page(self) -> str:
        """search.html: the search as a page."""
        return self.path("search.html")

    @property
    def trials_table(self) -> str:
        """trials.csv: all trials as a table."""
        return self.path("trials.csv")

    def figure(self, name: str) -> str:
        """Return a figure of the report as PDF."""
        return self.path("figures", f"{name}.pdf")

    # Inputs of a run

    @property
    def config(self) -> str:
        """The folder of the configurations, exactly as they ran."""
        return self.path("config")

    @property
    def data_config(self) -> str:
        """The data config."""
        return self.path("config", "data.yaml")

    @property
    def network(self) -> str:
        """The network file."""
        return self.path("config", "network.py")

    @property
    def search_space(self) -> str:
        """The search space."""
        return self.path("config", "search_space.json")

    @property
    def jet_columns(self) -> str:
        """The data config of the jet-level columns, as JSON."""
        return self.path("config", "jet_columns.json")

    def data(self, split: str) -> str:
        """Return the reference to the prepared data of a split (train, val, test)."""
        return self.path("data", f"{split}.json")

    # Results

    @property
    def trials(self) -> str:
        """The folder of all trials."""
        return self.path("trials")

    def trial(self, name: str) -> str:
        """Return the folder of a trial (its files: weaver.fit.checkpoint.TrialFolder)."""
        return self.path("trials", name)

    def weights(self, trial: str) -> str:
        """Return the best weights of a trial."""
        return self.path("trials", trial, "best.pt")

    def history(self, trial: str) -> str:
        """Return the losses of each epoch of a trial."""
        return self.path("trials", trial, "history.json")

    def options(self, trial: str) -> str:
        """Return the options that a trial was trained with, and its best epoch."""
        return self.path("trials", trial, "options.json")

    @property
    def models(self) -> str:
        """The Triton model repository."""
        return self.path("model")

    def model(self, name: str) -> str:
        """Return the folder of a model in the repository."""
        return self.path("model", name)

    def onnx(self, name: str) -> str:
        """Return the ONNX file of a model."""
        return self.path("model", name, "1", "model.onnx")

    @property
    def card(self) -> str:
        """model_card.json: the description of the models; it is not in the repository."""
        return self.path("model_card.json")

    @property
    def card_page(self) -> str:
        """model_card.md: the same for readers."""
        return self.path("model_card.md")

    @property
    def goldens(self) -> str:
        """The folder of the golden requests and answers of all models."""
        return self.path("golden")

    def golden(self, name: str) -> str:
        """Return the folder of a model's golden requests and answers."""
        return self.path("golden", name)
