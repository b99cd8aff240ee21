"""A trial of a local search: the processes of its PyTorchJob, and the metrics that they write."""

from __future__ import annotations

import math
import time
from pathlib import Path

from clusters import katib
from clusters.local_study import Proposal
from clusters.processes import Replicas
from clusters.protocol import Manifest, Report
from common.records import Observation, TrialStatus


class RunningTrial:
    """A running trial: its processes in `<folder>/<trial>`, and its metrics."""

    def __init__(
        self,
        manifest: Manifest,
        proposal: Proposal,
        *,
        folder: Path,
        root: Path,
        threads: int,
        report: Report = lambda line: None,
    ) -> None:
        """Start the processes of the trial, each with `threads` threads."""
        self.number = proposal.number
        self.name = proposal.name
        self.rule = proposal.rule
        self.num_recorded = 0
        """Number of values of the objective that the study has."""
        self._manifest = manifest
        self._objective: str = manifest["spec"]["objective"]["objectiveMetricName"]
        self._metrics = folder / self.name / "metrics.log"
        collector = manifest["spec"].get("metricsCollectorSpec", {}).get("source", {})
        path_in_pod = collector.get("fileSystemPath", {}).get("path", "")
        self.job = Replicas(
            katib.substitute(manifest, proposal.parameters, self.name),
            folder=folder / self.name,
            root=root,
            threads=threads,
            rewrites={path_in_pod: str(self._metrics)} if path_in_pod else {},
            on_restart=self._on_restart,
        )
        self._report = report
        # a trial that resumes writes its earlier epochs again
        self._metrics.unlink(missing_ok=True)
        self.job.start()
        self.start_time = time.monotonic()

    def _on_restart(self, reason: str) -> None:
        self._metrics.unlink(missing_ok=True)
        self._report(f"{self.name}: {reason}; it resumes from its checkpoint")

    @property
    def deadline(self) -> float:
        """Seconds that the job of the trial may take."""
        run_policy = self.job.manifest["spec"].get("runPolicy", {})
        return float(run_policy.get("activeDeadlineSeconds", math.inf))

    def is_overdue(self) -> bool:
        """Return whether the deadline has passed."""
        return time.monotonic() - self.start_time > self.deadline

    def values(self) -> list[float]:
        """Return the values of the objective so far, in order."""
        return katib.values(self._metrics_text(), self._objective)

    def observations(self) -> dict[str, Observation]:
        """Return what Katib's collector would observe in the metrics file now."""
        return katib.observations(self._metrics_text(), katib.metric_names(self._manifest))

    def objective_value(self) -> float | None:
        """Return the objective by Katib's strategy; None before the first metric."""
        return katib.objective_value(self._manifest, self.observations())

    def outcome(self, exit_code: int) -> tuple[TrialStatus, str]:
        """Return status and reason of a trial whose processes have ended by themselves."""
        if exit_code != 0:
            return "Failed", self.job.reason()
        if self.objective_value() is None:
            reason = f"ended well, but its metrics file has no finite '{self._objective}'"
            return "MetricsUnavailable", reason
        return "Succeeded", ""

    def _metrics_text(self) -> str:
        return self._metrics.read_text(errors="replace") if self._metrics.exists() else ""
