"""search: run the Katib experiment of a run to its end; write search.json, search.html, trials.csv.

A search that has ended is not repeated. It goes on where the run asks for more trials
(`--more-trials`).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from clusters.protocol import Cluster, ExperimentResult, Manifest
from clusters.trials import best_trial
from common import storage
from common.records import Objective, SearchRecord, Trial
from common.run import Run
from components import step
from reporting.search_page import as_csv, markdown, search_page
from training.experiment import OBJECTIVE, experiment
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
    manifest, carried = _what_to_run(run, cluster, earlier)
    name = manifest["metadata"]["name"]
    step.say(f"losses of all trials: tensorboard --logdir {run.folder.trials}")
    with step.watched(cluster, cluster.delete_experiment, name):
        result = cluster.run_experiment(
            manifest, deadline=run.config.deadline_hours * 3600, report=step.say
        )
    record = as_record(run, _joined(manifest, carried, result), carried=len(carried))
    record.save(run.folder.search)
    # Drawn once, for the run's folder and for Kubeflow: figures take seconds.
    page = search_page(record)
    storage.write_text(run.folder.trials_table, as_csv(record))
    storage.write_text(run.folder.search_page, page)
    if run.config.delete_train_experiment:
        cluster.delete_experiment(name)
    _publish(record, page, artifacts)
    return record.optimal


def _is_done(run: Run, earlier: SearchRecord) -> bool:
    """Whether the search has had all trials that the run asks for, and its best weights exist."""
    trials = run.config.max_trials
    asked_before = trials if earlier.asked is None else earlier.asked
    # Fewer trials than asked are enough where the goal, or the end of a grid, ended the search.
    asks_for_more = trials > len(earlier.trials) and trials != asked_before
    return not asks_for_more and storage.exists(run.folder.weights(earlier.optimal))


def _what_to_run(
    run: Run, cluster: Cluster, earlier: SearchRecord | None
) -> tuple[Manifest, list[Trial]]:
    """The experiment to run or to continue, and the trials that count beside its own.

    An experiment that is gone, or that its backend cannot continue, is followed by another one for
    the remaining trials.
    """
    if earlier is None:
        if not cluster.resumes:
            space = for_network(load(run.config.search_space), run.config.network_config)
            for caution in cautions(space, run.config.algorithm):
                step.say(f"note: {caution}")
        return experiment(run), []
    carried = earlier.trials[: earlier.carried]
    if cluster.can_continue(earlier.experiment):
        return experiment(run, carried=len(carried)), carried
    trials = earlier.trials
    step.say(
        f"experiment {earlier.experiment} is gone or cannot go on; another one follows, and"
        f" its algorithm knows nothing of the first {len(trials)} trials"
    )
    cluster.delete_experiment(earlier.experiment)
    return experiment(run, carried=len(trials)), trials


def _joined(
    manifest: Manifest, carried: Sequence[Trial], result: ExperimentResult
) -> ExperimentResult:
    """The result with the trials of earlier experiments in front, and the best of all."""
    if not carried:
        return result
    trials = [*carried, *result.trials]
    best = best_trial(manifest, trials)
    assert best is not None  # an experiment that succeeded has one
    return dataclasses.replace(result, trials=trials, optimal=best.name)


def _publish(record: SearchRecord, page: str, artifacts: step.Artifacts) -> None:
    """Print the result and hand it, with its page, to KFP."""
    best, loss = record.best, record.best_value
    counts = Counter(trial.status for trial in record.trials)
    by_status = {f"trials {status}": count for status, count in counts.items()}
    metrics = {record.objective.name: loss, "trials": len(record.trials), **by_status}
    artifacts.set("metrics", metadata=metrics)
    artifacts.set("trials", content=markdown(record))
    artifacts.set("page", content=page)
    parameters = ", ".join(f"{name} {value}" for name, value in best.parameters.items())
    step.say(
        f"best of {len(record.trials)} trials: {best.name} with {record.objective.name}"
        f" {loss:.5f} ({parameters})"
    )


def as_record(run: Run, result: ExperimentResult, *, carried: int = 0) -> SearchRecord:
    """The content of search.json; the first `carried` trials are of experiments before this one."""
    return SearchRecord(
        experiment=result.name,
        objective=Objective(name=OBJECTIVE),
        algorithm=run.config.algorithm,
        early_stopping=run.config.early_stopping,
        seed=run.config.seed,
        asked=run.config.max_trials,
        carried=carried,
        optimal=result.optimal,
        trials=result.trials,
    )


def main(argv: list[str] | None = None) -> int:
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
