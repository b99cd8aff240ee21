"""search: run the Katib experiment of a run to its end; write search.json, search.html, trials.csv.

A finished search is not repeated, but continued if the run asks for more trials (`--more-trials`).
If that needs a new experiment, unfinished trials of the old one are resumed first.
"""

import dataclasses
import time
from collections.abc import Sequence

from clusters.katib import experiment_of
from clusters.protocol import Cluster, ExperimentResult, Manifest
from clusters.trials import best_trial, objective_value
from common import algorithms, storage
from common.config import NONE
from common.records import Objective, SearchRecord, Trial
from common.run import Run
from components import step
from components.resumed_trials import delete_jobs, failed_trials, resume_trials
from components.tracked import log_search
from reporting.headline import kubeflow_metrics_of_search, search_lines
from reporting.search_page import as_csv, as_markdown, search_page
from training.experiment import OBJECTIVE, changes, experiment
from training.finished_trials import finished_trials
from training.search_space import cautions, for_network, load


def search(run: Run, artifacts: step.Artifacts) -> str:
    """Run or continue the search; return the name of the best trial.

    Raises ClusterError if the experiment failed, DeadlineError if it took longer than
    --deadline-hours.
    """
    earlier = SearchRecord.find(run.folder.search)
    if earlier and _is_done(run, earlier):
        step.say(f"the search has already ended: best trial {earlier.optimal}")
        _publish(earlier, search_page(earlier), artifacts)
        return earlier.optimal
    cluster = step.backend(run)
    end = time.monotonic() + run.config.deadline_hours * 3600
    plan = _plan(run, cluster, earlier, end)
    manifest, earlier_trials = plan.manifest, plan.earlier_trials
    name = manifest["metadata"]["name"]
    if plan.is_done:
        step.say(f"all {len(earlier_trials)} trials have already ended; no trial remains to be run")
        result = ExperimentResult(name=name, trials=[], optimal="")
    else:
        step.say(f"losses of all trials: tensorboard --logdir {run.folder.trials}")
        with step.remove_if_stopped(cluster, cluster.delete_experiment, name):
            result = cluster.run_experiment(
                manifest, deadline=end - time.monotonic(), report=step.say
            )
    record = as_record(run, manifest, *_merge(manifest, earlier_trials, result))
    record.save(run.folder.search)
    # Drawn once for the run's folder and Kubeflow, because the figures take seconds.
    page = search_page(record)
    storage.write_text(run.folder.trials_table, as_csv(record))
    storage.write_text(run.folder.search_page, page)
    log_search(run, record)
    if run.config.delete_train_experiment:
        cluster.delete_experiment(name)
        delete_jobs(run, cluster)
    _publish(record, page, artifacts)
    return record.optimal


def _is_done(run: Run, earlier: SearchRecord) -> bool:
    """Return whether the search has all trials that the run asks for, and its best weights."""
    trials = run.config.max_trials
    earlier_max = trials if earlier.asked is None else earlier.asked
    # A search that reached its goal, or the end of a grid, is complete with fewer trials.
    asks_for_more = trials > len(earlier.trials) and trials != earlier_max
    return not asks_for_more and storage.exists(run.folder.weights(earlier.optimal))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """The experiment to run, and the trials that have ended before."""

    manifest: Manifest
    earlier_trials: list[Trial]
    """Trials outside of the experiment that count for the search."""
    is_done: bool = False
    """Whether the earlier trials are enough, so that the experiment is not run."""


def _plan(run: Run, cluster: Cluster, earlier: SearchRecord | None, end: float) -> _Plan:
    """Return the experiment to run or continue, and the earlier trials that count.

    If the run's experiment no longer exists, or its backend cannot continue it, a new one runs the
    remaining trials. Unfinished trials of the old one are resumed here, until `end` (a time of
    time.monotonic()).
    """
    name = _experiment_to_continue(run, cluster, earlier)
    trials, failed_names = _trials_before(run, earlier)
    if name:
        others = [trial for trial in trials if not _is_of(trial.name, name, cluster)]
        failed_names &= {trial.name for trial in others}
        manifest = experiment(
            run,
            earlier_trials=len(others),
            earlier_failures=len(failed_names),
            name=name,
            reproducible=cluster.resumes,
        )
        return _Plan(manifest=manifest, earlier_trials=others)

    if not _is_enough(run, trials) and resume_trials(
        run, cluster, trials, deadline=end - time.monotonic()
    ):
        trials, failed_names = _trials_before(run, earlier)
    if earlier is None and not trials and not cluster.resumes:
        _say_cautions(run)
    manifest = experiment(
        run,
        earlier_trials=len(trials),
        earlier_failures=len(failed_names),
        reproducible=cluster.resumes,
    )
    is_done = _is_enough(run, trials)
    if trials and not is_done:
        _say_what_follows(run, trials)
    if earlier:
        cluster.delete_experiment(earlier.experiment)
    return _Plan(manifest=manifest, earlier_trials=trials, is_done=is_done)


def _trials_before(run: Run, earlier: SearchRecord | None) -> tuple[list[Trial], set[str]]:
    """Return the trials that have ended, and the names of those that failed after a resume.

    They come from search.json and, for an experiment whose step was killed, from the trials'
    folders.
    """
    trials = list(earlier.trials) if earlier else []
    names = {trial.name for trial in trials}
    failed_names = set()
    for trial in [*finished_trials(run, step.say), *failed_trials(run)]:
        if trial.name not in names:
            names.add(trial.name)
            trials.append(trial)
            if not trial.counts:
                failed_names.add(trial.name)
    return trials, failed_names


