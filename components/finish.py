"""finish: the exit handler. It ends what others could not end, and writes the run's summary.

It runs when the other steps are over: after a success, a failure, a termination, and after a step's
pod was lost. It knows of them what the run's folder says: servers older than 2.14 give an exit
handler no status, and none gives one of a run that was terminated. A step that was killed cannot
say why, nor remove what it started; finish asks the cluster why, writes it down, and removes it.
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

STOPPED = ("running", "interrupted")
"""States of a step that was stopped from outside; it may not have come to write the second."""
CAME_TO_ITS_END = ("succeeded", "not deployed")
"""States of a run whose chain has done all that it can."""
ENDING = "ending"
"""State of a summary that was saved before the cluster was asked how the run ended."""
HOST_NOTE = "add --host, and --auth, --steps-image, --steps-account as for the first run"


def finish(uri: str, artifacts: step.Artifacts, job_id: str = "") -> SummaryRecord:
    """Write `<run>/summary.json` where there is such a run, and POST it to the webhook.

    Before it, write down why a step was stopped, and remove what the run left unfinished. The
    webhook is that of the environment.
    """
    summary = summarise(uri, job_id)
    # On one machine nothing runs on, and by hand nobody else has run the steps.
    on_kubeflow = job_id and step.LOCAL_DIR not in os.environ
    if on_kubeflow and summary.state in ("failed", "interrupted"):
        summary = summarise_stopped(uri, job_id)
    if summary.steps:
        summary.save(RunFolder(uri).summary)
    tracked.end(uri, summary)
    if summary.state in CAME_TO_ITS_END:
        unchanged.keep_success(uri, summary)
    artifacts.set("summary", content=as_markdown(summary))
    try:
        if url := webhook():
            _tell(url, summary)
    except InputError as error:
        step.say(f"warning: the webhook did not get the summary: {error}")
    return summary


def webhook() -> str:
    """The URL of the webhook, from WEBHOOK or the file that WEBHOOK_FILE names; empty for none.

    Raises InputError for a file that cannot be read, and for what is no URL. Its text never holds
    the URL.
    """
    url = os.environ.get(WEBHOOK, "").strip()
    source = WEBHOOK
    if not url and (path := os.environ.get(WEBHOOK_FILE)):
        source = f"{WEBHOOK_FILE} {path}"
        try:
            url = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{source} cannot be read: {type(error).__name__}") from None
        if not url:
            raise InputError(f"{source} is empty; write the URL into it")
    if url and not url.startswith(("http://", "https://")):
        raise InputError(f"the value of {source} is no http(s) URL; write https://...")
    return url


def summarise_stopped(uri: str, job_id: str) -> SummaryRecord:
    """Make the end of a run that did not end well true, and summarise it.

    status.json says why its last step was stopped, nothing of it runs on, and the summary says how
    to go on, and what could not be removed. A summary is saved before each of the waits, as Argo
    makes no second attempt of this step after a termination.
    """
    status = status_of(uri, job_id)
    if status.steps:
        pending = summarise(uri, job_id)
        if status.state in (*STOPPED, "done"):
            reason = "finish is asking the cluster why the run has ended"
            pending = dataclasses.replace(pending, state=ENDING, reason=reason)
        pending.save(RunFolder(uri).summary)
    stop = why_stopped(status.step, job_id)
    # else another job of this run has begun: what runs now is its own
    is_last = not status.steps or status.steps[status.step].job_id == job_id
    if is_last:
        write_end(uri, job_id, status, stop)
    status = status_of(uri, job_id)
    summary = summarise(uri, job_id, terminated=stop is not None and stop.reason == TERMINATED)
    if not status.steps and stop is not None and stop.task:
        # an earlier job has its own status there
        summary = dataclasses.replace(summary, reason=f"{stop.task}: {stop.reason}")
    if not status.steps:
        return summary
    summary = dataclasses.replace(summary, resume=resume_command(uri))
    summary.save(RunFolder(uri).summary)
    if is_last and (left := remove_unfinished(uri)):
        reason = "; ".join(filter(None, (summary.reason, left)))
        summary = dataclasses.replace(summary, reason=reason)
    return summary


def why_stopped(name: str, job_id: str) -> Stop | None:
    """Why the run's last step was stopped, as the cluster tells; None where it tells nothing."""
    from clusters.kubernetes import KubernetesCluster

    try:
        # the pods of a KFP run are in the namespace of this pod, wherever its jobs are
        return KubernetesCluster().why_stopped(job_id, name, deadline=LOOK_SECONDS)
    except JecError as error:
        step.say(f"why the run ended is not known from the cluster: {error}")
        return None


