"""A Katib Experiment on a cluster: create, adopt or extend it, watch it, and read its result."""

from __future__ import annotations

import dataclasses
import time

from clusters.api import EXPERIMENT, TRIAL
from clusters.kubernetes_job import replicas_of
from clusters.kubernetes_objects import (
    JOB_LABEL,
    REMOVAL_SECONDS,
    SUGGESTION_LABEL,
    TRIALS_LABEL,
    Objects,
)
from clusters.pods import PodDiagnostics
from clusters.protocol import RUN_LABEL, ExperimentResult, Manifest, Report
from clusters.reasons import is_true, message_of, name_of, reason_of
from clusters.trials import (
    FAILED,
    UNFINISHED,
    best_trial,
    common_reasons,
    optimal_trial,
    progress_line,
    status_of,
    trial_of,
)
from clusters.waiting import Wait, ignore
from common.errors import ClusterError
from common.records import Trial

NUM_EXAMPLES = 3  # failed trials whose last log lines an error shows
# fields that Katib allows to change in an experiment
EDITABLE = ("parallelTrialCount", "maxTrialCount", "maxFailedTrialCount")
GOAL_REACHED = "the goal was reached"
OBSERVATION_SECONDS = 20.0  # Katib takes about a second from the end of a trial to its metrics


