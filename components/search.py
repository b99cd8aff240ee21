"""search: run the Katib experiment of a run to its end and write search.json, search.html and
trials.csv.

A search that has ended is not repeated; it goes on where the run is asked for again with more
trials (`--more-trials`).
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clusters.protocol import Cluster, ExperimentResult, Manifest, Observation, Trial
from clusters.trials import best_trial
from common import storage
from common.run import Run
from components import step
from reporting.search_page import as_csv, markdown, search_page
from training.experiment import OBJECTIVE, experiment
from training.search_space import cautions, for_network, load


def component(image: str) -> Any:
    """The KFP component. Outputs: the best trial's name, the best loss and counts as metrics, the
    trials as a table and as a page.
    """
    from kfp import dsl

    def search(
        run: str,
        s3_endpoint: str,
        job_id: str,
        best_trial: dsl.OutputPath(str),
        metrics: dsl.Output[dsl.Metrics],
        trials: dsl.Output[dsl.Markdown],
        page: dsl.Output[dsl.HTML],
    ) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.search"],
            args=[
                "--run",
                run,
                "--s3-endpoint",
                s3_endpoint,
                "--job-id",
                job_id,
                "--best-trial-output",
                best_trial,
                "--executor-input",
                "{{$}}",
            ],
        )

    return dsl.container_component(search)


def search(run: Run, artifacts: step.Artifacts) -> str:
    """The name of the best trial.

    Raises ClusterError if the experiment failed, DeadlineError if it took too long.
    """
    earlier = storage.find_json(run.path("search.json"))
    if earlier and _is_done(run, earlier):
        step.say(f"searched before: best trial {earlier['optimal']}")
        _publish(earlier, artifacts)
        return earlier["optimal"]
    cluster = step.home(run)
    manifest, carried = _what_to_run(run, cluster, earlier)
    name = manifest["metadata"]["name"]
    step.say(f"losses of all trials: tensorboard --logdir {run.path('trials')}")
    with step.watched(cluster, cluster.delete_experiment, name):
        result = cluster.run_experiment(
            manifest, deadline=run.config.deadline_hours * 3600, report=step.say
        )
    record = as_record(run, _joined(manifest, carried, result), carried=len(carried))
    storage.write_json(run.path("search.json"), record)
    storage.write_text(run.path("trials.csv"), as_csv(record))
    storage.write_text(run.path("search.html"), search_page(record))
    if run.config.delete_train_experiment:
        cluster.delete_experiment(name)
    _publish(record, artifacts)
    return record["optimal"]


def _is_done(run: Run, earlier: dict[str, Any]) -> bool:
    """Whether the search has ended with all trials that it is asked for now, and its best
    checkpoint is there.
    """
    asked = run.config.max_trials
    # the goal or a grid may have ended it before
    more = asked > len(earlier["trials"]) and asked != earlier.get("asked", asked)
    return not more and storage.exists(run.path("trials", earlier["optimal"], "best.pt"))


def _what_to_run(
    run: Run, cluster: Cluster, earlier: dict[str, Any] | None
) -> tuple[Manifest, list[Trial]]:
    """The experiment to run or to go on with, and the trials that count beside its own.

    An experiment that is gone, or that its home cannot go on with, is followed by another for the
    trials that are left.
    """
    if earlier is None:
        if not cluster.resumes:
            for caution in cautions(
                for_network(load(run.config.search_space), run.config.network_config),
                run.config.algorithm,
            ):
                step.say(f"note: {caution}")
        return experiment(run), []
    trials = [_trial(entry) for entry in earlier["trials"]]
    carried = trials[: earlier.get("carried", 0)]
    if cluster.can_continue(earlier["experiment"]):
        return experiment(run, carried=len(carried)), carried
    known = f"its algorithm knows nothing of the first {len(trials)} trials"
    step.say(
        f"experiment {earlier['experiment']} is gone or cannot go on; another one follows, and"
        f" {known}"
    )
    cluster.delete_experiment(earlier["experiment"])
    return experiment(run, carried=len(trials)), trials


def _joined(
    manifest: Manifest, carried: Sequence[Trial], result: ExperimentResult
) -> ExperimentResult:
    """The result with the trials of earlier experiments in front, and the best of all."""
    if not carried:
        return result
    trials = [*carried, *result.trials]
    return dataclasses.replace(result, trials=trials, optimal=best_trial(manifest, trials).name)


def _trial(entry: dict[str, Any]) -> Trial:
    """A trial as search.json has it."""
    return Trial(
        **{
            **entry,
            "metrics": {name: Observation(**seen) for name, seen in entry["metrics"].items()},
        }
    )


def _publish(record: dict[str, Any], artifacts: step.Artifacts) -> None:
    """Tell the result and hand it to KFP."""
    best = next(trial for trial in record["trials"] if trial["name"] == record["optimal"])
    counts = Counter(trial["status"] for trial in record["trials"])
    loss = best["metrics"][OBJECTIVE]["min"]
    by_status = {f"trials {status}": count for status, count in counts.items()}
    artifacts.set(
        "metrics", metadata={OBJECTIVE: loss, "trials": len(record["trials"]), **by_status}
    )
    artifacts.set("trials", content=markdown(record))
    artifacts.set("page", content=search_page(record))
    step.say(
        f"best of {len(record['trials'])} trials: {best['name']} with {OBJECTIVE} {loss:.5f}"
        f" ({_text(best['parameters'])})"
    )


def as_record(run: Run, result: ExperimentResult, *, carried: int = 0) -> dict[str, Any]:
    """What search.json holds: objective, algorithm, seed, all trials, the name of the optimal one.

    `asked` trials are all that were wanted; the first `carried` belong to experiments before this
    one.
    """
    return {
        "experiment": result.name,
        "objective": {"name": OBJECTIVE, "type": "minimize"},
        "algorithm": run.config.algorithm,
        "early_stopping": run.config.early_stopping,
        "seed": run.config.seed,
        "asked": run.config.max_trials,
        "carried": carried,
        "optimal": result.optimal,
        "trials": [dataclasses.asdict(trial) for trial in result.trials],
    }


def _text(parameters: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


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
