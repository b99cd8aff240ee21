"""finish: the exit handler. Writes the run's summary when it ends, however it ends, and tells a
webhook if there is one.

It runs when the other steps are over, also after a failure, and knows of them what the run's folder
tells: servers older than 2.14 give an exit handler no status, and none gives one of a run that was
terminated (then `pipeline.py --status` tells).
"""

import datetime
import json
import os
from typing import Any

from common import http, storage
from common.cli import Parser, run_main
from common.config import AUTO, NONE
from common.errors import UnreachableError
from common.run import make_run_id
from components import step

SUMMARY = "summary.json"
WEBHOOK_SECONDS = 20.0
# a run is over after deploy, or after an evaluation that the gate did not pass
LAST_STEPS = ("deploy", "evaluate")


def component(image: str) -> Any:
    """The KFP component. Output: the summary as a page."""
    from kfp import dsl

    def finish(
        s3_bucket: str,
        run_id: str,
        network_config: str,
        webhook: str,
        job_id: str,
        s3_endpoint: str,
        summary: dsl.Output[dsl.Markdown],
    ) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(
            image=image,
            command=["python", "-m", "components.finish"],
            args=[
                "--s3-bucket",
                s3_bucket,
                "--run-id",
                run_id,
                "--network-config",
                network_config,
                "--webhook",
                webhook,
                "--job-id",
                job_id,
                "--s3-endpoint",
                s3_endpoint,
                "--executor-input",
                "{{$}}",
            ],
        )

    return dsl.container_component(finish)


def finish(uri: str, webhook: str, artifacts: step.Artifacts, job_id: str = "") -> dict[str, Any]:
    """Write `<run>/summary.json` where there is such a run, and tell the webhook; returns the
    summary.
    """
    summary = summarise(uri, job_id)
    if summary["steps"]:
        storage.write_json(storage.join(uri, SUMMARY), summary)
    artifacts.set("summary", content=as_markdown(summary))
    if webhook != NONE:
        _tell(webhook, summary)
    return summary


def status_of(uri: str, job_id: str) -> dict[str, Any]:
    """The run's status.json; empty where no step of the job `job_id` has written to it, as it then
    tells of an earlier job.
    """
    status = step.read_status(uri)
    jobs = {entry.get("job_id") for entry in status.get("steps", {}).values()}
    return status if not job_id or job_id in jobs else {}


def summarise(uri: str, job_id: str = "") -> dict[str, Any]:
    """How the run in a folder ended: state, the step it ended in and why, and what there is of
    results.

    state: 'succeeded', 'not deployed' (the gate), 'failed', or 'interrupted'. job_id: of the KFP
    run that ended, whose steps and results alone are told; empty: of whichever wrote last.
    """
    status = status_of(uri, job_id)

    def result(name: str, made_by: str) -> dict[str, Any]:
        entry = status.get("steps", {}).get(made_by)
        of_this_job = not job_id or (entry is not None and entry.get("job_id") == job_id)
        return storage.find_json(storage.join(uri, f"{name}.json"), {}) if of_this_job else {}

    metrics, search, service = (
        result("metrics", "evaluate"),
        result("search", "search"),
        result("service", "deploy"),
    )
    state, reason = _end(status, metrics)
    return {
        "run_id": storage.name(uri),
        "run": uri,
        "state": state,
        "step": status.get("step", "prepare"),
        "reason": reason,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "steps": status.get("steps", {}),
        "best_trial": search.get("optimal"),
        "trials": len(search.get("trials", [])),
        "gain_percent": metrics.get("gain"),
        "gate": metrics.get("passed"),
        "service": service.get("url") if state == "succeeded" else None,
        "report": storage.join(uri, "report.html") if metrics else None,
    }


def _end(status: dict[str, Any], metrics: dict[str, Any]) -> tuple[str, str]:
    name, state = status.get("step", "prepare"), status.get("state", "")
    if state in ("failed", "interrupted"):
        return state, status.get("reason", "")
    if state == "running":  # a step that ends by itself says so: this one was killed
        return (
            "failed",
            f"{name} ended without a word: evicted, out of memory, or over its pod's deadline",
        )
    if (name, state) == ("deploy", "done"):
        return "succeeded", ""
    if (name, state) == ("evaluate", "done") and not metrics.get("passed"):
        return "not deployed", "; ".join(metrics.get("reasons", []))
    if state == "done":
        return "failed", f"nothing happened after {name}: the next step's pod did not start"
    return "failed", "prepare left no trace: it refused its parameters, or its pod did not start"


def as_markdown(summary: dict[str, Any]) -> str:
    """The summary as Kubeflow shows it beside the step."""
    gain = summary["gain_percent"]
    rows = {
        "run": summary["run"],
        "state": summary["state"],
        "step": summary["step"],
        "reason": summary["reason"] or "–",
        "best trial": summary["best_trial"] or "–",
        "resolution gain": (
            f"{gain['value']:+.1f} % [{gain['low']:+.1f}, {gain['high']:+.1f}]" if gain else "–"
        ),
        "service": summary["service"] or "–",
        "report": summary["report"] or "–",
    }
    lines = [
        f"| {name} | {str(text).replace('|', '/').replace(chr(10), '<br>')} |"
        for name, text in rows.items()
    ]
    return "\n".join(
        [f"# {summary['run_id']}: {summary['state']}", "", "| | |", "|---|---|", *lines, ""]
    )


def _tell(webhook: str, summary: dict[str, Any]) -> None:
    """POST the summary. A webhook that does not take it is a warning: the run is not
    worse for it.
    """
    # The URL is never printed: with many services it is itself the secret.
    try:
        answer = http.send(
            http.session(),
            "POST",
            webhook,
            seconds=WEBHOOK_SECONDS,
            # not `json=`: requests refuses a NaN, which a gain may be
            data=json.dumps(summary),
            headers={"Content-Type": "application/json"},
        )
    except UnreachableError as error:
        step.say(f"warning: the webhook did not take the summary: {error}")
        return
    if answer.ok:
        step.say(f"webhook: {answer.status_code}")
    else:
        step.say(f"warning: the webhook did not take the summary: {http.status_line(answer)}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m components.finish", description=__doc__)
    for name in ("s3-bucket", "run-id", "network-config"):
        parser.add_argument(f"--{name}", required=True, help="as the run's")
    parser.add_argument(
        "--webhook", default=NONE, help="URL that gets the summary as JSON (default: none)"
    )
    parser.add_argument(
        "--job-id",
        default="",
        help="KFP job id: an 'auto' run id was made of it, and by it the run's own steps are known",
    )
    parser.add_argument(
        "--s3-endpoint", default=AUTO, help="S3 endpoint URL, or 'auto' for AWS_ENDPOINT_URL"
    )
    parser.add_argument(
        "--executor-input", default="", help="KFP's executor input (JSON); by hand: leave it out"
    )
    args = parser.parse_args(argv)

    def body() -> None:
        step.use_endpoint(args.s3_endpoint)
        run_id = (
            make_run_id(args.network_config, args.job_id) if args.run_id == AUTO else args.run_id
        )
        uri = storage.join(storage.absolute(args.s3_bucket), run_id)
        if step.LOCAL_DIR in os.environ and not status_of(uri, args.job_id):
            return  # prepare refused, and has said why a line above
        summary = finish(uri, args.webhook, step.Artifacts(args.executor_input), args.job_id)
        step.say(
            f"{summary['run_id']}:"
            f" {summary['state']}{': ' + summary['reason'] if summary['reason'] else ''}"
        )

    step.stop_on_sigterm()
    return run_main(body)


if __name__ == "__main__":
    raise SystemExit(main())
