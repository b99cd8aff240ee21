"""`pipeline.py --status RUN_ID`: show what a run does or how it ended, from every place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from clusters import orphans
from common import storage
from common.layout import RunFolder
from common.records import (
    TERMINATED,
    MetricsRecord,
    SearchRecord,
    ServiceRecord,
    StatusRecord,
    SummaryRecord,
)
from operations import kubeflow_runs
from operations.kubeflow_runs import KubeflowRun
from operations.target import Target


def status(target: Target) -> int:
    """Print it; the exit code is 0 for a run that goes on or ended well, 1 for one that did not."""
    print(f"run {target.run_id}" + (f" in {target.folder}" if target.folder else ""))
    failed = False

    record = StatusRecord()
    if target.folder:
        record = StatusRecord.find(RunFolder(target.folder).status) or record
        failed = record.state == "failed"
    if (run := target.kubeflow) is not None:
        run.refresh()
        show_section("Kubeflow Pipelines", [f"{run_word(run, record)}: {run.url}"])
        show_section("steps", (step.line() for step in merged_steps(run, record)))
        if target.folder and run.has_ended:
            summary = SummaryRecord.find(RunFolder(target.folder).summary)
            show_section("reason", reason_lines(run, record, summary))
        failed = run.state in ("FAILED", "CANCELED")
    elif target.folder:
        show_section("steps", step_lines(record, target))
    if target.folder:
        show_section("results", verdict_lines(RunFolder(target.folder)))

    if target.operator is not None:
        entries = target.operator.describe(target.run_id, target.kfp_id)
        width = max((len(f"{entry.kind} {entry.name}") for entry in entries), default=0)
        show_section(
            "cluster",
            (f"{f'{entry.kind} {entry.name}':<{width}}  {entry.told}" for entry in entries),
        )

    processes = local_processes(target)
    show_section(
        "processes here", (f"{pid:>7}  {command[:110]}" for pid, command in processes.items())
    )
    for line in target.unseen:
        print(f"not seen: {line}")
    return 1 if failed else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepState:
    """A step of a run on Kubeflow, by what Kubeflow and the run's folder know of it together."""

    name: str
    state: str
    """In the words of status.json, and pending or omitted."""
    time: str
    reason: str

    def line(self) -> str:
        first = self.reason.splitlines()[0] if self.reason else ""
        return f"{self.name:<9} {self.state:<12} {self.time:<26} {first}".rstrip()


WORDS = {"SUCCEEDED": "done", "CANCELED": "interrupted"}
"""KFP's words that status.json has others for."""


def merged_steps(run: KubeflowRun, record: StatusRecord) -> list[StepState]:
    """Return the steps that Kubeflow knows, each with its reason from the run's status.json.

    Kubeflow knows which step has ended, also of one that was killed before it could write so; only
    status.json knows why (KFP 2.15.0 never fills in a task's error).
    """
    merged = []
    for step in kubeflow_runs.steps(run):
        own = record.steps.get(step.name)
        if own is not None and own.job_id != run.id:
            own = None  # of an earlier job of this run
        state = WORDS.get(step.state, step.state.lower())
        if run.has_ended and state in ("running", "pending"):
            state = "failed"
        reason = own.reason if own else step.error
        if state == "running" and own and own.state == "failed":
            reason = f"an attempt failed: {own.reason}"
        elif state == "failed" and own and own.state in ("failed", "interrupted"):
            state = own.state
        elif state == "failed" and own and own.state == "done":
            reason = "the step ended well, its pod did not; its log says more (--logs)"
        elif state == "failed" and not reason:
            reason = "stopped before it could say why"
        time = step.started or (own.time if own else "")
        merged.append(StepState(name=step.name, state=state, time=time, reason=reason))
    return merged


def run_word(run: KubeflowRun, record: StatusRecord) -> str:
    """Return the state of a run on Kubeflow in one word.

    A terminated run ends as FAILED there (seen with KFP 2.15.0); status.json says that it was.
    """
    own = [step for step in record.steps.values() if step.job_id == run.id]
    if run.state == "CANCELED" or (
        run.state == "FAILED" and any(step.reason == TERMINATED for step in own)
    ):
        return "terminated"
    return "terminating" if run.state == "CANCELING" else run.state.lower()


def reason_lines(
    run: KubeflowRun, record: StatusRecord, summary: SummaryRecord | None
) -> Iterator[str]:
    """Yield why a run on Kubeflow that has ended did not end well, and how to go on."""
    if run.state not in ("FAILED", "CANCELED"):
        return
    told = False
    for step in merged_steps(run, record):
        if step.state in ("failed", "interrupted") and step.reason:
            yield f"{step.name} {step.state}: {step.reason}"
            told = True
    # After Retry in the UI the summary is still that of the first end.
    if summary is None or summary.time < record.time:
        return
    if not told and summary.reason:
        yield f"{summary.state}: {summary.reason}"
    if summary.resume:
        yield f"to go on with it: {summary.resume}"


def local_processes(target: Target) -> dict[int, str]:
    """Return pid -> command line of the run's processes here, the command that runs it first."""
    output = Path(target.args.output).resolve()
    processes = {}
    if owner := orphans.owner(output / target.run_id / "local"):
        processes[owner] = "python pipeline.py (runs it)"
    return processes | orphans.processes_of(target.run_id, output)


def show_section(title: str, lines: Iterable[str]) -> None:
    """Print the lines below a title; nothing where there is no line."""
    listed = [f"  {line}" for line in lines]
    if listed:
        print("\n".join(["", title, *listed]))


def step_lines(record: StatusRecord, target: Target) -> Iterator[str]:
    """Yield a line for each step of a run's status.json."""
    # Nothing but this machine can run what neither Kubeflow nor S3 knows.
    here_only = target.kubeflow is None and not storage.is_s3(target.folder)
    for name, step in record.steps.items():
        state = step.state
        if state == "running" and here_only and not local_processes(target):
            state = "was running when it was killed"
        reason = step.reason.splitlines()[0] if step.reason else ""
        yield f"{name:<9} {state:<12} {step.time}  {reason}".rstrip()


def verdict_lines(folder: RunFolder) -> Iterator[str]:
    """Yield what a run's folder holds of results, as far as it got."""
    search = SearchRecord.find(folder.search)
    if search:
        yield (
            f"{len(search.trials)} trials, best {search.optimal}: {search.objective.name}"
            f" {search.best_value:.5f}"
        )
    else:
        started = set()
        for entry in storage.entries(folder.trials):
            # trials/<trial>/...
            started.add(entry.uri[len(folder.uri) + 1 :].split("/")[1])
        if started:
            yield f"{len(started)} trials begun"

    metrics = MetricsRecord.find(folder.metrics)
    if metrics:
        gain = metrics.gain.percent() if metrics.gain else "not measured"
        yield f"resolution gain over the standard JEC: {gain}"
        if metrics.passed:
            yield "gate passed"
        else:
            yield f"gate not passed: {'; '.join(metrics.reasons)}"
        yield f"report: {folder.report}"
    service = ServiceRecord.find(folder.service)
    if service:
        yield service_line(service, here=not storage.is_s3(folder.uri))


def service_line(service: ServiceRecord, *, here: bool) -> str:
    """Return where the model is served, or was. `here`: the run's folder is on this machine."""
    from serving import triton

    line = f"served as {service.name} at {service.url} ({service.kind})"
    # A server on one machine ends with the command that started it; one on a cluster has no pid.
    pid = service.details.get("pid")
    if pid is None or not here or triton.is_running(pid):
        return line
    return f"was {line}, which has ended; --resume with --serve brings it back"
