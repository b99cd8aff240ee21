"""`pipeline.py --status RUN_ID`: show what a run does or how it ended, from every place.

`--json` prints the same as one JSON object; `RunStatus` has its fields.
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

REASON_LINES = 8  # of a step: what failed, how often and why, before the lines of a log


def status(target: Target, *, as_json: bool = False) -> int:
    """Print it; the exit code is 0 for a run that goes on or ended well, 1 for one that did not."""
    seen = look(target)
    if as_json:
        print(json.dumps(dataclasses.asdict(seen), indent=2))
    else:
        show(seen)
    return 1 if seen.failed else 0


@dataclasses.dataclass(kw_only=True)
class RunStatus:
    """What every place that knows a run says about it."""

    run_id: str
    folder: str
    """URI of the run's files; empty where there are none."""
    state: str = ""
    """The run in one word, as status.json or Kubeflow Pipelines has it."""
    failed: bool = False
    kubeflow: str = ""
    """State and address of the run in Kubeflow Pipelines; empty where no server was asked."""
    steps: list[StepState] = dataclasses.field(default_factory=list)
    reasons: list[str] = dataclasses.field(default_factory=list)
    """Why a run on Kubeflow did not end well, and how to go on."""
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
    """Ask every place that knows the run."""
    seen = RunStatus(run_id=target.run_id, folder=target.folder)
    record = StatusRecord()
    if target.folder:
        record = StatusRecord.find_readable(RunFolder(target.folder).status) or record
        seen.state, seen.failed = record.state, record.state == "failed"
    if (run := target.kubeflow) is not None:
        run.refresh()
        seen.state = run_word(run, record)
        seen.kubeflow = f"{seen.state}: {run.url}"
        seen.steps = merged_steps(run, record)
        seen.failed = run.state in ("FAILED", "CANCELED")
        if run.has_ended:
            summary = None
            if target.folder:
                summary = SummaryRecord.find_readable(RunFolder(target.folder).summary)
            seen.reasons = list(reason_lines(target, run, record, summary))
            # the reasons have what a step says beyond its first line
            for number, step in enumerate(seen.steps):
                first = "".join(step.reason.splitlines()[:1])
                seen.steps[number] = dataclasses.replace(step, reason=first)
    elif target.folder:
        if is_forgotten(target, record):
            seen.kubeflow = (
                f"no run of this id at {target.forgotten_by}: it was deleted there, or is not among"
                f" the newest {PAGE * PAGES:,}"
            )
            seen.failed = record.state != "done"
        seen.steps = list(own_steps(record, target))
    if target.folder:
        seen.results = results_of(RunFolder(target.folder), target)
    if target.operator is not None:
        for entry in target.operator.describe(target.run_id, target.kfp_id):
            name = f"{entry.kind} {entry.name}"
            seen.objects.append(ClusterObject(name=name, state=entry.state))
    seen.processes = local_processes(target)
    seen.not_seen = target.unseen
    return seen


