"""search: run the Katib experiment of a run to its end; write search.json, search.html, trials.csv.

A search that has ended is not repeated. It goes on where the run asks for more trials
(`--more-trials`). Where another experiment has to follow, the trials under way resume before it.
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
from components.resumed_trials import delete_jobs, failed_resumed, resume_trials
from components.tracked import log_search
from reporting.headline import kubeflow_metrics_of_search, search_lines
from reporting.search_page import as_csv, as_markdown, search_page
from training.experiment import OBJECTIVE, changes, experiment
from training.finished_trials import finished_trials
from training.search_space import cautions, for_network, load


def search(run: Run, artifacts: step.Artifacts) -> str:
    """The name of the best trial.

    Raises ClusterError if the experiment failed, DeadlineError if it took too long.
    """
    earlier = SearchRecord.find(run.folder.search)
    if earlier and _is_done(run, earlier):
        step.say(f"searched before: best trial {earlier.optimal}")
        _publish(earlier, search_page(earlier), artifacts)
        return earlier.optimal
    cluster = step.backend(run)
    end = time.monotonic() + run.config.deadline_hours * 3600
    plan = _what_to_run(run, cluster, earlier, end)
    manifest, carried = plan.manifest, plan.carried
    name = manifest["metadata"]["name"]
    if plan.is_done:
        step.say(f"all {len(carried)} trials have ended before; nothing is left to search")
        result = ExperimentResult(name=name, trials=[], optimal="")
    else:
        step.say(f"losses of all trials: tensorboard --logdir {run.folder.trials}")
        with step.watched(cluster, cluster.delete_experiment, name):
            result = cluster.run_experiment(
                manifest, deadline=end - time.monotonic(), report=step.say
            )
    record = as_record(run, manifest, *_joined(manifest, carried, result))
    record.save(run.folder.search)
    # Drawn once, for the run's folder and for Kubeflow: figures take seconds.
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
    """Whether the search has had all trials that the run asks for, and its best weights exist."""
    trials = run.config.max_trials
    asked_before = trials if earlier.asked is None else earlier.asked
    # Fewer trials than asked are enough where the goal, or the end of a grid, ended the search.
    asks_for_more = trials > len(earlier.trials) and trials != asked_before
    return not asks_for_more and storage.exists(run.folder.weights(earlier.optimal))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is left of a search."""

    manifest: Manifest
    carried: list[Trial]
    """The trials that count beside those of the experiment."""
    is_done: bool = False
    """Whether the carried trials are all, so that the experiment is not run."""


def _what_to_run(run: Run, cluster: Cluster, earlier: SearchRecord | None, end: float) -> _Plan:
    """The experiment to run or to continue, and the trials that count beside its own.

    An experiment that is gone, or that its backend cannot continue, is followed by another one for
    the remaining trials. The trials that it left under way are resumed here, before the time `end`
    of time.monotonic().
    """
    name = _experiment_to_go_on(run, cluster, earlier)
    trials, failed = _trials_before(run, earlier)
    if name:
        others = [trial for trial in trials if not _is_of(trial.name, name, cluster)]
        failed &= {trial.name for trial in others}
        manifest = experiment(
            run,
            carried=len(others),
            failed=len(failed),
            name=name,
            reproducible=cluster.resumes,
        )
        return _Plan(manifest=manifest, carried=others)

    if not _is_enough(run, trials) and resume_trials(
        run, cluster, trials, deadline=end - time.monotonic()
    ):
        trials, failed = _trials_before(run, earlier)
    if earlier is None and not trials and not cluster.resumes:
        _say_cautions(run)
    manifest = experiment(
        run, carried=len(trials), failed=len(failed), reproducible=cluster.resumes
    )
    is_done = _is_enough(run, trials)
    if trials and not is_done:
        _say_what_follows(run, trials)
    if earlier:
        cluster.delete_experiment(earlier.experiment)
    return _Plan(manifest=manifest, carried=trials, is_done=is_done)


def _trials_before(run: Run, earlier: SearchRecord | None) -> tuple[list[Trial], set[str]]:
    """The trials that have ended, and the names of those that failed after they were resumed.

    No record has the trials of an experiment whose launcher was lost; the storage has them.
    """
    trials = list(earlier.trials) if earlier else []
    known = {trial.name for trial in trials}
    failed = set()
    for trial in [*finished_trials(run, step.say), *failed_resumed(run)]:
        if trial.name not in known:
            known.add(trial.name)
            trials.append(trial)
            if not trial.counts:
                failed.add(trial.name)
    return trials, failed


