"""deploy: create or update the InferenceService and hold it against the golden answers. Ready is only who answers right."""

import dataclasses
from typing import Any

from common import storage
from common.run import Run
from components import step
from serving.client import golden_check
from serving.inference_service import inference_service

DEADLINE = 1800.0  # seconds until ready: a fresh node has to pull Triton's large image first
GOLDEN_DEADLINE = 300.0


def component(image: str) -> Any:
    """The KFP component. Output: the service's URL."""
    from kfp import dsl

    def deploy(run: str, s3_endpoint: str, url: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.deploy"],
            args=["--run", run, "--s3-endpoint", s3_endpoint, "--url-output", url],
        )

    return dsl.container_component(deploy)


def deploy(run: Run) -> str:
    """The URL of the service, after it gave the golden answers. Raises ClusterError, DeadlineError or GateError otherwise."""
    service = step.home(run).deploy(inference_service(run), deadline=DEADLINE, report=step.say)
    golden = golden_check(service.url, service.name, run.path("golden", service.name), deadline=GOLDEN_DEADLINE)
    storage.write_json(run.path("service.json"), {**dataclasses.asdict(service), "golden": golden})
    step.say(f"{service.name} gave the golden answers at {service.url}")
    return service.url


def main(argv: list[str] | None = None) -> int:
    parser = step.parser("deploy", __doc__)
    parser.add_argument("--url-output", default="", help="file that gets the service's URL")
    args = parser.parse_args(argv)
    return step.main("deploy", args, lambda run: step.write_output(args.url_output, deploy(run)))


if __name__ == "__main__":
    raise SystemExit(main())
