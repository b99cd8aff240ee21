"""export: a job turns the best checkpoint into a Triton model repository, if parity holds."""

import json

from common import storage
from common.errors import ClusterError
from common.run import Run
from components import step
from exporting.export_job import DEADLINE, export_job


def export(run: Run, trial: str, artifacts: step.Artifacts) -> None:
    """Run the export job. Raises ClusterError if it failed, or if it ended well without a model."""
    manifest, cluster = export_job(run, trial), step.backend(run)
    name = manifest["metadata"]["name"]
    with step.watched(cluster, cluster.delete_job, name):
        cluster.run_job(manifest, deadline=DEADLINE, report=step.say)
    place = run.folder.onnx(run.model_name)
    if not storage.exists(place):
        raise ClusterError(f"the export job ended well, but there is no {place}")
    if run.config.delete_export_job:
        cluster.delete_job(name)
    described = {
        "framework": "ONNX",
        "name": run.model_name,
        "trial": trial,
        "repository": run.folder.models,
    }
    artifacts.set("model", metadata=described, content=json.dumps(described))
    step.say_result(f"trial {trial} is model {run.model_name} in {run.folder.models}")


def main(argv: list[str] | None = None) -> int:
    parser = step.parser("export", __doc__)
    parser.add_argument(
        "--trial", required=True, help="name of the trial whose best checkpoint is exported"
    )
    args = parser.parse_args(argv)
    return step.main(
        "export", args, lambda run: export(run, args.trial, step.Artifacts(args.executor_input))
    )


if __name__ == "__main__":
    raise SystemExit(main())
