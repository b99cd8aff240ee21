"""deploy: create or update the InferenceService and hold it against the golden answers. Ready is only who answers right."""

import dataclasses
import os
import time
from typing import Any

from clusters.protocol import Service
from common import storage
from common.config import AUTO
from common.errors import InputError, JecError
from common.run import Run
from components import step
from serving.client import golden_check
from serving.inference_service import inference_service

DEADLINE = 1800.0  # seconds until ready: a fresh node has to pull Triton's large image first
GOLDEN_DEADLINE = 300.0


def component(image: str) -> Any:
    """The KFP component. Output: the service's URL."""
    from kfp import dsl

    def deploy(run: str, s3_endpoint: str, job_id: str, url: dsl.OutputPath(str)) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.deploy"],
            args=["--run", run, "--s3-endpoint", s3_endpoint, "--job-id", job_id, "--url-output", url],
        )

    return dsl.container_component(deploy)


def deploy(run: Run) -> str:
    """The URL of the service, after it gave the golden answers. Raises ClusterError, DeadlineError or GateError otherwise.

    However it fails afterwards, a service that says Ready and answers wrong or not at all is told of in its own words.
    """
    cluster = step.home(run)
    check_keys(run)
    search = run.path("search.json")
    trial = storage.read_json(search)["optimal"] if storage.exists(search) else ""
    service = cluster.deploy(inference_service(run, trial), deadline=DEADLINE, report=step.say)
    try:
        golden = golden_answers(run, service)
    except JecError as error:
        raise type(error)(f"{error}\n{cluster.service_story(service.name)}") from error
    storage.write_json(run.path("service.json"), {**dataclasses.asdict(service), **golden})
    step.say(f"{service.name} gave the golden answers at {service.url}")
    return service.url


def check_keys(run: Run) -> None:
    """On a cluster: refuse before anything is made where the predictor would have no S3 keys. Raises InputError with the cure."""
    if step.LOCAL_DIR in os.environ or not storage.is_s3(run.config.s3_bucket):
        return
    from clusters import keys
    from clusters.api import connect, namespace_of
    from clusters.survey import Survey

    config, connection = run.config, connect()
    endpoint = "" if config.s3_endpoint == AUTO else config.s3_endpoint
    survey = Survey(connection, namespace_of(connection, config.namespace))
    for one in keys.findings(survey, secret=config.s3_secret, account=config.service_account, endpoint=endpoint):
        if one.state == "error":
            raise InputError(f"the service would not get its model: {one.what} {one.found}; {one.cure}")
        if one.state == "not seen":
            step.say(f"not seen: {one.what}: {one.found}")


def golden_answers(run: Run, service: Service) -> dict[str, Any]:
    """Hold every model of the repository that has golden answers against them, within one deadline; what service.json keeps of it.

    `golden` is of the model that the service is named after; the others of the repository (the raw form) are under `others`.
    """
    ends, checked = time.monotonic() + GOLDEN_DEADLINE, {}
    for name in models(run):
        checked[name] = golden_check(service.url, name, run.path("golden", name), deadline=max(ends - time.monotonic(), 1.0))
    return {"golden": checked.pop(service.name), "others": {name: found["max_difference"] for name, found in checked.items()}}


def models(run: Run) -> list[str]:
    """The models of the run's repository that have golden answers, the service's own first."""
    names = [run.model_name, f"{run.model_name}-raw"]
    return [name for name in names if name == run.model_name or storage.exists(run.path("golden", name))]


def main(argv: list[str] | None = None) -> int:
    parser = step.parser("deploy", __doc__)
    parser.add_argument("--url-output", default="", help="file that gets the service's URL")
    args = parser.parse_args(argv)
    return step.main("deploy", args, lambda run: step.write_output(args.url_output, deploy(run)))


if __name__ == "__main__":
    raise SystemExit(main())
