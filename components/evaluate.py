"""evaluate: measure the exported model on the test set, in a job, and apply the gate.

The gate's verdict decides whether the model is deployed.
"""

from common import storage
from common.records import MetricsRecord
from common.run import Run
from components import model_registry, start_at, step
from evaluating.evaluate_job import DEADLINE, evaluate_job
from reporting.headline import evaluation_lines, kubeflow_metrics_of_evaluation


def evaluate(run: Run, trial: str, artifacts: step.Artifacts, job_id: str = "") -> bool:
    """Evaluate the exported model; return whether the gate lets it be deployed.

    Raises ClusterError if the job failed.
    """
    if not start_at.keeps(run, "evaluate", trial, job_id):
        run_evaluate_job(run, trial, job_id)
    metrics = MetricsRecord.load(run.folder.metrics)
    lines = evaluation_lines(metrics)
    artifacts.set("test_metrics", metadata=kubeflow_metrics_of_evaluation(metrics), content=lines)
    artifacts.set("report", content=storage.read_text(run.folder.report))
    model_registry.register(run, metrics)
    gain, _, verdict = lines.splitlines()
    step.say_result(f"{verdict}; {gain}")
    return metrics.passed


def run_evaluate_job(run: Run, trial: str, job_id: str) -> None:
    """Run the job to its end. Raises ClusterError if it failed."""
    manifest, cluster = evaluate_job(run, trial), step.backend(run)
    name = manifest["metadata"]["name"]
    if start_at.repeats(run, "evaluate", job_id):
        cluster.delete_job(name)
    with step.remove_if_stopped(cluster, cluster.delete_job, name):
        cluster.run_job(manifest, deadline=DEADLINE, report=step.say)
    if run.config.delete_export_job:
        cluster.delete_job(name)


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = step.parser("evaluate", __doc__)
    parser.add_argument("--trial", required=True, metavar="NAME", help="trial that was exported")
    parser.add_argument(
        "--passed-output",
        type=str,
        default="",
        metavar="FILE",
        help="file to write 'true' or 'false' to",
    )
    args = parser.parse_args(argv)

    def body(run: Run) -> None:
        """Run `evaluate` and write its output."""
        has_passed = evaluate(run, args.trial, step.Artifacts(args.executor_input), args.job_id)
        step.write_output(args.passed_output, str(has_passed).lower())

    return step.main("evaluate", args, body)


if __name__ == "__main__":
    raise SystemExit(main())