class ExperimentRun:
    """One Experiment, from its creation to its end."""

    def __init__(
        self,
        objects: Objects,
        manifest: Manifest,
        *,
        patience: float,
        deadline: float,
        report: Report,
    ) -> None:
        """Prepare the run; nothing is sent yet. Times are in seconds."""
        self._objects = objects
        self._api = objects.api
        self._manifest = manifest
        self._name = name_of(manifest)
        self._report = report
        self._observation_deadline: float | None = None
        self._wait = Wait(f"experiment {self._name}", deadline, report)
        self._diagnostics = PodDiagnostics(
            self._api,
            self._wait,
            JOB_LABEL,
            patience=patience,
            replicas=replicas_of(manifest["spec"]["trialTemplate"]["trialSpec"]["spec"]),
        )
        self._suggestions = PodDiagnostics(
            self._api,
            self._wait,
            SUGGESTION_LABEL,
            patience=patience,
            topic="the algorithm of ",
            # Katib names the Deployment of the algorithm EXPERIMENT-ALGORITHM
            replica_set=manifest["spec"]["algorithm"]["algorithmName"],
        )

    def run(self) -> ExperimentResult:
        """Run the experiment to its end, or continue with the existing one of this run.

        Raises:
            ClusterError: If it failed, with the reasons of its trials.
            DeadlineError: At the deadline.
        """
        self._submit()
        while True:
            experiment = self._objects.existing(EXPERIMENT, self._name, self._wait)
            trials = self._read_trials()
            waiting = self._explain_trials(trials)
            self._explain_suggestions(experiment, trials)
            self._report_trials(experiment, trials)
            self._wait.tell("state", progress_line(experiment, trials, waiting))
            if is_true(experiment, "Failed"):
                # Katib does not stop the other trials (seen with 0.19.0), which occupy GPUs.
                failure = self._failure(experiment, trials)
                self._remove_unfinished(trials, "the search failed")
                raise ClusterError(failure)
            has_succeeded = is_true(experiment, "Succeeded") and not _was_extended(experiment)
            if has_succeeded and not self._awaits_observation(trials):
                result = self._result(experiment, self._remove_unfinished(trials, GOAL_REACHED))
                self._objects.release(EXPERIMENT, self._name, self._wait)
                return result
            self._wait.sleep(self._objects.poll)

    # Submit
    # --------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Create the experiment, adopt the one of this run, or replace it if it failed."""
        if self._objects.find(EXPERIMENT, self._name, self._wait) is None:
            # One of this name may have been deleted a moment ago, by `finish` or with its workflow.
            self._objects.wait_for_dependents(
                EXPERIMENT, self._name, self._wait, wait_for_algorithm=True
            )
        existing = self._objects.submit_with_owner(EXPERIMENT, self._manifest, self._wait)
        if existing is None:
            return
        if is_true(existing, "Failed"):
            # Katib cannot restart it, so it is replaced
            self._report(f"experiment {self._name} failed before; it is removed and run again")
            self._objects.remove([(EXPERIMENT, self._name)], self._wait, wait_for_algorithm=True)
            self._objects.submit_with_owner(EXPERIMENT, self._manifest, self._wait)
        else:
            self._extend(existing)

    def _extend(self, existing: Manifest) -> None:
        """Let an existing experiment continue with the numbers of trials of this manifest."""
        while changes := self._changes(existing):
            before = existing["spec"].get("maxTrialCount", 0)
            if not is_extensible(existing):
                why = message_of(existing, "Succeeded")
                raise ClusterError(
                    f"experiment {self._name} has ended and accepts no more trials ({why}); resume"
                    f" the run with --max-trials {before}, and then give it more by --more-trials"
                )
            new_experiment = {**existing, "spec": {**existing["spec"], **changes}}
            if self._api.replace(EXPERIMENT, new_experiment, self._wait):
                text = f"experiment {self._name} goes on"
                if "maxTrialCount" in changes:
                    text += f" from {before} to {changes['maxTrialCount']} trials"
                others = [
                    f"{key} {value}" for key, value in changes.items() if key != "maxTrialCount"
                ]
                self._wait.tell("submit", ", ".join([text, *others]))
                return
            # it was changed between read and write
            existing = self._objects.existing(EXPERIMENT, self._name, self._wait)

    def _changes(self, existing: Manifest) -> dict[str, int]:
        """Return the editable fields of this manifest that differ from an existing experiment.

        An experiment that has ended changes only to get more trials. For one that runs, Katib
        refuses changes after which it could create no further trial (katib v0.19.0
        pkg/webhook/v1beta1/experiment/validator/validator.go:133).
        """
        spec = self._manifest["spec"]
        max_trials, old_max_trials = (
            spec.get("maxTrialCount", 0),
            existing["spec"].get("maxTrialCount", 0),
        )
        if max_trials <= old_max_trials:
            num_trials = existing.get("status", {}).get("trials", 0)
            if is_true(existing, "Succeeded") or num_trials >= old_max_trials:
                return {}
            max_trials = max(max_trials, num_trials + 1)
        numbers = {key: spec[key] for key in EDITABLE if key in spec} | {
            "maxTrialCount": max_trials
        }
        return {key: value for key, value in numbers.items() if existing["spec"].get(key) != value}

    # Watch
    # --------------------------------------------------------------------------------------------

    def _read_trials(self) -> list[Trial]:
        """Return the trials in the order of their creation.

        Failed trials get the reason from their pods, which is remembered when the pods are gone.
        """
        selector = f"{TRIALS_LABEL}={self._name}"
        objects = self._api.list_objects(TRIAL, selector, self._wait)
        objects.sort(
            key=lambda trial: (trial["metadata"].get("creationTimestamp", ""), name_of(trial))
        )
        failed_names = [name_of(trial) for trial in objects if status_of(trial) == "Failed"]
        self._diagnostics.read_pods_of(failed_names)
        trials = []
        for trial in objects:
            ending = (
                self._diagnostics.ending(name_of(trial)) if name_of(trial) in failed_names else None
            )
            trials.append(trial_of(trial, ending.reason() if ending else ""))
        return trials

    def _explain_trials(self, trials: list[Trial]) -> int:
        """Report why trials wait whose pods have not started.

        Returns:
            The number of such trials that Katib calls running.
        """
        active = [trial for trial in trials if trial.status in UNFINISHED]
        pods = self._diagnostics.look([trial.name for trial in active])
        for trial in trials:
            if trial.status not in UNFINISHED:
                self._diagnostics.settle(trial.name)
        if pods is None:
            return 0
        waiting = 0
        for trial in active:
            held_up = self._diagnostics.explain(trial.name, pods[trial.name])
            if held_up and trial.status == "Running":
                waiting += 1
        return waiting

    def _explain_suggestions(self, experiment: Manifest, trials: list[Trial]) -> None:
        """Report why the pod of the algorithm waits while no trial is active.

        Without that pod Katib waits and reports nothing.
        """
        if any(trial.status in UNFINISHED for trial in trials):
            self._suggestions.settle(self._name)
        elif pods := self._suggestions.look([self._name]):
            since = experiment["metadata"].get("creationTimestamp", "")
            self._suggestions.explain(self._name, pods[self._name], since)

    def _report_trials(self, experiment: Manifest, trials: list[Trial]) -> None:
        """Report a new best trial, and each failed trial with the last lines of its log."""
        if best := best_trial(experiment, trials):
            parameters = ", ".join(f"{name} {value}" for name, value in best.parameters.items())
            self._wait.tell("best", f"best so far: {best.name}: {parameters}")
        for trial in trials:
            if trial.status in FAILED:
                lines = [f"trial {trial.name}: {trial.reason}"]
                ending = self._diagnostics.ending(trial.name)
                if ending and trial.status == "Failed":
                    lines.append(ending.text())
                self._wait.tell(f"failed {trial.name}", "\n".join(lines))

    # End
    # --------------------------------------------------------------------------------------------

    def _awaits_observation(self, trials: list[Trial]) -> bool:
        """Return whether Katib has yet to observe the metrics of a trial that was stopped early.

        Katib marks a trial, and with its last one the experiment, before it reads the metrics (seen
        with 0.19.0). This wait ends after OBSERVATION_SECONDS.
        """
        if all(trial.metrics for trial in trials if trial.status == "EarlyStopped"):
            return False
        if self._observation_deadline is None:
            self._observation_deadline = time.monotonic() + OBSERVATION_SECONDS
        return time.monotonic() < self._observation_deadline

    def _remove_unfinished(self, trials: list[Trial], reason: str) -> list[Trial]:
        """Delete trials that still run after the end of their experiment; they get status Killed.

        Katib does not stop them, and they would occupy GPUs.
        """
        result = []
        for trial in trials:
            if trial.status in UNFINISHED:
                self._api.delete(TRIAL, trial.name, self._wait)
                self._wait.tell(f"killed {trial.name}", f"trial {trial.name} is removed: {reason}")
                result.append(dataclasses.replace(trial, status="Killed", reason=reason))
            else:
                result.append(trial)
        return result

    def _result(self, experiment: Manifest, trials: list[Trial]) -> ExperimentResult:
        optimal = optimal_trial(experiment, trials)
        if optimal is None:
            head = f"experiment {self._name} ended without one successful trial (of {len(trials)})"
            raise ClusterError("\n".join([head, *self._trial_reasons(trials)]))
        return ExperimentResult(name=self._name, trials=trials, optimal=optimal.name)

    def _failure(self, experiment: Manifest, trials: list[Trial]) -> str:
        """Return Katib's message, the number of failed trials and their reasons."""
        num_failed = sum(trial.status in FAILED for trial in trials)
        count = f"{num_failed} of {len(trials)} trials failed"
        limit = experiment["spec"].get("maxFailedTrialCount")
        if limit is not None:
            count += f", the limit is {limit}"
        head = f"experiment {self._name} failed: {message_of(experiment, 'Failed')} ({count})"
        return "\n".join([head, *self._trial_reasons(trials)])

    def _trial_reasons(self, trials: list[Trial]) -> list[str]:
        """Return the most common reasons, then the last log lines of example trials."""
        examples = {
            trial.reason: self._diagnostics.ending(trial.name)
            for trial in reversed(trials)
            if not trial.counts
        }
        endings = [ending.text() for ending in examples.values() if ending]
        return [f"  {line}" for line in common_reasons(trials)] + endings[-NUM_EXAMPLES:]


