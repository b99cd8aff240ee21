"""Resume the trials that were under way when their Experiment went.

Katib draws other parameters for another Experiment, so that none of its trials can go on from a
checkpoint of these. The search step runs each as a PyTorchJob of its own instead: the same name,
parameters and folder, with the settings that the run has now. They count as the trials of the
Experiment do, and end before another Experiment draws the rest.

resumed.json keeps the failed ones, which a search step that is started again does not try again:
only with other settings, or after so many failures that the search has failed.
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


def failed_resumed(run: Run) -> list[Trial]:
    """The resumed trials that failed, and count as failed ones of the search."""
    record = ResumedRecord.find(run.folder.resumed)
    if record is None or record.settings != changeable_parameters(run):
        return []
    # That many have ended the search: to go on with it means to try them again.
    return record.failed if len(record.failed) < run.config.max_failed_trials else []


def resume_trials(run: Run, cluster: Cluster, known: Sequence[Trial], *, deadline: float) -> bool:
    """Run the unfinished trials of a run to their ends; returns whether there were any.

    known: the trials that have ended. No more are resumed than the run asks for beside them.

    Raises ClusterError if too many failed, or one could not start, and DeadlineError.
    """
    trials = _choose(run, known)
    if not trials:
        return False
    # An Experiment that has failed still has its trials, and would hold their names.
    for experiment in sorted({experiment_of(trial.name) for trial in trials}):
        cluster.delete_experiment(experiment)
    outcome = _Outcome(run, trials)
    jobs = [trial_job(run, trial.name, trial.parameters) for trial in trials]
    try:
        with step.watched(cluster, lambda _: outcome.remove_unfinished(cluster), run.id):
            cluster.run_jobs(
                jobs,
                parallel=run.config.parallel_trials,
                ended=outcome.note_end,
                deadline=deadline,
                report=step.say,
            )
    except ClusterError as error:
        # The search has failed, and nobody waits for the others. Another attempt would go on.
        if not error.retryable and not cluster.resumes:
            outcome.remove_unfinished(cluster)
        raise
    return True


def _choose(run: Run, known: Sequence[Trial]) -> list[UnfinishedTrial]:
    """The trials to resume; says which they are, and why others do not count."""
    left = run.config.max_trials - len(known)
    trials: list[UnfinishedTrial] = []
    for trial in unfinished_trials(run, known):
        obstacle = trial.obstacle
        if not obstacle and len(trials) >= left:
            obstacle = f"the run asks for {run.config.max_trials} trials in all"
        if obstacle:
            step.say(f"trial {trial.name} was under way and does not count: {obstacle}")
        else:
            trials.append(trial)
    if trials:
        names = ", ".join(f"{trial.name} (epochs trained: {trial.epochs})" for trial in trials)
        step.say(
            f"under way when their experiment went: {names}; each resumes from its checkpoint as a"
            f" job of its own with the present settings, {run.config.parallel_trials} at a time,"
            " and the rest of the search follows"
        )
    return trials


class _Outcome:
    """How resumed trials end; each failure is written to resumed.json at once."""

    def __init__(self, run: Run, trials: Sequence[UnfinishedTrial]) -> None:
        self._run = run
        self._trials = {trial.name: trial for trial in trials}
        self._ended: set[str] = set()
        before = ResumedRecord.find(run.folder.resumed)
        names = [*(before.names if before else []), *self._trials]
        self._record = ResumedRecord(
            settings=changeable_parameters(run),
            names=list(dict.fromkeys(names)),
            failed=failed_resumed(run),
        )
        self._record.save(run.folder.resumed)

    def note_end(self, name: str, reason: str) -> None:
        """Note that a job has ended. Raises ClusterError once too many have failed."""
        self._ended.add(name)
        status: TrialStatus = "Failed"
        if not reason and finished_trial(self._run, name) is None:
            status = "MetricsUnavailable"
            reason = f"its job ended well, but {self._run.folder.trial(name)} is not complete"
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
        failed = [*self._record.failed, failure]
        self._record = dataclasses.replace(self._record, failed=failed)
        self._record.save(self._run.folder.resumed)
        limit = self._run.config.max_failed_trials
        if len(failed) >= limit:
            head = f"the search failed: {len(failed)} resumed trials failed, the limit is {limit}"
            reasons = [f"  {line}" for line in common_reasons(failed)]
            raise ClusterError("\n".join([head, *reasons]))

    def remove_unfinished(self, cluster: Cluster) -> None:
        """Remove the jobs that have not ended; a failed one stays to be looked at."""
        for name in self._trials:
            if name not in self._ended:
                cluster.delete_job(name)


def delete_jobs(run: Run, cluster: Cluster) -> None:
    """Remove the jobs of all resumed trials; no error if there are none."""
    record = ResumedRecord.find(run.folder.resumed)
    for name in record.names if record else []:
        cluster.delete_job(name)
