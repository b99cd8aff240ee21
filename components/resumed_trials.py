"""Resume unfinished trials of an Experiment that no longer exists.

A new Experiment draws other parameters, so that none of its trials could continue from these
checkpoints. Instead the step search runs each unfinished trial as a PyTorchJob, with the same name,
parameters and folder, and the run's current settings. These trials count like those of an
Experiment, and end before a new Experiment runs the rest.

resumed.json has the trials that failed. They are not resumed again, unless the settings change or
so many failed that the search failed.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence

from clusters.katib import experiment_of
from clusters.protocol import Cluster
from clusters.trials import common_reasons
from common.errors import ClusterError
from common.records import ResumedRecord, Trial, TrialStatus
from common.run import Run
from components import step
from training.experiment import changeable_parameters, trial_job
from training.finished_trials import UnfinishedTrial, finished_trial, unfinished_trials


def failed_trials(run: Run) -> list[Trial]:
    """Return the resumed trials that failed and count as failed trials of the search."""
    record = ResumedRecord.find(run.folder.resumed)
    if record is None or record.settings != changeable_parameters(run):
        return []
    # At the limit the search has failed. Resuming it then means to try these trials again.
    return record.failed if len(record.failed) < run.config.max_failed_trials else []


def resume_trials(
    run: Run, cluster: Cluster, ended_trials: Sequence[Trial], *, deadline: float
) -> bool:
    """Run the unfinished trials of a run to their ends; return whether there were any.

    Args:
        run: the run.
        cluster: the backend that runs the jobs.
        ended_trials: trials that have ended; together they are at most the run's max_trials.
        deadline: seconds until the search fails.

    Raises:
        ClusterError: too many trials failed, or one could not start.
        DeadlineError: they did not end in time.
    """
    trials = _choose(run, ended_trials)
    if not trials:
        return False
    # A failed Experiment still has its trials, so that their names are in use.
    for experiment in sorted({experiment_of(trial.name) for trial in trials}):
        cluster.delete_experiment(experiment)
    outcome = _Outcome(run, trials)
    jobs = [trial_job(run, trial.name, trial.parameters) for trial in trials]
    try:
        with step.remove_if_stopped(cluster, lambda _: outcome.remove_unfinished(cluster), run.id):
            cluster.run_jobs(
                jobs,
                parallel=run.config.parallel_trials,
                on_end=outcome.note_end,
                deadline=deadline,
                report=step.say,
            )
    except ClusterError as error:
        # The search has failed: stop the other trials, unless another attempt would continue them.
        if not error.retryable and not cluster.resumes:
            outcome.remove_unfinished(cluster)
        raise
    return True


def _choose(run: Run, ended_trials: Sequence[Trial]) -> list[UnfinishedTrial]:
    """Return the trials to resume; print which they are, and why others are left out."""
    remaining = run.config.max_trials - len(ended_trials)
    trials: list[UnfinishedTrial] = []
    for trial in unfinished_trials(run, ended_trials):
        obstacle = trial.obstacle
        if not obstacle and len(trials) >= remaining:
            obstacle = f"the run asks for {run.config.max_trials} trials in all"
        if obstacle:
            step.say(f"trial {trial.name} is unfinished and is not resumed: {obstacle}")
        else:
            trials.append(trial)
    if trials:
        names = ", ".join(f"{trial.name} (epochs trained: {trial.epochs})" for trial in trials)
        step.say(
            f"unfinished trials of an experiment that no longer exists: {names}; each resumes from"
            f" its checkpoint as a job with the current settings, {run.config.parallel_trials} at a"
            " time, before the rest of the search"
        )
    return trials


class _Outcome:
    """The results of resumed trials; each failure is written to resumed.json at once."""

    def __init__(self, run: Run, trials: Sequence[UnfinishedTrial]) -> None:
        self._run = run
        self._trials = {trial.name: trial for trial in trials}
        self._ended_names: set[str] = set()
        before = ResumedRecord.find(run.folder.resumed)
        names = [*(before.names if before else []), *self._trials]
        self._record = ResumedRecord(
            settings=changeable_parameters(run),
            names=list(dict.fromkeys(names)),
            failed=failed_trials(run),
        )
        self._record.save(run.folder.resumed)

    def note_end(self, name: str, reason: str) -> None:
        """Record that a job has ended. Raises ClusterError when max_failed_trials have failed."""
        self._ended_names.add(name)
        status: TrialStatus = "Failed"
        if not reason and finished_trial(self._run, name) is None:
            status = "MetricsUnavailable"
            reason = f"its job succeeded, but {self._run.folder.trial(name)} is not complete"
            step.say(f"trial {name}: {reason}")
        if not reason:
            return
        trial = self._trials[name]
        failure = Trial(
            name=name,
            status=status,
            parameters=trial.parameters,
            metrics={},
            reason=reason,
            started=trial.started,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        failures = [*self._record.failed, failure]
        self._record = dataclasses.replace(self._record, failed=failures)
        self._record.save(self._run.folder.resumed)
        limit = self._run.config.max_failed_trials
        if len(failures) >= limit:
            head = f"the search failed: {len(failures)} resumed trials failed, the limit is {limit}"
            reasons = [f"  {line}" for line in common_reasons(failures)]
            raise ClusterError("\n".join([head, *reasons]))

    def remove_unfinished(self, cluster: Cluster) -> None:
        """Remove the jobs that have not ended; failed jobs stay for inspection."""
        for name in self._trials:
            if name not in self._ended_names:
                cluster.delete_job(name)


def delete_jobs(run: Run, cluster: Cluster) -> None:
    """Remove the jobs of all resumed trials; no error if there are none."""
    record = ResumedRecord.find(run.folder.resumed)
    for name in record.names if record else []:
        cluster.delete_job(name)
