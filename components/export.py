"""export: convert the best checkpoint to a Triton model repository, in a job, and check parity."""

from common import storage
from common.errors import ClusterError
from common.run import Run
from components import lineage, start_at, step
from exporting.export_job import DEADLINE, export_job


def export(run: Run, trial: str, artifacts: step.Artifacts, job_id: str = "") -> None:
    """Run the export job. Raises ClusterError if it failed, or succeeded but wrote no model."""
    if not start_at.keeps(run, "export", trial, job_id):
        run_export_job(run, trial, job_id)
    lineage.publish_model(run, trial, artifacts)
    step.say_result(f"trial {trial} is model {run.model_name} in {run.folder.models}")


def run_export_job(run: Run, trial: str, job_id: str) -> None:
    """Run the job to its end. Raises ClusterError as `export` does."""
    manifest, cluster = export_job(run, trial), step.backend(run)
    name = manifest["metadata"]["name"]
    if start_at.repeats(run, "export", job_id):
        cluster.delete_job(name)
    with step.remove_if_stopped(cluster, cluster.delete_job, name):
        cluster.run_job(manifest, deadline=DEADLINE, report=step.say)
    place = run.folder.onnx(run.model_name)
    if not storage.exists(place):
        raise ClusterError(
            f"the export job succeeded, but {place} does not exist; see the job's log:"
            f" python pipeline.py --logs {run.id} export"
        )
    if run.config.delete_export_job:
        cluster.delete_job(name)


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = step.parser("export", __doc__)
    parser.add_argument(
        "--trial", required=True, metavar="NAME", help="trial whose best checkpoint is exported"
    )
    args = parser.parse_args(argv)
    artifacts = step.Artifacts(args.executor_input)
    return step.main("export", args, lambda run: export(run, args.trial, artifacts, args.job_id))


if __name__ == "__main__":
    raise SystemExit(main())
