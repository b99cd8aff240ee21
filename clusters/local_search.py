"""Run a Katib Experiment on one machine.

Optuna proposes trials, processes run them, and their metrics are read by Katib's rules.

An interrupted search resumes from its study. Trials that were running start again with the same
names and parameters and resume from their own checkpoints. After a failed search, finished trials
are kept, and trials that failed for a reason that may pass run again. A search that has ended
continues if it is run again with a larger maxTrialCount.
"""

from __future__ import annotations

import collections
import datetime
import time
from pathlib import Path

from clusters import katib
from clusters.local_sampling import Sampling
from clusters.local_study import Proposal, Study, reaches_failure_limit
from clusters.local_trial import RunningTrial
from clusters.processes import is_transient, stop
from clusters.protocol import ExperimentResult, Manifest, Report
from clusters.trials import best_trial, progress_line
from common.errors import ClusterError, DeadlineError
from common.machine import cores
from common.progress import clock
from common.records import Trial, TrialStatus

POLL = 0.2  # seconds
HEARTBEAT = 15.0  # seconds between two lines about trials that are still running
DEFAULT_TRIALS = 30  # limit if there is no maxTrialCount; Katib would never end
DEFAULT_PARALLEL = 3  # Katib's default


class LocalSearch:
    """Runs one Experiment."""

    def __init__(self, manifest: Manifest, *, folder: Path, root: Path, report: Report) -> None:
        """Check the Experiment and open the study in its folder.

        Args:
            manifest: The Experiment.
            folder: Folder of all searches of the run.
            root: Folder with the code, in which commands run.
            report: Called with each line of progress.

        Raises:
            InputError: If Katib would refuse the Experiment.
        """
        katib.check_experiment(manifest)
        self.manifest = _with_defaults(manifest)
        self.spec: Manifest = self.manifest["spec"]
        self.name: str = manifest["metadata"]["name"]
        self.folder = folder / self.name
        self.root = root
        self.report = report
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sampling = Sampling(self.spec)
        self.study = Study(self.manifest, self.folder, report)
        self.running: list[RunningTrial] = []
        self.maximum: int = self.spec["maxTrialCount"]
        if self.sampling.points is not None:
            self.maximum = min(self.maximum, len(self.sampling.points) - self.study.num_dropped)
        self.parallel = self._parallel()
        self._last_line = time.monotonic()
        self._best_name = ""

    def run(self, deadline: float) -> ExperimentResult:
        """Run until all trials have ended or the goal is reached. No process remains.

        Raises:
            ClusterError: If too many trials failed, or none succeeded.
            DeadlineError: After `deadline` seconds.
        """
        end = time.monotonic() + deadline
        if self._is_finished():
            return self._result()
        self.report(
            f"live: optuna-dashboard sqlite:///{self.folder / 'study.db'} (pip install"
            " optuna-dashboard)"
        )
        try:
            self._restart_interrupted()
            while not self._is_finished():
                if time.monotonic() > end:
                    raise DeadlineError(
                        f"experiment {self.name}: {self._progress()} when its {clock(deadline)}"
                        " were over"
                    )
                self._fill()
                self._collect()
                self._heartbeat()
                time.sleep(POLL)
        finally:
            stop(*(process for trial in self.running for process in trial.job.processes.values()))
        # the goal was reached without these
        for trial in self.running:
            self._end(trial, "Killed", "the goal was reached")
        return self._result()

    # ------------------------------------------------------------------------------------- trials

    def _parallel(self) -> int:
        """Return how many trials run at a time: at most one per core."""
        requested: int = self.spec["parallelTrialCount"]
        parallel = max(1, min(requested, cores(), self.maximum))
        if parallel < requested:
            self.report(
                f"{requested} parallel trials are requested; here {parallel} run ({cores()} cores,"
                f" {self.maximum} trials)"
            )
        return parallel

    def _restart_interrupted(self) -> None:
        for proposal in self.study.interrupted_trials():
            self.report(f"{proposal.name}: resumed")
            self._start(proposal)

    def _fill(self) -> None:
        """Start trials up to the number of parallel trials."""
        while len(self.running) < self.parallel and self.study.count() < self.maximum:
            self._start(self.study.propose(self.sampling))

    def _start(self, proposal: Proposal) -> None:
        trial = RunningTrial(
            self.manifest,
            proposal,
            folder=self.folder,
            root=self.root,
            threads=max(1, cores() // self.parallel),
            report=self._say,
        )
        self.running.append(trial)
        parameters = ", ".join(f"{key} {value}" for key, value in proposal.parameters.items())
        self._say(f"{proposal.name} started: {parameters}")

    def _collect(self) -> None:
        """Record trials that have ended, and stop those that early stopping or deadlines end."""
        for trial in list(self.running):
            exit_code = trial.job.poll()
            values = self._record_values(trial)
            if exit_code is not None:
                if full := trial.job.full_disk(exit_code):
                    # The trial counts as interrupted: a resumed search starts it again. The others
                    # would fail in the same way.
                    raise full
                transient = is_transient(exit_code)
                self._end(trial, *trial.outcome(exit_code), transient=transient)
            elif trial.rule and trial.rule.stops(values, self.spec["objective"]["type"]):
                trial.job.stop()
                self._record_values(trial)
                limit = f"{self.spec['objective']['objectiveMetricName']} {trial.rule.value:.5g}"
                reason = f"worse than {limit} after {trial.rule.start_step} epochs"
                self._end(trial, "EarlyStopped", reason)
            elif trial.is_overdue():
                trial.job.stop()
                reason = f"active longer than its deadline of {clock(trial.deadline)}"
                self._end(trial, "Failed", reason)
            else:
                continue
            self.running.remove(trial)
            self._report_best()
            self._say(self._progress())

    def _record_values(self, trial: RunningTrial) -> list[float]:
        """Return the values of the objective so far, in order; add new ones to the study."""
        values = trial.values()
        for index in range(trial.num_recorded, len(values)):
            self.study.record_value(trial.number, index + 1, values[index])
        trial.num_recorded = len(values)
        return values

    def _end(
        self, trial: RunningTrial, status: TrialStatus, reason: str, *, transient: bool = False
    ) -> None:
        self.study.record_end(
            trial.number, status, reason, trial.observations(), transient=transient
        )
        if status != "Succeeded":
            self._say(f"{trial.name}: {status}: {reason}")

    # ---------------------------------------------------------------------------------------- end

    def _is_finished(self) -> bool:
        """Return whether the search is over.

        Raises:
            ClusterError: If too many trials failed.
        """
        trials = self.study.ended_trials()
        if reaches_failure_limit(self.spec, trials):
            error = ClusterError(
                f"experiment {self.name} failed: {self.spec['maxFailedTrialCount']} failed trials"
                f" end the search\n{_reasons(trials)}"
            )
            error.retryable = self.study.has_transient_failures()
            raise error
        return self._reaches_goal(trials) or (not self.running and len(trials) >= self.maximum)

    def _reaches_goal(self, trials: list[Trial]) -> bool:
        goal: float | None = self.spec["objective"].get("goal")
        best = best_trial(self.manifest, trials)
        value = katib.objective_value(self.manifest, best.metrics) if best else None
        if goal is None or value is None:
            return False
        return value <= goal if self.spec["objective"]["type"] == "minimize" else value >= goal

    def _result(self) -> ExperimentResult:
        trials = self.study.ended_trials()
        best = best_trial(self.manifest, trials)
        if best is None:
            raise ClusterError(f"experiment {self.name}: no trial succeeded\n{_reasons(trials)}")
        return ExperimentResult(name=self.name, trials=trials, optimal=best.name)

    # ----------------------------------------------------------------------------------- progress

    def _progress(self) -> str:
        """Return one line of progress, worded as on Kubernetes."""
        running = [
            Trial(name=trial.name, status="Running", parameters={}, metrics={})
            for trial in self.running
        ]
        spec = {**self.spec, "maxTrialCount": self.maximum}
        return progress_line({"spec": spec}, [*self.study.ended_trials(), *running])

    def _heartbeat(self) -> None:
        """Report the losses of running trials if no line was reported for a while."""
        if time.monotonic() - self._last_line <= HEARTBEAT:
            return
        objective = self.spec["objective"]["objectiveMetricName"]
        states = []
        for trial in self.running:
            value = trial.objective_value()
            state = "no value yet" if value is None else f"{objective} {value:.5f}"
            states.append(f"{trial.name[len(self.name) + 1 :]}: {state}")
        self._say(f"running {'; '.join(states)}{self._remaining_time()}")

    def _remaining_time(self) -> str:
        """Estimate the remaining time from the mean duration of trials; empty before the first."""
        ended_trials = [trial for trial in self.study.ended_trials() if trial.finished]
        if not ended_trials:
            return ""
        mean = sum(_duration(trial) for trial in ended_trials) / len(ended_trials)
        elapsed = sum(min(time.monotonic() - trial.start_time, mean) for trial in self.running)
        estimate = (mean * (self.maximum - len(ended_trials)) - elapsed) / self.parallel
        # no estimate for trials that take longer than the mean of the others
        return f"; about {clock(estimate)} left" if estimate > POLL else ""

    def _report_best(self) -> None:
        """Report a new best trial with its parameters."""
        best = best_trial(self.manifest, self.study.ended_trials())
        if best and best.name != self._best_name:
            self._best_name = best.name
            parameters = ", ".join(f"{name} {value}" for name, value in best.parameters.items())
            self._say(f"best so far: {best.name}: {parameters}")

    def _say(self, line: str) -> None:
        self._last_line = time.monotonic()
        self.report(line)


def _with_defaults(manifest: Manifest) -> Manifest:
    """Return the manifest with defaults for counts that it leaves out."""
    spec = {
        "maxTrialCount": DEFAULT_TRIALS,
        "parallelTrialCount": DEFAULT_PARALLEL,
        **manifest["spec"],
    }
    spec.setdefault("maxFailedTrialCount", spec["maxTrialCount"])
    return {**manifest, "spec": spec}


def _reasons(trials: list[Trial]) -> str:
    """Return the three most common reasons, each with its count and its last line."""
    last_lines: collections.Counter[str] = collections.Counter()
    for trial in trials:
        if trial.reason and not trial.counts:
            last_lines[trial.reason.splitlines()[-1]] += 1
    return "\n".join(f"  {count} x {reason}" for reason, count in last_lines.most_common(3))


def _duration(trial: Trial) -> float:
    """Return the duration of a trial that has ended (s)."""
    start = datetime.datetime.fromisoformat(trial.started)
    end = datetime.datetime.fromisoformat(trial.finished)
    return (end - start).total_seconds()