def can_continue(objects: Objects, name: str) -> bool:
    """Return whether an experiment of this name exists and accepts further trials."""
    wait = Wait(f"experiment {name}", REMOVAL_SECONDS, ignore)
    experiment = objects.find(EXPERIMENT, name, wait)
    return (
        experiment is not None and not is_true(experiment, "Failed") and is_extensible(experiment)
    )


def delete_unfinished(objects: Objects, run_id: str, wait: Wait) -> list[str]:
    """Delete experiments of a run that have not ended, and trials that outlived theirs.

    Waits until the experiments are gone.

    Returns:
        'Kind/name' of each deleted object.

    Raises:
        DeadlineError: If experiments remain at the deadline.
    """
    things, names = [], []
    for experiment in objects.api.list_objects(EXPERIMENT, f"{RUN_LABEL}={run_id}", wait):
        name = name_of(experiment)
        if not _has_ended(experiment):
            things.append((EXPERIMENT, name))
            continue
        for trial in objects.api.list_objects(TRIAL, f"{TRIALS_LABEL}={name}", wait):
            if status_of(trial) in UNFINISHED and objects.api.delete(TRIAL, name_of(trial), wait):
                names.append(f"{TRIAL.name}/{name_of(trial)}")
    return names + objects.remove(things, wait)


def _has_ended(experiment: Manifest) -> bool:
    if is_true(experiment, "Failed"):
        return True
    return is_true(experiment, "Succeeded") and not _was_extended(experiment)


def of_run(objects: Objects, run_id: str) -> dict[str, dict[str, str]]:
    """Return the annotations of a run's experiments that have not failed, by name, newest first."""
    wait = Wait(f"the experiments of run {run_id}", REMOVAL_SECONDS, ignore)
    experiments = objects.api.list_objects(EXPERIMENT, f"{RUN_LABEL}={run_id}", wait)
    experiments.sort(
        key=lambda experiment: (experiment["metadata"]["creationTimestamp"], name_of(experiment)),
        reverse=True,
    )
    annotations = {}
    for experiment in experiments:
        is_going = experiment["metadata"].get("deletionTimestamp") is not None
        if not is_going and not is_true(experiment, "Failed"):
            annotations[name_of(experiment)] = experiment["metadata"].get("annotations") or {}
    return annotations


def is_extensible(experiment: Manifest) -> bool:
    """Return whether Katib lets an experiment continue with more trials.

    It does so while the experiment runs, and if it ended because it had all of its trials.
    """
    if not is_true(experiment, "Succeeded"):
        return True
    never = experiment["spec"].get("resumePolicy", "Never") == "Never"
    return not never and _had_all_trials(experiment)


def _had_all_trials(experiment: Manifest) -> bool:
    return reason_of(experiment, "Succeeded") == "ExperimentMaxTrialsReached"


def _was_extended(experiment: Manifest) -> bool:
    """Return whether a succeeded experiment was just extended, which Katib has not noticed yet.

    The comparison uses Katib's own count, which is as old as its conditions. Trials listed a moment
    later may include new ones.
    """
    max_trials = experiment["spec"].get("maxTrialCount", 0)
    return _had_all_trials(experiment) and experiment["status"].get("trials", 0) < max_trials
