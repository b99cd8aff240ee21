"""deploy: create or update the InferenceService and hold it against the golden answers. Ready is
only who answers right.

What the service answered, and how fast, goes into service.json and into the report's section on
serving.
"""

import contextlib
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
from reporting.serving_section import updated
from serving.client import golden_check, round_trips
from serving.inference_service import inference_service

DEADLINE = 1800.0  # seconds until ready: a fresh node has to pull Triton's large image first
GOLDEN_DEADLINE = 300.0


def component(image: str) -> Any:
    """The KFP component. Outputs: the service's URL, and the report with what the
    service answered.
    """
    from kfp import dsl

    def deploy(
        run: str,
        s3_endpoint: str,
        job_id: str,
        url: dsl.OutputPath(str),
        report: dsl.Output[dsl.HTML],
    ) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.deploy"],
            args=[
                "--run",
                run,
                "--s3-endpoint",
                s3_endpoint,
                "--job-id",
                job_id,
                "--url-output",
                url,
                "--executor-input",
                "{{$}}",
            ],
        )

    return dsl.container_component(deploy)


def deploy(run: Run, artifacts: step.Artifacts) -> str:
    """The URL of the service, after it gave the golden answers. Raises ClusterError, DeadlineError
    or GateError otherwise.

    However it fails afterwards, a service that says Ready and answers wrong or not at all is told
    of in its own words.
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
    export = storage.find_json(run.path("model", "export.json"), {})
    times = {"model_sha256": export.get("sha256"), "round_trips": _round_trips(run, service)}
    storage.write_json(run.path("service.json"), {**dataclasses.asdict(service), **golden, **times})
    artifacts.set("report", content=_report(run, export))
    step.say(f"{service.name} gave the golden answers at {service.url}")
    return service.url


def check_keys(run: Run) -> None:
    """On a cluster: refuse before anything is made where the predictor would have no S3 keys.

    Raises InputError with the cure.
    """
    if step.LOCAL_DIR in os.environ or not storage.is_s3(run.config.s3_bucket):
        return
    from clusters import keys
    from clusters.api import connect, namespace_of
    from clusters.survey import Survey

    config, connection = run.config, connect()
    endpoint = "" if config.s3_endpoint == AUTO else config.s3_endpoint
    survey = Survey(connection, namespace_of(connection, config.namespace))
    for one in keys.findings(
        survey, secret=config.s3_secret, account=config.service_account, endpoint=endpoint
    ):
        if one.state == "error":
            raise InputError(
                f"the service would not get its model: {one.what} {one.found}; {one.cure}"
            )
        if one.state == "not seen":
            step.say(f"not seen: {one.what}: {one.found}")


def golden_answers(run: Run, service: Service) -> dict[str, Any]:
    """Hold every model of the repository that has golden answers against them, within one deadline;
    what service.json keeps of it.

    `golden` is of the model that the service is named after; the others of the repository (the raw
    form) are under `others`.
    """
    ends, checked = time.monotonic() + GOLDEN_DEADLINE, {}
    for name in models(run):
        checked[name] = golden_check(
            service.url, name, run.path("golden", name), deadline=max(ends - time.monotonic(), 1.0)
        )
    return {
        "golden": checked.pop(service.name),
        "others": {name: found["max_difference"] for name, found in checked.items()},
    }


def _round_trips(run: Run, service: Service) -> dict[str, Any] | None:
    """How fast the service answers;

    None where it does not answer again, as a number for the report is no reason to fail.
    """
    with contextlib.suppress(JecError):
        return round_trips(service.url, service.name, run.path("golden", service.name))
    return None


def _report(run: Run, export: dict[str, Any]) -> str:
    """The run's report with what the service answered, written anew; empty where the evaluation
    left none.
    """
    if not storage.exists(run.path("report.html")):
        return ""
    inference = storage.find_json(run.path("metrics.json"), {}).get("inference")
    service = storage.read_json(run.path("service.json"))
    text = updated(storage.read_text(run.path("report.html")), export or None, inference, service)
    storage.write_text(run.path("report.html"), text)
    return text


def models(run: Run) -> list[str]:
    """The models of the run's repository that have golden answers, the service's own first."""
    names = [run.model_name, f"{run.model_name}-raw"]
    return [
        name for name in names if name == run.model_name or storage.exists(run.path("golden", name))
    ]


def main(argv: list[str] | None = None) -> int:
    parser = step.parser("deploy", __doc__)
    parser.add_argument("--url-output", default="", help="file that gets the service's URL")
    args = parser.parse_args(argv)

    def body(run: Run) -> None:
        step.write_output(args.url_output, deploy(run, step.Artifacts(args.executor_input)))

    return step.main("deploy", args, body)


if __name__ == "__main__":
    raise SystemExit(main())
