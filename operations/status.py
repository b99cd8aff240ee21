"""`pipeline.py --status RUN_ID`: show what a run does or how it ended, from every place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clusters import orphans
from common import storage
from operations import kubeflow_runs
from operations.target import Target

Record = Mapping[str, Any]
"""A JSON object of a run's folder: status.json, search.json, metrics.json or service.json."""


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
        record = storage.find_json(storage.join(target.folder, "status.json"), {})
        show_section("steps", step_lines(record, target))
        show_section("results", verdict_lines(target.folder))
        failed = failed or record.get("state") == "failed"

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


def step_lines(record: Record, target: Target) -> Iterator[str]:
    """Yield a line for each step of a run's status.json."""
    # Nothing but this machine can run what neither Kubeflow nor S3 knows.
    here_only = target.kubeflow is None and not storage.is_s3(target.folder)
    for name, step in record.get("steps", {}).items():
        state = step["state"]
        if state == "running" and here_only and not local_processes(target):
            state = "was running when it was killed"
        reason = step["reason"].splitlines()[0] if step["reason"] else ""
        yield f"{name:<9} {state:<12} {step['time']}  {reason}".rstrip()


def verdict_lines(folder: str) -> Iterator[str]:
    """Yield what a run's folder holds of results, as far as it got."""
    search: Record = storage.find_json(storage.join(folder, "search.json"), {})
    metrics: Record = storage.find_json(storage.join(folder, "metrics.json"), {})
    service: Record = storage.find_json(storage.join(folder, "service.json"), {})

    if search:
        objective = search["objective"]["name"]
        best = next(trial for trial in search["trials"] if trial["name"] == search["optimal"])
        yield (
            f"{len(search['trials'])} trials, best {best['name']}: {objective}"
            f" {best['metrics'][objective]['min']:.5f}"
        )
    else:
        started = set()
        for entry in storage.entries(storage.join(folder, "trials")):
            # trials/<trial>/...
            started.add(entry.uri[len(folder) + 1 :].split("/")[1])
        if started:
            yield f"{len(started)} trials begun"

    if metrics:
        gain = metrics["gain"]
        text = "not measured"
        if gain:
            text = (
                f"{gain['value']:+.1f} % [{gain['low']:+.1f}, {gain['high']:+.1f}] over the"
                " standard JEC"
            )
        yield f"resolution gain {text}"
        if metrics["passed"]:
            yield "gate passed"
        else:
            yield f"gate not passed: {'; '.join(metrics['reasons'])}"
        yield f"report: {storage.join(folder, 'report.html')}"
    if service:
        yield service_line(service, here=not storage.is_s3(folder))


def service_line(service: Record, *, here: bool) -> str:
    """Return where the model is served, or was. `here`: the run's folder is on this machine."""
    from serving import triton

    line = f"served as {service['name']} at {service['url']} ({service['kind']})"
    # A server on one machine ends with the command that started it; one on a cluster has no pid.
    pid = service.get("details", {}).get("pid")
    if pid is None or not here or triton.is_running(pid):
        return line
    return f"was {line}, which has ended; --resume with --serve brings it back"
