"""`pipeline.py --status RUN_ID`: show the state of a run from its files, Kubeflow and the cluster.

`--json` prints the same as one JSON object with the fields of `RunStatus`.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from clusters import orphans, run_lock, workflow
from common import storage
from common.config import AUTO
from common.errors import JecError
from common.layout import RunFolder
from common.measurements import Interval
from common.records import (
    TERMINATED,
    MetricsRecord,
    SearchRecord,
    ServiceRecord,
    StatusRecord,
    SummaryRecord,
    UnchangedRecord,
)
from components.finish import ENDING
from components.steps import NAMES
from images.digests import image
from operations import kubeflow_runs
from operations.kubeflow_runs import PAGE, PAGES, KubeflowRun, Step
from operations.target import Target

REASON_LINES = 8  # lines of a step's reason that are printed; the log's lines follow after these


def status(target: Target, *, as_json: bool = False) -> int:
    """Print a run's status; return 1 if the run failed or no place could be asked, else 0."""
    run_status = look(target)
    found_nothing = target.is_unreachable and not run_status.processes
    if as_json:
        print(json.dumps(dataclasses.asdict(run_status), indent=2))
    else:
        show(run_status)
        if found_nothing:
            print(target.unreachable)
    return 1 if run_status.failed or found_nothing else 0


@dataclasses.dataclass(kw_only=True)
class RunStatus:
    """The state of a run in all places that have it; `--json` prints these fields."""

    run_id: str
    folder: str
    """URI of the run's files; empty if there are none."""
    state: str = ""
    """The run's state in one word, from Kubeflow Pipelines or else status.json."""
    failed: bool = False
    kubeflow: str = ""
    """State and address of the run on Kubeflow Pipelines; empty if no server was asked."""
    steps: list[StepState] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)
    """Why a run on Kubeflow failed, and how to resume it."""
    results: Results | None = None
    objects: list[ClusterObject] = dataclasses.field(default_factory=list)
    processes: dict[int, str] = dataclasses.field(default_factory=dict)
    """The run's processes on this machine: pid -> command line."""
    not_seen: list[str] = dataclasses.field(default_factory=list)
    """Places that could not be asked, with the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterObject:
    """An object of the run on a cluster."""

    name: str
    """Kind and name."""
    state: str


def look(target: Target) -> RunStatus:
    """Ask every place that has the run for its state. Raises ClusterError if a server refuses."""
    run_status = RunStatus(run_id=target.run_id, folder=target.folder)
    record = StatusRecord()
    if target.folder:
        record = StatusRecord.find_readable(RunFolder(target.folder).status) or record
        run_status.state, run_status.failed = record.state, record.state == "failed"
    if (run := target.kubeflow) is not None:
        run.refresh()
        run_status.state = run_word(run, record)
        run_status.kubeflow = f"{run_status.state}: {run.url}"
        run_status.steps = merged_steps(run, record)
        run_status.failed = run.state in ("FAILED", "CANCELED")
        if run.has_ended:
            summary = None
            if target.folder:
                summary = SummaryRecord.find_readable(RunFolder(target.folder).summary)
            run_status.reasons = list(reason_lines(target, run, record, summary))
            # `reasons` has the full text; the list of steps shows the first line
            for number, step in enumerate(run_status.steps):
                first = "".join(step.reason.splitlines()[:1])
                run_status.steps[number] = dataclasses.replace(step, reason=first)
    elif target.folder:
        if is_forgotten(target, record):
            run_status.kubeflow = (
                f"no run with this id at {target.forgotten_by}: it was deleted there, or is older"
                f" than the newest {PAGE * PAGES:,}"
            )
            run_status.failed = record.state != "done"
        run_status.steps = list(own_steps(record, target))
    if target.folder:
        run_status.results = results_of(RunFolder(target.folder), target)
    if target.operator is not None:
        for entry in target.operator.describe(target.run_id, target.kfp_id):
            name = f"{entry.kind} {entry.name}"
            run_status.objects.append(ClusterObject(name=name, state=entry.state))
    run_status.processes = local_processes(target)
    run_status.not_seen = target.unseen
    return run_status


def show(run_status: RunStatus) -> None:
    """Print a status as text, in sections."""
    print(f"run {run_status.run_id}" + (f" in {run_status.folder}" if run_status.folder else ""))
    show_section("Kubeflow Pipelines", [run_status.kubeflow] if run_status.kubeflow else [])
    show_section("steps", (step.line() for step in run_status.steps))
    show_section("reason", run_status.reasons)
    show_section("results", run_status.results.lines() if run_status.results else [])
    width = max((len(entry.name) for entry in run_status.objects), default=0)
    show_section(
        "cluster", (f"{entry.name:<{width}}  {entry.state}" for entry in run_status.objects)
    )
    lines = (f"{pid:>7}  {command[:110]}" for pid, command in run_status.processes.items())
    show_section("processes here", lines)
    for line in run_status.not_seen:
        print(f"not seen: {line}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepState:
    """A step of a run, merged from Kubeflow and the run's status.json."""

    name: str
    state: str
    """A state of status.json, or pending or omitted."""
    time: str
    """When it started or its state changed, in ISO 8601."""
    reason: str
    """Why it failed; may have several lines."""

    def line(self) -> str:
        """Return the step as a line, with the other lines of its reason below."""
        return with_reason(f"{self.name:<9} {self.state:<12} {self.time:<26}", self.reason)


