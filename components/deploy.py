"""deploy: create or update the InferenceService and check its answers.

The service counts as ready only once it reproduces the golden answers. The result of this check and
the response times go into service.json and into the report's section on serving.

If the gate refused the model, the step prints the reasons and succeeds without deploying anything;
status.json stays as evaluate wrote it.
"""

import contextlib
import time

from clusters.protocol import Service
from common import storage
from common.cli import run_main
from common.errors import GateError, JecError
from common.exported_model import check_model
from common.layout import RAW_SUFFIX, RunFolder
from common.records import (
    ExportRecord,
    GoldenAnswers,
    MetricsRecord,
    RoundTrip,
    SearchRecord,
    ServiceRecord,
)
from common.run import Run
from components import predictor, step
from components.steps import GOLDEN_DEADLINE, SERVICE_DEADLINE
from reporting.serving_section import replace_section
from serving.client import golden_check, round_trips
from serving.inference_service import inference_service

WRONG_ANSWER_PAUSE = 2.0  # seconds
NOT_DEPLOYED = "not deployed"
"""The step's output in place of the service's URL, if the gate refused the model."""


def deploy(run: Run, artifacts: step.Artifacts) -> str:
    """Deploy the model and return the URL of the service, once it gave the golden answers.

    After an error the previous service is restored. The error of a ready service with wrong or no
    answers includes the service's own message.

    Raises:
        ClusterError: the cluster refuses the service, or the service fails.
        DeadlineError: the service is not ready in time, or does not answer.
        GateError: the service gives wrong answers.
        InputError: a model file is not the one that was exported.
    """
    cluster = step.backend(run)
    predictor.check_keys(run)
    for name in models(run):
        place = run.folder.onnx(name)
        if storage.exists(place):
            check_model(place, storage.read_bytes(place))
    search = SearchRecord.find(run.folder.search)
    manifest = inference_service(run, search.optimal if search else "")
    golden: dict[str, GoldenAnswers] = {}
    service = cluster.deploy(
        manifest,
        check=lambda service: golden.update(golden_answers(run, service)),
        backup=run.folder.former_service,
        deadline=SERVICE_DEADLINE,
        report=step.say,
    )
    export = ExportRecord.find(run.folder.export)
    others = {name: answers.max_difference for name, answers in golden.items()}
    others.pop(run.model_name)
    record = ServiceRecord(
        name=service.name,
        url=service.url,
        kind=service.kind,
        details=service.details,
        golden=golden[run.model_name],
        others=others,
        model_sha256=export.sha256 if export else None,
        round_trips=_round_trips(run, service),
    )
    record.save(run.folder.service)
    artifacts.set("report_with_service", content=_report(run, export, record))
    if "from_outside" in service.details:
        step.say(f"from outside the cluster: {service.details['from_outside']}")
    step.say_result(f"{service.name} gave the golden answers at {service.url}")
    return service.url


def refuse(folder: RunFolder, artifacts: step.Artifacts) -> str:
    """Print why the gate refused the model and publish the unchanged report; return NOT_DEPLOYED.

    It changes nothing and never fails, so that the run's state stays that of the evaluation.
    """
    reasons, report = "the gate refused the model", ""
    try:
        if metrics := MetricsRecord.find(folder.metrics):
            reasons = "; ".join(metrics.reasons) or reasons
        if storage.exists(folder.report):
            report = storage.read_text(folder.report)
    except JecError as error:
        step.say(f"warning: the results of the evaluation cannot be read: {error}")
    artifacts.set("report_with_service", content=report)
    step.say_result(f"{NOT_DEPLOYED}: {reasons}")
    return NOT_DEPLOYED


def golden_answers(run: Run, service: Service) -> dict[str, GoldenAnswers]:
    """Compare every model that has golden answers with them, all within GOLDEN_DEADLINE.

    While the previous model may still answer, wrong answers are requested again.

    Returns:
        Name of the model -> the comparison: the service's own model, and the raw one if exported.

    Raises:
        GateError: a model gives wrong answers.
        DeadlineError: the service does not answer.
        ClusterError: the server ended.
    """
    last_moment = time.monotonic() + GOLDEN_DEADLINE
    answers: dict[str, GoldenAnswers] = {}
    names = models(run)
    while len(answers) < len(names):
        name = names[len(answers)]
        remaining = max(last_moment - time.monotonic(), 1.0)
        try:
            answers[name] = golden_check(
                service.url,
                name,
                run.folder.golden(name),
                deadline=remaining,
                is_running=service.is_running,
            )
        except GateError:
            if service.certain or time.monotonic() > last_moment:
                raise
            time.sleep(WRONG_ANSWER_PAUSE)
            answers.clear()
    return answers


def _round_trips(run: Run, service: Service) -> dict[str, RoundTrip] | None:
    """Return the response times of the service; None if it does not answer.

    They are for the report only, so that an error here does not fail the step.
    """
    with contextlib.suppress(JecError):
        return round_trips(service.url, service.name, run.folder.golden(service.name))
    return None


def _report(run: Run, export: ExportRecord | None, service: ServiceRecord) -> str:
    """Add the section on serving to the run's report; return the report, empty if there is none."""
    place = run.folder.report
    if not storage.exists(place):
        return ""
    metrics = MetricsRecord.find(run.folder.metrics)
    inference = metrics.inference if metrics else None
    text = replace_section(storage.read_text(place), export, inference, service)
    storage.write_text(place, text)
    return text


def models(run: Run) -> list[str]:
    """Return the names of the models that have golden answers, the service's own first."""
    names = [run.model_name]
    raw = f"{run.model_name}{RAW_SUFFIX}"
    if storage.exists(run.folder.golden(raw)):
        names.append(raw)
    return names


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = step.parser("deploy", __doc__)
    parser.add_argument(
        "--passed",
        choices=("true", "false", step.UNCHANGED),
        required=True,
        help="the gate's verdict, an output of evaluate; with 'false' nothing is deployed",
    )
    parser.add_argument(
        "--url-output",
        type=str,
        default="",
        metavar="FILE",
        help=f"file to write the service's URL to, or '{NOT_DEPLOYED}'",
    )
    args = parser.parse_args(argv)

    def body(run: Run) -> None:
        """Run `deploy` and write its output."""
        step.write_output(args.url_output, deploy(run, step.Artifacts(args.executor_input)))

    def refusal() -> None:
        """Run `refuse` and write its output."""
        step.use_endpoint(args.s3_endpoint)
        artifacts = step.Artifacts(args.executor_input)
        step.write_output(args.url_output, refuse(RunFolder(args.run), artifacts))

    if args.passed == "false":
        step.stop_on_sigterm()
        return run_main(step.patient(refusal, args.job_id))
    return step.main("deploy", args, body)


if __name__ == "__main__":
    raise SystemExit(main())