def write_end(uri: str, job_id: str, status: StatusRecord, stop: Stop | None) -> None:
    """Write down why the last step was stopped, or why the next one did not begin.

    Let one that failed be tried again: what follows the end of a run, such as Retry in the UI, is a
    person's wish, and begins to count attempts anew.
    """
    name, entry = status.step, status.steps.get(status.step)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if entry is not None and entry.state == "failed":
        entry = dataclasses.replace(entry, retryable=True)
    elif stop is None:
        return
    elif entry is not None and entry.state in STOPPED:
        entry = dataclasses.replace(entry, state=stop.state, reason=stop.reason, time=now)
    elif stop.task:
        if entry is None and step.read_status(uri).steps:
            return  # the status of another job, which may be a later one
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
    """The step after the last one that has written to a status.json; the first one of an empty."""
    if not status.steps:
        return NAMES[0]
    return NAMES[min(NAMES.index(status.step) + 1, len(NAMES) - 1)]


def remove_unfinished(uri: str) -> str:
    """Remove the run's unfinished Experiment and jobs; returns what could not be removed, and how.

    Empty where all went well. Finished ones stay to be looked at, and services serve on.
    """
    from clusters.api import NoCluster
    from clusters.kubernetes import KubernetesCluster

    if not storage.exists(RunFolder(uri).run):
        return ""  # prepare, which makes nothing on the cluster, did not end
    try:
        namespace = Run.load(uri).config.namespace
        removed = KubernetesCluster(namespace).delete_unfinished(
            storage.name(uri), deadline=REMOVAL_SECONDS, report=step.say
        )
    except NoCluster as error:
        step.say(f"nothing was looked for on a cluster: {error.short}")
        return ""
    except JecError as error:
        bucket, run_id = uri.rsplit("/", 1)
        down = f"python pipeline.py --down {run_id} --s3-bucket {bucket}"
        if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
            down += f" --s3-endpoint {endpoint}"
        return f"what is unfinished on the cluster may run on ({error}); {down} removes it"
    for name in removed:
        step.say(f"removed {name}, which the run left unfinished")
    return ""


def resume_command(uri: str) -> str:
    """The command that goes on with a run on Kubeflow, as far as a pod can know it.

    Only the user knows Kubeflow's address and what else is no parameter of the run: a note at its
    end, a comment of the shell, says so.
    Where prepare did not end, it does the same again: nothing has been written to go on with.
    """
    bucket, run_id = uri.rsplit("/", 1)
    prepared = storage.exists(RunFolder(uri).run)
    flags = ["--resume" if prepared else "--rerun", run_id, "--s3-bucket", bucket]
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        flags += ["--s3-endpoint", endpoint]
    if prepared and (namespace := Run.load(uri).config.namespace) != AUTO:
        flags += ["--namespace", namespace]
    return f"python pipeline.py {shlex.join(flags)}  # {HOST_NOTE}"


def status_of(uri: str, job_id: str) -> StatusRecord:
    """The run's status.json; empty where no step of the job `job_id` has written to it.

    It then describes an earlier job.
    """
    status = step.read_status(uri)
    jobs = {entry.job_id for entry in status.steps.values()}
    return status if not job_id or job_id in jobs else StatusRecord()