@dataclasses.dataclass(kw_only=True)
class Results:
    """The results in a run's folder; fields of steps that have not ended are empty."""

    trials: int = 0
    best_trial: str = ""
    """Empty until the search has ended."""
    objective: str = ""
    best_value: float | None = None
    measured: bool = False
    gain: Interval | None = None
    """Resolution gain over the standard JEC; None if it was not measured."""
    gate_passed: bool | None = None
    gate_reasons: list[str] = dataclasses.field(default_factory=list)
    report: str = ""
    service: str = ""
    """Where the model is served, or was."""
    url: str = ""
    """URL of the service."""
    unchanged: str = ""
    """Why --if-data-changed ended the run early."""

    def lines(self) -> Iterator[str]:
        """Yield the results as lines of text."""
        if self.unchanged:
            yield f"unchanged: {self.unchanged}"
        if self.best_value is not None:
            best = f"best {self.best_trial}: {self.objective} {self.best_value:.5f}"
            yield f"{count_of(self.trials)}, {best}"
        elif self.trials:
            yield f"{count_of(self.trials)} started"
        if self.measured:
            gain = self.gain.percent() if self.gain else "not measured"
            yield f"resolution gain over the standard JEC: {gain}"
            if self.gate_passed:
                yield "gate passed"
            else:
                yield f"gate not passed: {'; '.join(self.gate_reasons)}"
            yield f"report: {self.report}"
        if self.service:
            yield self.service


def with_reason(line: str, reason: str) -> str:
    """Return `line` with the first line of `reason` appended, and the next ones below, indented.

    At most REASON_LINES lines of the reason are shown; a note says how many are left out.
    """
    lines = reason.splitlines()
    first, rest = "".join(lines[:1]), lines[1:REASON_LINES]
    if len(lines) > REASON_LINES:
        rest.append(f"({len(lines) - REASON_LINES} more lines in status.json)")
    return "\n".join([f"{line} {first}".rstrip(), *(f"    {text.strip()}" for text in rest)])


WORDS = {"SUCCEEDED": "done", "CANCELED": "interrupted"}
"""State of KFP -> state of status.json, where they differ."""


def merged_steps(run: KubeflowRun, record: StatusRecord) -> list[StepState]:
    """Return the steps that Kubeflow lists, each with its reason from the run's status.json.

    The state comes from Kubeflow, which also notices a step that was killed before it could write
    its own. The reason comes from status.json, because KFP 2.15.0 never sets a task's error, or
    from Argo's Workflow if the step's pod could not be created.
    """
    steps = {step.name: step for step in kubeflow_runs.steps(run)}
    refusals = refused_steps(run, steps)
    states = []
    for name in NAMES:
        step = steps.get(name)
        if step is None and name not in refusals:
            continue
        own = record.steps.get(name)
        if own is not None and own.job_id != run.id:
            own = None  # written by an earlier Kubeflow run with the same run id
        state = "failed" if step is None else WORDS.get(step.state, step.state.lower())
        if run.has_ended and state in ("running", "pending"):
            state = "failed"
        reason = own.reason if own else step.error if step else ""
        if step and is_refused_by_gate(step, run, record):
            state = "omitted"
        if name in refusals and (own is None or own.state not in ("failed", "interrupted")):
            state, reason = "failed", refusals[name]
        elif state == "running" and own and own.state == "failed":
            reason = f"an attempt failed: {own.reason}"
        elif state == "failed" and own and own.state in ("failed", "interrupted"):
            state = own.state
        elif state == "failed" and own and own.state == "done":
            reason = "the step succeeded but its pod failed; see its log (--logs)"
        elif state == "failed" and not reason and not run.has_ended:
            reason = "stopped before it could write a reason; finish asks the cluster"
        elif state == "failed" and not reason:
            is_terminated = workflow.is_terminated(run.workflow)
            reason = TERMINATED if is_terminated else "stopped before it could write a reason"
        time = (step.start_time if step else "") or (own.time if own else "")
        states.append(StepState(name=name, state=state, time=time, reason=reason))
    return states