def _is_of(trial: str, experiment: str, cluster: Cluster) -> bool:
    """Whether a trial belongs to an experiment that goes on.

    On one machine the trials of an experiment that was run again are named NAME-2-000.
    """
    again = cluster.resumes and trial.startswith(f"{experiment}-")
    return again or experiment_of(trial) == experiment


def _is_enough(run: Run, trials: Sequence[Trial]) -> bool:
    """Whether trials are all that the run asks for, or reach its goal, which ends a search."""
    manifest = experiment(run)
    best = best_trial(manifest, trials)
    if best is None:
        return False
    value = objective_value(manifest, best)
    assert value is not None  # the best trial counts
    goal = run.config.goal
    return len(trials) >= run.config.max_trials or (goal != NONE and value <= float(goal))


def _experiment_to_go_on(run: Run, cluster: Cluster, earlier: SearchRecord | None) -> str:
    """The name of the run's experiment that still exists and goes on; empty if none does.

    One that search.json records has been read to its end: it must take more trials. One that was
    made with other parameters is removed, where its backend does not let them change.
    """
    for name, annotations in cluster.experiments(run.id).items():
        recorded = earlier is not None and earlier.experiment == name
        if recorded and not cluster.can_continue(name):
            continue
        changed = changes(run, annotations)
        if not changed:
            return name
        step.say(
            f"experiment {name} was made with other parameters, and Katib does not let them change"
            f" ({'; '.join(changed)}): it is removed, its trials under way resume from their"
            " checkpoints, and another one follows for the rest"
        )
        cluster.delete_experiment(name)
        return ""
    return ""


def _say_cautions(run: Run) -> None:
    """Say what a cluster does with the algorithm other than the search space asks for."""
    space = for_network(load(run.config.search_space), run.config.network_config)
    for caution in cautions(space, run.config.algorithm):
        step.say(f"note: {caution}")


def _say_what_follows(run: Run, trials: Sequence[Trial]) -> None:
    """Say that earlier trials count, and what the algorithm knows of them."""
    algorithm = algorithms.offered(run.config.algorithm)
    knows = ""  # random needs no earlier trials
    if algorithm.learns:
        knows = f"; {algorithm.name} learns from trials, and starts without these"
    elif algorithm.plan == "sequence":
        knows = f"; {algorithm.name} would begin anew, so that the rest is drawn at random"
    elif algorithm.plan == "grid":
        knows = f"; {algorithm.name} starts at its first point, so that some may come again"
    step.say(
        f"{len(trials)} trials of this run have ended and count; their experiment is gone or cannot"
        f" go on, and another one follows for the rest{knows}"
    )


def _joined(
    manifest: Manifest, carried: Sequence[Trial], result: ExperimentResult
) -> tuple[ExperimentResult, int]:
    """The result with the trials of earlier experiments in front, and the best of all.

    Also how many these are.
    """
    own = {trial.name for trial in result.trials}
    others = [trial for trial in carried if trial.name not in own]
    if not others:
        return result, 0
    trials = [*others, *result.trials]
    best = best_trial(manifest, trials)
    assert best is not None  # an experiment that succeeded has one
    return dataclasses.replace(result, trials=trials, optimal=best.name), len(others)


def _publish(record: SearchRecord, page: str, artifacts: step.Artifacts) -> None:
    """Print the result and hand it, with its page, to KFP."""
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


def as_record(run: Run, manifest: Manifest, result: ExperimentResult, carried: int) -> SearchRecord:
    """The content of search.json; the first `carried` trials are of experiments before this one."""
    setting = algorithms.offered(run.config.algorithm).seed_setting
    names = [one["name"] for one in manifest["spec"]["algorithm"]["algorithmSettings"]]
    return SearchRecord(
        experiment=result.name,
        objective=Objective(name=OBJECTIVE),
        algorithm=run.config.algorithm,
        early_stopping=run.config.early_stopping,
        seed=run.config.seed_number if setting in names else None,
        asked=run.config.max_trials,
        carried=carried,
        optimal=result.optimal,
        trials=result.trials,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = step.parser("search", __doc__)
    parser.add_argument(
        "--best-trial-output", default="", help="file that gets the best trial's name"
    )
    args = parser.parse_args(argv)

    def body(run: Run) -> None:
        step.write_output(args.best_trial_output, search(run, step.Artifacts(args.executor_input)))

    return step.main("search", args, body)


if __name__ == "__main__":
    raise SystemExit(main())
