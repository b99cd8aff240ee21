"""export: a job that turns the best checkpoint into a Triton model repository, gated by parity with
PyTorch.
"""

import json
from typing import Any

from common import storage
from common.errors import ClusterError
from common.run import Run
from components import step
from exporting.export_job import DEADLINE, export_job


def component(image: str) -> Any:
    """The KFP component. Output: the model as an artifact that names the repository."""
    from kfp import dsl

    def export(
        run: str, trial: str, s3_endpoint: str, job_id: str, model: dsl.Output[dsl.Model]
    ) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.export"],
            args=[
                "--run",
                run,
                "--trial",
                trial,
                "--s3-endpoint",
                s3_endpoint,
                "--job-id",
                job_id,
                "--executor-input",
                "{{$}}",
            ],
        )

    return dsl.container_component(export)


def export(run: Run, trial: str, artifacts: step.Artifacts) -> None:
    """Run the export job. Raises ClusterError if it failed, or if it ended well without a model."""
    manifest, cluster = export_job(run, trial), step.home(run)
    name = manifest["metadata"]["name"]
    with step.watched(cluster, cluster.delete_job, name):
        cluster.run_job(manifest, deadline=DEADLINE, report=step.say)
    place = run.path("model", run.model_name, "1", "model.onnx")
    if not storage.exists(place):
        raise ClusterError(f"the export job ended well, but there is no {place}")
    if run.config.delete_export_job:
        cluster.delete_job(name)
    described = {
        "framework": "ONNX",
        "name": run.model_name,
        "trial": trial,
        "repository": run.path("model"),
    }
    artifacts.set("model", metadata=described, content=json.dumps(described))


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