def summarise(uri: str, job_id: str = "", *, terminated: bool = False) -> SummaryRecord:
    """How the run in a folder ended: state, the step it ended in and why, and its results.

    job_id: of the KFP run that ended, whose steps and results alone count; empty: of whichever
    wrote last. `terminated`: a user has ended the run, maybe between two steps.
    """
    folder, status = RunFolder(uri), status_of(uri, job_id)

    def of_this_job(name: str) -> bool:
        """Whether the step of that name, and so its result, belongs to this job."""
        if not job_id:
            return True
        return name in status.steps and status.steps[name].job_id == job_id

    search = SearchRecord.find(folder.search) if of_this_job("search") else None
    metrics = MetricsRecord.find(folder.metrics) if of_this_job("evaluate") else None
    service = ServiceRecord.find_readable(folder.service) if of_this_job("deploy") else None
    state, reason = _end(status, metrics, terminated=terminated)
    skipped = UnchangedRecord.find_readable(folder.unchanged)
    if skipped and of_this_job("prepare") and (status.step, status.state) == ("prepare", "done"):
        state, reason = step.UNCHANGED, skipped.reason
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


def _end(
    status: StatusRecord, metrics: MetricsRecord | None, *, terminated: bool
) -> tuple[str, str]:
    """The run's final state, and its reason."""
    name, state = status.step, status.state
    if state in ("failed", "interrupted"):
        return state, status.reason
    if state == "running":  # a step that ends by itself says so: this one was killed
        return "failed", f"{name} was killed, and the cluster does not tell why"
    if (name, state) == ("deploy", "done"):
        return "succeeded", ""
    if (name, state) == ("evaluate", "done") and not (metrics and metrics.passed):
        return "not deployed", "; ".join(metrics.reasons if metrics else [])
    if terminated:
        return "interrupted", TERMINATED
    if state == "done":
        return "failed", f"nothing happened after {name}: the next step's pod did not start"
    return "failed", "prepare left no trace: it refused its parameters, or its pod did not start"


def as_markdown(summary: SummaryRecord) -> str:
    """The summary as Kubeflow shows it beside the step: what was reached, then why, then how."""
    gain, folder = summary.gain_percent, RunFolder(summary.run)
    gate = None
    if summary.gate is not None and (asked := summary.gate_settings):
        gate = (
            f"{'passed' if summary.gate else 'not passed'}; {asked.gate} gate, limits: gain"
            f" {asked.min_improvement:g} %, closure {100 * asked.max_closure:g} % or the standard"
            " JEC's own"
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
        parts.append(f"Go on with {markdown.code(summary.resume)}\n")
    if summary.state not in (*CAME_TO_ITS_END, step.UNCHANGED):
        again = markdown.code(f"python pipeline.py --status {summary.run_id}")
        parts.append(f"After Retry this page stays as it is; {again} shows how that ended.\n")
    return "\n".join(parts)


def _tell(url: str, summary: SummaryRecord) -> None:
    """POST the summary. A webhook that does not take it is a warning, and no reason to fail."""
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
        step.say(f"warning: the webhook did not take the summary: {error}")
        return
    if answer.ok:
        step.say(f"webhook: {answer.status_code}")
    else:
        step.say(f"warning: the webhook did not take the summary: {http.status_line(answer)}")


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = Parser(prog="python -m components.finish", description=__doc__)
    for name in ("s3-bucket", "run-id", "network-config"):
        parser.add_argument(f"--{name}", required=True, help="as the run's")
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
        if args.s3_bucket == AUTO:  # prepare has refused it, and there is no folder to look into
            text = f"# {run_id}: failed\n\nprepare: {step.NO_BUCKET}\n"
            step.Artifacts(args.executor_input).set("summary", content=text)
            step.say(f"{run_id}: failed: {step.NO_BUCKET}")
            return
        uri = storage.join(storage.absolute(args.s3_bucket), run_id)
        if storage.is_local(uri):
            step.give_back(local_path(uri))  # no step follows
        if step.LOCAL_DIR in os.environ and not status_of(uri, args.job_id).steps:
            return  # prepare refused, and has said why a line above
        summary = finish(uri, step.Artifacts(args.executor_input), args.job_id)
        if summary.resume:
            step.say(f"to go on with it: {summary.resume}")
        first, *more = summary.reason.splitlines() or [""]
        if more:
            step.say(summary.reason)
        step.say_result(f"{summary.run_id} {summary.state}" + (f": {first}" if first else ""))

    step.stop_on_sigterm()
    return run_main(step.patient(body, args.job_id))


if __name__ == "__main__":
    raise SystemExit(main())