def is_refused_by_gate(step: Step, run: KubeflowRun, record: StatusRecord) -> bool:
    """Return whether a step is deploy and had nothing to do, because the gate refused the model.

    Kubeflow reports it as succeeded, but it wrote nothing to the run's status.json.
    """
    evaluate, deploy = record.steps.get("evaluate"), record.steps.get("deploy")
    if step.name != "deploy" or step.state != "SUCCEEDED" or evaluate is None:
        return False
    is_evaluated = evaluate.state == "done" and evaluate.job_id == run.id
    return is_evaluated and (deploy is None or deploy.job_id != run.id)


def refused_steps(run: KubeflowRun, steps: dict[str, Step]) -> dict[str, str]:
    """Return the steps whose pod or driver Argo could not start: step -> reason."""
    refusals: dict[str, str] = {}
    if run.state != "FAILED" or workflow.is_terminated(run.workflow):
        return refusals
    for task, reason in workflow.refusals(run.workflow).items():
        if task in NAMES:
            refusals.setdefault(task, reason)
        else:
            # the driver of the run or of a part of it: the first remaining step could not start
            succeeded = [
                name for name in NAMES if name in steps and steps[name].state == "SUCCEEDED"
            ]
            remaining = [name for name in NAMES if name not in succeeded]
            refusals.setdefault(remaining[0], f"{reason} ({task})")
    return refusals


def run_word(run: KubeflowRun, record: StatusRecord) -> str:
    """Return the state of a run on Kubeflow in one word.

    KFP reports a terminated run as FAILED (observed with 2.15.0); its Workflow or status.json tells
    that it was terminated.
    """
    own = [step for step in record.steps.values() if step.job_id == run.id]
    if run.state == "CANCELED":
        return "terminated"
    if run.state == "FAILED" and (
        any(step.reason == TERMINATED for step in own) or workflow.is_terminated(run.workflow)
    ):
        return "terminated"
    words = {"CANCELING": "terminating", "": "no state yet"}
    return words.get(run.state, run.state.lower())


def reason_lines(
    target: Target, run: KubeflowRun, record: StatusRecord, summary: SummaryRecord | None
) -> Iterator[str]:
    """Yield why a run on Kubeflow failed, and how to clean up and resume; nothing if it did not."""
    if run.state not in ("FAILED", "CANCELED"):
        return
    has_reason = False
    steps = merged_steps(run, record)
    for step in steps:
        if step.state in ("failed", "interrupted") and step.reason:
            yield with_reason(f"{step.name} {step.state}:", step.reason)
            has_reason = True
    own = summary and any(step.job_id == run.id for step in summary.steps.values())
    if not has_reason and not own and workflow.is_terminated(run.workflow):
        yield TERMINATED
    # After Retry in the UI, finish does not run again: the summary is that of the first attempt.
    is_first_end = summary is None or not own or summary.time >= record.time
    is_finished = any(step.name == "finish" and step.state == "done" for step in steps)
    if steps and not (is_finished and is_first_end):
        down = ["python", "pipeline.py", "--down", target.run_id, *flags_of(target, run)]
        yield f"finish did not clean up; to remove what is left: {shlex.join(down)}"
    if summary is None or not own or not is_first_end or summary.state == ENDING:
        return
    if not has_reason and summary.reason:
        yield with_reason(f"{summary.state}:", summary.reason)
    if summary.resume:
        yield f"to resume it: {with_flags(summary.resume, flags_of(target, run))}"


def flags_of(target: Target, run: KubeflowRun) -> list[str]:
    """Return the flags of this command that the next command needs and run.json does not have."""
    args = target.args
    flags = ["--host", run.server.host]
    for name, default in (("auth", AUTO), ("steps_image", image("steps")), ("steps_account", AUTO)):
        if getattr(args, name) != default:
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return flags


