"""finish: the exit handler. It cleans up after a failure and writes the run's summary.

It runs after the other steps: after a success, a failure, a termination, or the loss of a step's
pod. It reads the run's state from its folder, because servers older than 2.14 pass no status to an
exit handler, and no server does after a termination. A killed step can neither write why it was
killed nor remove the objects that it created. Therefore finish asks the cluster for the reason,
writes it into status.json, and removes unfinished objects.
"""

import dataclasses
import datetime
import json
import os
import shlex
from pathlib import Path

from clusters.protocol import Stop
from common import http, storage
from common.cli import Parser, run_main
from common.config import AUTO
from common.errors import InputError, JecError, UnreachableError
from common.layout import RunFolder
from common.records import (
    TERMINATED,
    MetricsRecord,
    SearchRecord,
    ServiceRecord,
    StatusRecord,
    StepStatus,
    SummaryRecord,
    UnchangedRecord,
)
from common.run import Run, make_run_id
from common.storage.addresses import local_path
from components import step, tracked, unchanged
from components.steps import NAMES, WEBHOOK, WEBHOOK_FILE
from reporting import markdown, page

WEBHOOK_SECONDS = 20.0
# Within the deadline of this step's pod (components.steps), with time left for the summary.
LOOK_SECONDS = 60.0
REMOVAL_SECONDS = 300.0

STOPPED_STATES = ("running", "interrupted")
"""States of a step that was killed: 'running' if it could not write 'interrupted' before."""
COMPLETE = ("succeeded", "not deployed")
"""States of a run in which no step remains to be done."""
ENDING = "ending"
"""State of the preliminary summary, saved before the cluster is asked why the run ended."""
HOST_NOTE = "add --host, and --auth, --steps-image, --steps-account as for the first run"


def finish(uri: str, artifacts: step.Artifacts, job_id: str = "") -> SummaryRecord:
    """Write `<run>/summary.json` if the run has a status, and POST it to the webhook.

    On Kubeflow, first write why a step was stopped and remove the run's unfinished objects. The
    webhook's URL comes from the environment.
    """
    summary = summarise(uri, job_id)
    # On one machine, or without a KFP job, no objects of a cluster are left to remove.
    on_kubeflow = job_id and step.LOCAL_DIR not in os.environ
    if on_kubeflow and summary.state in ("failed", "interrupted"):
        summary = summarise_stopped(uri, job_id)
    if summary.steps:
        summary.save(RunFolder(uri).summary)
    tracked.end(uri, summary)
    if summary.state in COMPLETE:
        unchanged.keep_success(uri, summary)
    artifacts.set("summary", content=as_markdown(summary))
    try:
        if url := webhook():
            _post_summary(url, summary)
    except InputError as error:
        step.say(f"warning: the webhook did not get the summary: {error}")
    return summary


