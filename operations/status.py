"""`pipeline.py --status RUN_ID`: show what a run does or how it ended, from every place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from clusters import orphans
from common import storage
from common.layout import RunFolder
from common.records import MetricsRecord, SearchRecord, ServiceRecord, StatusRecord
from operations import kubeflow_runs
from operations.target import Target


def status(target: Target) -> int:
    """Print it; the exit code is 0 for a run that goes on or ended well, 1 for one that did not."""
    print(f"run {target.run_id}" + (f" in {target.folder}" if target.folder else ""))
    failed = False

    if (run := target.kubeflow) is not None:
        run.refresh()
        lines = [f"{run.state.lower()}: {run.url}"]
        for step in kubeflow_runs.steps(run):
            line = f"{step.name:<9} {step.state.lower():<10} {step.started:<26} {step.error}"
            lines.append(line.rstrip())
        show_section("Kubeflow Pipelines", lines)
        failed = run.state in ("FAILED", "CANCELED")

    if target.folder:
        folder = RunFolder(target.folder)
        record = StatusRecord.find(folder.status) or StatusRecord()
        show_section("steps", step_lines(record, target))
        show_section("results", verdict_lines(folder))
        failed = failed or record.state == "failed"

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
    if "from_outside" in service.details:
        line += f"; from outside the cluster: {service.details['from_outside']}"
    # A server on one machine ends with the command that started it; one on a cluster has no pid.
    pid = service.details.get("pid")
    if pid is None or not here or triton.is_running(pid):
        return line
    return f"was {line}, which has ended; --resume with --serve brings it back"
