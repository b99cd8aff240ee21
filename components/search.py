"""search: run the Katib experiment of a run to its end and write search.json."""

import dataclasses
import html
from typing import Any

from clusters.protocol import ExperimentResult
from common import storage
from common.run import Run
from components import step
from training.experiment import OBJECTIVE, experiment


def component(image: str) -> Any:
    """The KFP component. Outputs: the best trial's name, the best loss as a metric, the trials as a table."""
    from kfp import dsl

    def search(
        run: str,
        s3_endpoint: str,
        job_id: str,
        best_trial: dsl.OutputPath(str),
        metrics: dsl.Output[dsl.Metrics],
        trials: dsl.Output[dsl.HTML],
    ) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.search"],
            args=[
                "--run", run, "--s3-endpoint", s3_endpoint, "--job-id", job_id, "--best-trial-output", best_trial,
                "--executor-input", "{{$}}",
            ],
        )  # fmt: skip

    return dsl.container_component(search)


def search(run: Run, artifacts: step.Artifacts) -> str:
    """The name of the best trial. Raises ClusterError if the experiment failed, DeadlineError if it took too long."""
    if done := _done_before(run):
        step.say(f"searched before: best trial {done}")
        return done
    manifest, cluster = experiment(run), step.home(run)
    name = manifest["metadata"]["name"]
    with step.watched(cluster, cluster.delete_experiment, name):
        result = cluster.run_experiment(manifest, deadline=run.config.deadline_hours * 3600, report=step.say)
    record = as_record(run, result)
    storage.write_json(run.path("search.json"), record)
    if run.config.delete_train_experiment:
        cluster.delete_experiment(name)
    best = next(trial for trial in result.trials if trial.name == result.optimal)
    loss = best.metrics[OBJECTIVE].min
    artifacts.set("metrics", metadata={OBJECTIVE: loss, "trials": len(result.trials)})
    artifacts.set("trials", content=table(record))
    step.say(f"best of {len(result.trials)} trials: {best.name} with {OBJECTIVE} {loss:.5f} ({_text(best.parameters)})")
    return result.optimal


def _done_before(run: Run) -> str:
    """The best trial of a search that had ended and whose checkpoint is there; empty if there is none."""
    if not storage.exists(run.path("search.json")):
        return ""
    optimal = storage.read_json(run.path("search.json"))["optimal"]
    return optimal if storage.exists(run.path("trials", optimal, "best.pt")) else ""


def as_record(run: Run, result: ExperimentResult) -> dict[str, Any]:
    """What search.json holds: objective, algorithm, seed, all trials, the name of the optimal one."""
    return {
        "experiment": result.name,
        "objective": {"name": OBJECTIVE, "type": "minimize"},
        "algorithm": run.config.algorithm,
        "seed": run.config.seed,
        "optimal": result.optimal,
        "trials": [dataclasses.asdict(trial) for trial in result.trials],
    }


def table(record: dict[str, Any]) -> str:
    """The trials as an HTML page, best loss first; Kubeflow shows it beside the step."""
    names = sorted({name for trial in record["trials"] for name in trial["parameters"]})
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["trial", "status", OBJECTIVE, *names])
    rows = "".join(_row(trial, names, record["optimal"]) for trial in sorted(record["trials"], key=_loss))
    style = "body{font:14px sans-serif}td,th{padding:4px 10px;text-align:right;border-bottom:1px solid #ccc}.best{font-weight:bold}"
    return f"<!doctype html><meta charset=utf-8><title>Trials</title><style>{style}</style><table><tr>{head}</tr>{rows}</table>\n"


def _row(trial: dict[str, Any], names: list[str], optimal: str) -> str:
    loss = f"{_loss(trial):.5f}" if OBJECTIVE in trial["metrics"] else "–"
    cells = [trial["name"], trial["status"], loss, *(trial["parameters"].get(name, "") for name in names)]
    kind = " class=best" if trial["name"] == optimal else ""
    return f"<tr{kind}>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _loss(trial: dict[str, Any]) -> float:
    return trial["metrics"].get(OBJECTIVE, {}).get("min", float("inf"))


def _text(parameters: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parameters.items())


def main(argv: list[str] | None = None) -> int:
    parser = step.parser("search", __doc__)
    parser.add_argument("--best-trial-output", default="", help="file that gets the best trial's name")
    args = parser.parse_args(argv)

    def body(run: Run) -> None:
        step.write_output(args.best_trial_output, search(run, step.Artifacts(args.executor_input)))

    return step.main("search", args, body)


if __name__ == "__main__":
    raise SystemExit(main())