def with_flags(command: str, flags: list[str]) -> str:
    """Return the command of a summary with more flags, which the pod that wrote it did not know."""
    words = shlex.split(command, comments=True)
    if "--host" in words:
        # summaries of earlier versions have a placeholder there
        place = words.index("--host")
        del words[place : place + 2]
    return shlex.join([*words, *flags])


def local_processes(target: Target) -> dict[int, str]:
    """Return the run's processes on this machine: pid -> command line, pipeline.py's first."""
    output = Path(target.args.output).resolve()
    processes = {}
    if owner := run_lock.owner(output / target.run_id / "local"):
        processes[owner] = "python pipeline.py (executes the run)"
    return processes | orphans.processes_of(target.run_id, output)


def show_section(title: str, lines: Iterable[str]) -> None:
    """Print the lines below a title; print nothing if there are no lines."""
    indented_lines = ["  " + line.replace("\n", "\n  ") for line in lines]
    if indented_lines:
        print("\n".join(["", title, *indented_lines]))


def own_steps(record: StatusRecord, target: Target) -> Iterator[StepState]:
    """Yield the steps in a run's status.json."""
    # A run that is neither on Kubeflow nor on remote storage can only run on this machine.
    here_only = target.kubeflow is None and storage.is_local(target.folder)
    for name, step in record.steps.items():
        state = step.state
        if state == "running" and here_only and not local_processes(target):
            state = "was running when it was killed"
        elif state == "running" and target.forgotten_by and step.job_id:
            state = "was running"
        yield StepState(name=name, state=state, time=step.time, reason=step.reason)


def is_forgotten(target: Target, record: StatusRecord) -> bool:
    """Return whether a run that was on Kubeflow Pipelines is no longer known there."""
    on_kubeflow = any(step.job_id for step in record.steps.values())
    return bool(target.forgotten_by) and on_kubeflow


def results_of(folder: RunFolder, target: Target) -> Results:
    """Return the results in a run's folder."""
    results = Results()
    if unchanged := UnchangedRecord.find_readable(folder.unchanged):
        results.unchanged = unchanged.reason
    search = SearchRecord.find(folder.search)
    if search:
        results.trials, results.best_trial = len(search.trials), search.optimal
        results.objective, results.best_value = search.objective.name, search.best_value
    else:
        trials = set()
        for entry in storage.entries(folder.trials):
            # trials/<trial>/...
            trials.add(entry.uri[len(folder.uri) + 1 :].split("/")[1])
        results.trials = len(trials)

    metrics = MetricsRecord.find(folder.metrics)
    if metrics:
        results.measured, results.gain = True, metrics.gain
        results.gate_passed, results.gate_reasons = metrics.passed, list(metrics.reasons)
        results.report = folder.report
    service = ServiceRecord.find_readable(folder.service)
    if service:
        results.service = service_line(service, target, here=not storage.is_s3(folder.uri))
        results.url = service.url
    return results


def count_of(trials: int) -> str:
    """Return '1 trial' or 'N trials'."""
    return f"{trials} trial" + ("" if trials == 1 else "s")


def service_line(service: ServiceRecord, target: Target, *, here: bool) -> str:
    """Return where the model is or was served. `here`: the run's folder is on this machine."""
    place = f"{service.name} at {service.url} ({service.kind})"
    if "from_outside" in service.details:
        place += f"; from outside the cluster: {service.details['from_outside']}"
    pid = service.details.get("pid")
    if pid is None:
        return cluster_service_line(service, target, place)
    from serving import triton

    # A server on one machine ends with the command that started it.
    if not here or triton.is_running(pid):
        return f"served as {place}"
    return f"was served as {place}, which has ended; --resume with --serve starts it again"


def cluster_service_line(service: ServiceRecord, target: Target, place: str) -> str:
    """Return where a cluster serves the model, or served it before a removal or another run."""
    operator = target.operator
    unchecked = f"was deployed as {place}; whether it still serves was not checked"
    if operator is None or operator.namespace != service.details.get("namespace"):
        return unchecked
    try:
        owner = operator.run_of_service(service.name)
    except JecError:
        return unchecked
    if owner == target.run_id:
        return f"served as {place}"
    if owner is None:
        return f"was served as {place}, which has been removed"
    return f"was served as {place}, which now serves {owner or 'a model of another origin'}"