def _is_of(trial: str, experiment: str, cluster: Cluster) -> bool:
    """Return whether a trial belongs to an experiment.

    On one machine the trials of an experiment's second run are named NAME-2-000.
    """
    again = cluster.resumes and trial.startswith(f"{experiment}-")
    return again or experiment_of(trial) == experiment


def _is_enough(run: Run, trials: Sequence[Trial]) -> bool:
    """Return whether the trials are as many as the run asks for, or one reaches its goal."""
    manifest = experiment(run)
    best = best_trial(manifest, trials)
    if best is None:
        return False
    value = objective_value(manifest, best)
    assert value is not None  # the best trial counts
    goal = run.config.goal
    return len(trials) >= run.config.max_trials or (goal != NONE and value <= float(goal))


def _experiment_to_continue(run: Run, cluster: Cluster, earlier: SearchRecord | None) -> str:
    """Return the name of the run's experiment that can be continued; empty if there is none.

    A finished experiment (in search.json) must be able to take more trials. An experiment with
    other parameters, which its backend cannot change, is removed.
    """
    for name, annotations in cluster.experiments(run.id).items():
        is_recorded = earlier is not None and earlier.experiment == name
        if is_recorded and not cluster.can_continue(name):
            continue
        differences = changes(run, annotations)
        if not differences:
            return name
        step.say(
            f"experiment {name} has other parameters, which Katib cannot change"
            f" ({'; '.join(differences)}): it is removed, its unfinished trials resume from their"
            " checkpoints, and a new experiment runs the rest"
        )
        cluster.delete_experiment(name)
        return ""
    return ""


def _say_cautions(run: Run) -> None:
    """Print how Katib's algorithm departs from the search space."""
    space = for_network(load(run.config.search_space), run.config.network_config)
    for caution in cautions(space, run.config.algorithm):
        step.say(f"note: {caution}")


def _say_what_follows(run: Run, trials: Sequence[Trial]) -> None:
    """Print that earlier trials count, and whether the algorithm uses them."""
    algorithm = algorithms.find_offered(run.config.algorithm)
    note = ""  # random needs no earlier trials
    if algorithm.learns:
        note = f"; {algorithm.name} learns from trials, but starts without these"
    elif algorithm.plan == "sequence":
        note = f"; {algorithm.name} would start again, so that the rest is drawn at random"
    elif algorithm.plan == "grid":
        note = f"; {algorithm.name} starts at its first point, so that some may be repeated"
    step.say(
        f"{len(trials)} trials of this run have ended and count; their experiment cannot be"
        f" continued, and a new one runs the rest{note}"
    )


def _merge(
    manifest: Manifest, earlier_trials: Sequence[Trial], result: ExperimentResult
) -> tuple[ExperimentResult, int]:
    """Return the result with the earlier trials in front and the best of all, and their number."""
    own = {trial.name for trial in result.trials}
    others = [trial for trial in earlier_trials if trial.name not in own]
    if not others:
        return result, 0
    trials = [*others, *result.trials]
    best = best_trial(manifest, trials)
    assert best is not None  # an experiment that succeeded has one
    return dataclasses.replace(result, trials=trials, optimal=best.name), len(others)


def _publish(record: SearchRecord, page: str, artifacts: step.Artifacts) -> None:
    """Print the result and publish it, with its page, as KFP artifacts."""
    best, loss = record.best, record.best_value
    artifacts.set(
        "search_metrics", metadata=kubeflow_metrics_of_search(record), content=search_lines(record)
    )
    artifacts.set("trials", content=as_markdown(record))
    artifacts.set("search_report", content=page)
    parameters = ", ".join(f"{name} {value}" for name, value in best.parameters.items())
    step.say_result(
        f"best of {len(record.trials)} trials: {best.name} with {record.objective.name}"
        f" {loss:.5f} ({parameters})"
    )


def as_record(
    run: Run, manifest: Manifest, result: ExperimentResult, num_earlier: int
) -> SearchRecord:
    """Return the content of search.json; `num_earlier` trials come from earlier experiments."""
    setting = algorithms.find_offered(run.config.algorithm).seed_setting
    names = [entry["name"] for entry in manifest["spec"]["algorithm"]["algorithmSettings"]]
    return SearchRecord(
        experiment=result.name,
        objective=Objective(name=OBJECTIVE),
        algorithm=run.config.algorithm,
        early_stopping=run.config.early_stopping,
        seed=run.config.seed_number if setting in names else None,
        asked=run.config.max_trials,
        carried=num_earlier,
        optimal=result.optimal,
        trials=result.trials,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = step.parser("search", __doc__)
    parser.add_argument(
        "--best-trial-output",
        type=str,
        default="",
        metavar="FILE",
        help="file to write the best trial's name to",
    )
    args = parser.parse_args(argv)

    def body(run: Run) -> None:
        """Run `search` and write its output."""
        step.write_output(args.best_trial_output, search(run, step.Artifacts(args.executor_input)))

    return step.main("search", args, body)


if __name__ == "__main__":
    raise SystemExit(main())