def show(seen: RunStatus) -> None:
    """Print it for people, in sections."""
    print(f"run {seen.run_id}" + (f" in {seen.folder}" if seen.folder else ""))
    show_section("Kubeflow Pipelines", [seen.kubeflow] if seen.kubeflow else [])
    show_section("steps", (step.line() for step in seen.steps))
    show_section("reason", seen.reasons)
    show_section("results", seen.results.lines() if seen.results else [])
    width = max((len(entry.name) for entry in seen.objects), default=0)
    show_section("cluster", (f"{entry.name:<{width}}  {entry.state}" for entry in seen.objects))
    lines = (f"{pid:>7}  {command[:110]}" for pid, command in seen.processes.items())
    show_section("processes here", lines)
    for line in seen.not_seen:
        print(f"not seen: {line}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepState:
    """A step of a run, by what Kubeflow and the run's folder know of it together."""

    name: str
    state: str
    """In the words of status.json, and pending or omitted."""
    time: str
    reason: str

    def line(self) -> str:
        """The step in a line, the rest of its reason below it."""
        return with_reason(f"{self.name:<9} {self.state:<12} {self.time:<26}", self.reason)


@dataclasses.dataclass(kw_only=True)
class Results:
    """What a run's folder holds of results, as far as it got."""

    trials: int = 0
    best_trial: str = ""
    """Empty while the search goes on."""
    objective: str = ""
    best_value: float | None = None
    measured: bool = False
    gain: Interval | None = None
    """Of the resolution over the standard JEC; None where it was not measured."""
    gate_passed: bool | None = None
    gate_reasons: list[str] = dataclasses.field(default_factory=list)
    report: str = ""
    service: str = ""
    """Where the model is served, or was."""
    url: str = ""
    """Of the service."""
    unchanged: str = ""
    """Why --if-data-changed left it nothing to do."""

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        if self.unchanged:
            yield f"unchanged: {self.unchanged}"
        if self.best_value is not None:
            best = f"best {self.best_trial}: {self.objective} {self.best_value:.5f}"
            yield f"{count_of(self.trials)}, {best}"
        elif self.trials:
            yield f"{count_of(self.trials)} begun"
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
    """A line, and behind and below it the first lines of a reason."""
    lines = reason.splitlines()
    first, rest = "".join(lines[:1]), lines[1:REASON_LINES]
    if len(lines) > REASON_LINES:
        rest.append(f"({len(lines) - REASON_LINES} more lines in status.json)")
    return "\n".join([f"{line} {first}".rstrip(), *(f"    {one.strip()}" for one in rest)])


WORDS = {"SUCCEEDED": "done", "CANCELED": "interrupted"}
"""KFP's words that status.json has others for."""


def merged_steps(run: KubeflowRun, record: StatusRecord) -> list[StepState]:
    """Return the steps that Kubeflow knows, each with its reason from the run's status.json.

    Kubeflow knows which step has ended, also of one that was killed before it could write so; only
    status.json knows why (KFP 2.15.0 never fills in a task's error). Of a pod that could not be
    created nobody but Argo knows why.
    """
    steps = {step.name: step for step in kubeflow_runs.steps(run)}
    refused = refused_steps(run, steps)
    merged = []
    for name in NAMES:
        step = steps.get(name)
        if step is None and name not in refused:
            continue
        own = record.steps.get(name)
        if own is not None and own.job_id != run.id:
            own = None  # of an earlier job of this run
        state = "failed" if step is None else WORDS.get(step.state, step.state.lower())
        if run.has_ended and state in ("running", "pending"):
            state = "failed"
        reason = own.reason if own else step.error if step else ""
        if step and is_refused_by_gate(step, run, record):
            state = "omitted"
        if name in refused and (own is None or own.state not in ("failed", "interrupted")):
            state, reason = "failed", refused[name]
        elif state == "running" and own and own.state == "failed":
            reason = f"an attempt failed: {own.reason}"
        elif state == "failed" and own and own.state in ("failed", "interrupted"):
            state = own.state
        elif state == "failed" and own and own.state == "done":
            reason = "the step ended well, its pod did not; its log says more (--logs)"
        elif state == "failed" and not reason and not run.has_ended:
            reason = "stopped before it could say why; finish asks the cluster"
        elif state == "failed" and not reason:
            is_terminated = workflow.is_terminated(run.workflow)
            reason = TERMINATED if is_terminated else "stopped before it could say why"
        time = (step.started if step else "") or (own.time if own else "")
        merged.append(StepState(name=name, state=state, time=time, reason=reason))
    return merged


def is_refused_by_gate(step: Step, run: KubeflowRun, record: StatusRecord) -> bool:
    """Whether a step is that of a deployment which the gate refused.

    Its pod has run and ended well, but it did nothing and wrote nothing to the run's status.json.
    """
    evaluated, deployed = record.steps.get("evaluate"), record.steps.get("deploy")
    if step.name != "deploy" or step.state != "SUCCEEDED" or evaluated is None:
        return False
    is_evaluated = evaluated.state == "done" and evaluated.job_id == run.id
    return is_evaluated and (deployed is None or deployed.job_id != run.id)


def refused_steps(run: KubeflowRun, steps: dict[str, Step]) -> dict[str, str]:
    """Return the steps whose pod, or that of a driver, Argo could not run: step -> reason."""
    refused: dict[str, str] = {}
    if run.state != "FAILED" or workflow.is_terminated(run.workflow):
        return refused
    for task, reason in workflow.refusals(run.workflow).items():
        if task in NAMES:
            refused.setdefault(task, reason)
        else:
            # the driver of the run or of a part of it: it comes before the first step that is left
            done = [name for name in NAMES if name in steps and steps[name].state == "SUCCEEDED"]
            left = [name for name in NAMES if name not in done]
            refused.setdefault(left[0], f"{reason} ({task})")
    return refused


def run_word(run: KubeflowRun, record: StatusRecord) -> str:
    """Return the state of a run on Kubeflow in one word.

    A terminated run ends as FAILED there (seen with KFP 2.15.0); its Workflow and status.json say
    that it was.
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
    """Yield why a run on Kubeflow that has ended did not end well, and how to go on."""
    if run.state not in ("FAILED", "CANCELED"):
        return
    told = False
    steps = merged_steps(run, record)
    for step in steps:
        if step.state in ("failed", "interrupted") and step.reason:
            yield with_reason(f"{step.name} {step.state}:", step.reason)
            told = True
    own = summary and any(step.job_id == run.id for step in summary.steps.values())
    if not told and not own and workflow.is_terminated(run.workflow):
        yield TERMINATED
    # After Retry in the UI finish does not run again, and the summary is that of the first end.
    is_first_end = summary is None or not own or summary.time >= record.time
    is_finished = any(step.name == "finish" and step.state == "done" for step in steps)
    if steps and not (is_finished and is_first_end):
        down = ["python", "pipeline.py", "--down", target.run_id, *flags_of(target, run)]
        yield f"finish did not clean up; what is left is removed by: {shlex.join(down)}"
    if summary is None or not own or not is_first_end or summary.state == ENDING:
        return
    if not told and summary.reason:
        yield with_reason(f"{summary.state}:", summary.reason)
    if summary.resume:
        yield f"to go on with it: {with_flags(summary.resume, flags_of(target, run))}"


def flags_of(target: Target, run: KubeflowRun) -> list[str]:
    """Return the flags of this command that its next one needs, and no record of the run has."""
    args = target.args
    flags = ["--host", run.server.host]
    for name, default in (("auth", AUTO), ("steps_image", image("steps")), ("steps_account", AUTO)):
        if getattr(args, name) != default:
            flags += [f"--{name.replace('_', '-')}", getattr(args, name)]
    return flags


def with_flags(command: str, flags: list[str]) -> str:
    """Return a command of a summary with flags that its writer, a pod, did not know."""
    words = shlex.split(command, comments=True)
    if "--host" in words:
        # summaries of earlier versions have a placeholder there
        place = words.index("--host")
        del words[place : place + 2]
    return shlex.join([*words, *flags])


def local_processes(target: Target) -> dict[int, str]:
    """Return pid -> command line of the run's processes here, the command that runs it first."""
    output = Path(target.args.output).resolve()
    processes = {}
    if owner := run_lock.owner(output / target.run_id / "local"):
        processes[owner] = "python pipeline.py (runs it)"
    return processes | orphans.processes_of(target.run_id, output)


def show_section(title: str, lines: Iterable[str]) -> None:
    """Print the lines below a title; nothing where there is no line."""
    listed = ["  " + line.replace("\n", "\n  ") for line in lines]
    if listed:
        print("\n".join(["", title, *listed]))


def own_steps(record: StatusRecord, target: Target) -> Iterator[StepState]:
    """Yield the steps of a run's status.json."""
    # Nothing but this machine can run what neither Kubeflow nor a remote storage knows.
    here_only = target.kubeflow is None and storage.is_local(target.folder)
    for name, step in record.steps.items():
        state = step.state
        if state == "running" and here_only and not local_processes(target):
            state = "was running when it was killed"
        elif state == "running" and target.forgotten_by and step.job_id:
            state = "was running"
        yield StepState(name=name, state=state, time=step.time, reason=step.reason)


def is_forgotten(target: Target, record: StatusRecord) -> bool:
    """Whether Kubeflow Pipelines was asked for a run of its own and does not know it."""
    on_kubeflow = any(step.job_id for step in record.steps.values())
    return bool(target.forgotten_by) and on_kubeflow


def results_of(folder: RunFolder, target: Target) -> Results:
    """Return what a run's folder holds of results, as far as it got."""
    results = Results()
    if skipped := UnchangedRecord.find_readable(folder.unchanged):
        results.unchanged = skipped.reason
    search = SearchRecord.find(folder.search)
    if search:
        results.trials, results.best_trial = len(search.trials), search.optimal
        results.objective, results.best_value = search.objective.name, search.best_value
    else:
        started = set()
        for entry in storage.entries(folder.trials):
            # trials/<trial>/...
            started.add(entry.uri[len(folder.uri) + 1 :].split("/")[1])
        results.trials = len(started)

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
    """Say a number of trials."""
    return f"{trials} trial" + ("" if trials == 1 else "s")


def service_line(service: ServiceRecord, target: Target, *, here: bool) -> str:
    """Return where the model is served, or was. `here`: the run's folder is on this machine."""
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
    return f"was served as {place}, which has ended; --resume with --serve brings it back"


def cluster_service_line(service: ServiceRecord, target: Target, place: str) -> str:
    """Return where a cluster serves the model, or did before another run or somebody came."""
    operator = target.operator
    not_seen = f"deployed then as {place}; whether it still serves was not looked at"
    if operator is None or operator.namespace != service.details.get("namespace"):
        return not_seen
    try:
        owner = operator.run_of_service(service.name)
    except JecError:
        return not_seen
    if owner == target.run_id:
        return f"served as {place}"
    if owner is None:
        return f"was served as {place}, which has been removed"
    return f"was served as {place}, where {owner or 'no run of this pipeline'} is served now"