def webhook() -> str:
    """Return the webhook's URL, from WEBHOOK or the file named by WEBHOOK_FILE; empty for none.

    Raises InputError if the file cannot be read or the value is not a URL. The message never
    contains the URL, which is a secret.
    """
    url = os.environ.get(WEBHOOK, "").strip()
    source = WEBHOOK
    if not url and (path := os.environ.get(WEBHOOK_FILE)):
        source = f"{WEBHOOK_FILE} {path}"
        try:
            url = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputError(f"{source} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:  # whose text would show a part of the secret
            raise InputError(f"{source} is not text in UTF-8; write the URL into it") from None
        if not url:
            raise InputError(f"{source} is empty; write the URL into it")
    if url and not url.startswith(("http://", "https://")):
        raise InputError(f"the value of {source} is not an http(s) URL; write https://...")
    return url


def summarise_stopped(uri: str, job_id: str) -> SummaryRecord:
    """Clean up after a failed or killed run, and return its summary.

    Writes into status.json why the last step was stopped, and removes the run's unfinished objects.
    The summary has the command to resume the run and what could not be removed. A preliminary
    summary is saved before each wait, because Argo does not retry this step after a termination.
    """
    status = status_of(uri, job_id)
    if status.steps:
        pending = summarise(uri, job_id)
        if status.state in (*STOPPED_STATES, "done"):
            reason = "finish is asking the cluster why the run has ended"
            pending = dataclasses.replace(pending, state=ENDING, reason=reason)
        pending.save(RunFolder(uri).summary)
    stop = why_stopped(status.step, job_id)
    # Otherwise a later job of this run has started, to which the running objects belong.
    is_last = not status.steps or status.steps[status.step].job_id == job_id
    if is_last:
        write_end(uri, job_id, status, stop)
    status = status_of(uri, job_id)
    summary = summarise(uri, job_id, terminated=stop is not None and stop.reason == TERMINATED)
    if not status.steps and stop is not None and stop.task:
        # status.json belongs to an earlier job
        summary = dataclasses.replace(summary, reason=f"{stop.task}: {stop.reason}")
    if not status.steps:
        return summary
    summary = dataclasses.replace(summary, resume=resume_command(uri))
    summary.save(RunFolder(uri).summary)
    if is_last and (remaining := remove_unfinished(uri)):
        reason = "; ".join(filter(None, (summary.reason, remaining)))
        summary = dataclasses.replace(summary, reason=reason)
    return summary


def why_stopped(name: str, job_id: str) -> Stop | None:
    """Ask the cluster why the run's last step was stopped; return None if it does not know."""
    from clusters.kubernetes import KubernetesCluster

    try:
        # the pods of a KFP run are in the namespace of this pod, wherever its jobs are
        return KubernetesCluster().why_stopped(job_id, name, deadline=LOOK_SECONDS)
    except JecError as error:
        step.say(f"the cluster cannot be asked why the run ended: {error}")
        return None


def write_end(uri: str, job_id: str, status: StatusRecord, stop: Stop | None) -> None:
    """Write into status.json why the last step was stopped, or why the next one did not start.

    A failed step becomes retryable and its attempts are reset, because a retry after the end of a
    run, such as Retry in the UI, is a user's decision.
    """
    name, entry = status.step, status.steps.get(status.step)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if entry is not None and entry.state == "failed":
        entry = dataclasses.replace(entry, retryable=True)
    elif stop is None:
        return
    elif entry is not None and entry.state in STOPPED_STATES:
        entry = dataclasses.replace(entry, state=stop.state, reason=stop.reason, time=now)
    elif stop.task:
        if entry is None and step.read_status(uri).steps:
            return  # status.json belongs to another, maybe later job
        name = stop.task if stop.task in NAMES else next_step(status)
        entry = StepStatus(state=stop.state, reason=stop.reason, time=now, job_id=job_id)
    if entry is None:
        return
    entry = dataclasses.replace(entry, attempts=0)
    if entry == status.steps.get(name):
        return
    dataclasses.replace(
        status,
        step=name,
        state=entry.state,
        reason=entry.reason,
        time=entry.time,
        steps={**status.steps, name: entry},
    ).save(RunFolder(uri).status)


def next_step(status: StatusRecord) -> str:
    """Return the step after the last one that wrote its status; the first step if none did."""
    if not status.steps:
        return NAMES[0]
    return NAMES[min(NAMES.index(status.step) + 1, len(NAMES) - 1)]


def remove_unfinished(uri: str) -> str:
    """Remove the run's unfinished Experiment and jobs; finished objects and services stay.

    Returns:
        Empty, or the reason for a failure with the command that removes the rest.
    """
    from clusters.api import NoCluster
    from clusters.kubernetes import KubernetesCluster

    if not storage.exists(RunFolder(uri).run):
        return ""  # prepare did not end, and it creates no objects
    try:
        namespace = Run.load(uri).config.namespace
        names = KubernetesCluster(namespace).delete_unfinished(
            storage.name(uri), deadline=REMOVAL_SECONDS, report=step.say
        )
    except NoCluster as error:
        step.say(f"unfinished objects were not removed: {error.short}")
        return ""
    except JecError as error:
        bucket, run_id = uri.rsplit("/", 1)
        down = f"python pipeline.py --down {run_id} --s3-bucket {bucket}"
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            down += f" --s3-endpoint {endpoint}"
        return f"unfinished objects may still run on the cluster ({error}); {down} removes them"
    for name in names:
        step.say(f"removed the unfinished {name}")
    return ""


def resume_command(uri: str) -> str:
    """Return the command that resumes a run on Kubeflow.

    A pod does not know Kubeflow's address and the other flags that are no parameters of the run; a
    shell comment at the end of the command tells the user to add them. If prepare did not end,
    there is nothing to resume, and the command is --rerun.
    """
    bucket, run_id = uri.rsplit("/", 1)
    has_run_record = storage.exists(RunFolder(uri).run)
    flags = ["--resume" if has_run_record else "--rerun", run_id, "--s3-bucket", bucket]
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        flags += ["--s3-endpoint", endpoint]
    if has_run_record and (namespace := Run.load(uri).config.namespace) != AUTO:
        flags += ["--namespace", namespace]
    return f"python pipeline.py {shlex.join(flags)}  # {HOST_NOTE}"


def status_of(uri: str, job_id: str) -> StatusRecord:
    """Return the run's status.json; an empty record if it belongs to another job than `job_id`."""
    status = step.read_status(uri)
    jobs = {entry.job_id for entry in status.steps.values()}
    return status if not job_id or job_id in jobs else StatusRecord()


def summarise(uri: str, job_id: str = "", *, terminated: bool = False) -> SummaryRecord:
    """Return a summary of the run: its state, last step, reason and results.

    Args:
        uri: the run's folder.
        job_id: count only steps and results of this KFP run; empty for the last one that wrote.
        terminated: a user terminated the run, maybe between two steps.
    """
    folder, status = RunFolder(uri), status_of(uri, job_id)

    def of_this_job(name: str) -> bool:
        """Return whether this job ran the step, so that its result counts."""
        if not job_id:
            return True
        return name in status.steps and status.steps[name].job_id == job_id

    search = SearchRecord.find(folder.search) if of_this_job("search") else None
    metrics = MetricsRecord.find(folder.metrics) if of_this_job("evaluate") else None
    service = ServiceRecord.find_readable(folder.service) if of_this_job("deploy") else None
    state, reason = _final_state(status, metrics, terminated=terminated)
    unchanged_record = UnchangedRecord.find_readable(folder.unchanged)
    if (
        unchanged_record
        and of_this_job("prepare")
        and (status.step, status.state) == ("prepare", "done")
    ):
        state, reason = step.UNCHANGED, unchanged_record.reason
    return SummaryRecord(
        run_id=storage.name(uri),
        run=uri,
        state=state,
        step=status.step,
        reason=reason,
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        steps=status.steps,
        best_trial=search.optimal if search else None,
        trials=len(search.trials) if search else 0,
        gain_percent=metrics.gain if metrics else None,
        gate=metrics.passed if metrics else None,
        gate_settings=metrics.config if metrics else None,
        service=service.url if service and state == "succeeded" else None,
        report=folder.report if metrics else None,
    )


def _final_state(
    status: StatusRecord, metrics: MetricsRecord | None, *, terminated: bool
) -> tuple[str, str]:
    """Return the run's final state and its reason."""
    name, state = status.step, status.state
    if state in ("failed", "interrupted"):
        return state, status.reason
    if state == "running":  # only a killed step does not write its end
        return "failed", f"{name} was killed, and the cluster does not tell why"
    if (name, state) == ("deploy", "done"):
        return "succeeded", ""
    if (name, state) == ("evaluate", "done") and not (metrics and metrics.passed):
        return "not deployed", "; ".join(metrics.reasons if metrics else [])
    if terminated:
        return "interrupted", TERMINATED
    if state == "done":
        return "failed", f"nothing happened after {name}: the next step's pod did not start"
    return "failed", "prepare wrote no status: it refused its parameters, or its pod did not start"


def as_markdown(summary: SummaryRecord) -> str:
    """Return the summary as Markdown for Kubeflow's UI: results, reason, command to resume."""
    gain, folder = summary.gain_percent, RunFolder(summary.run)
    gate = None
    if summary.gate is not None and (settings := summary.gate_settings):
        gate = (
            f"{'passed' if summary.gate else 'not passed'}; {settings.gate} gate, limits: gain"
            f" {settings.min_improvement:g} %, closure {100 * settings.max_closure:g} % or the"
            " standard JEC's own"
        )
    best = summary.best_trial and f"{summary.best_trial} of {summary.trials} trials"
    rows = {
        "state": summary.state,
        "resolution gain": gain.percent() if gain else None,
        "service": summary.service,
        "report": summary.report,
        "folder": folder.uri,
        "gate": gate,
        "best trial": best,
        "last step": summary.step,
    }
    cells = [(name, markdown.text(value or page.MISSING)) for name, value in rows.items()]
    parts = [f"# {summary.run_id}: {summary.state}\n", markdown.table(["", ""], cells)]
    if summary.reason:
        parts += ["Why:\n", markdown.block(summary.reason)]
    if summary.resume:
        parts.append(f"Resume it with {markdown.code(summary.resume)}\n")
    if summary.state not in (*COMPLETE, step.UNCHANGED):
        status_command = markdown.code(f"python pipeline.py --status {summary.run_id}")
        parts.append(
            f"A Retry does not update this page; {status_command} shows the state after it.\n"
        )
    return "\n".join(parts)


def _post_summary(url: str, summary: SummaryRecord) -> None:
    """POST the summary. If the webhook refuses it, print a warning; the step does not fail."""
    try:
        answer = http.send(
            http.session(),
            "POST",
            url,
            seconds=WEBHOOK_SECONDS,
            # not `json=`: requests refuses a NaN, which a gain may be
            data=json.dumps(summary.as_json()),
            headers={"Content-Type": "application/json"},
        )
    except UnreachableError as error:
        step.say(f"warning: the webhook did not get the summary: {error}")
        return
    if answer.ok:
        step.say(f"webhook: {answer.status_code}")
    else:
        step.say(f"warning: the webhook refused the summary: {http.status_line(answer)}")


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = Parser(prog="python -m components.finish", description=__doc__)
    for name, metavar in (("s3-bucket", "URI"), ("run-id", "ID"), ("network-config", "FILE")):
        parser.add_argument(
            f"--{name}",
            type=str,  # an empty field of the form is reported by prepare, and recorded here
            required=True,
            metavar=metavar,
            help="the run's parameter of this name",
        )
    parser.add_argument(
        "--job-id",
        type=str,
        default="",
        metavar="ID",
        help="KFP job id, from which prepare derives an 'auto' run id, and which marks the steps of"
        " this job",
    )
    parser.add_argument(
        "--s3-endpoint",
        default=AUTO,
        metavar="URL",
        help="S3 endpoint; 'auto' takes AWS_ENDPOINT_URL (default: auto)",
    )
    parser.add_argument(
        "--executor-input",
        type=str,
        default="",
        metavar="JSON",
        help="KFP's executor input; leave it out by hand",
    )
    args = parser.parse_args(argv)

    def body() -> None:
        """Find the run's folder and run `finish`."""
        step.use_endpoint(args.s3_endpoint)
        run_id = (
            make_run_id(args.network_config, args.job_id) if args.run_id == AUTO else args.run_id
        )
        if args.s3_bucket == AUTO:  # prepare has refused it, so there is no folder
            text = f"# {run_id}: failed\n\nprepare: {step.NO_BUCKET}\n"
            step.Artifacts(args.executor_input).set("summary", content=text)
            step.say(f"{run_id}: failed: {step.NO_BUCKET}")
            return
        uri = storage.join(storage.absolute(args.s3_bucket), run_id)
        if storage.is_local(uri):
            step.free_reserve(local_path(uri))  # no step follows
        if step.LOCAL_DIR in os.environ and not status_of(uri, args.job_id).steps:
            return  # prepare refused its parameters and has printed why
        summary = finish(uri, step.Artifacts(args.executor_input), args.job_id)
        if summary.resume:
            step.say(f"to resume it: {summary.resume}")
        first, *more = summary.reason.splitlines() or [""]
        if more:
            step.say(summary.reason)
        step.say_result(f"{summary.run_id} {summary.state}" + (f": {first}" if first else ""))

    step.stop_on_sigterm()
    return run_main(step.patient(body, args.job_id))


if __name__ == "__main__":
    raise SystemExit(main())
