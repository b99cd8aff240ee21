"""`pipeline.py --status RUN_ID`: what a run does or how it ended, from every place that knows of
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clusters import orphans
from common import storage
from operations import kubeflow_runs
from operations.target import Target


def status(target: Target) -> int:
    """Print it; the exit code is 0 for a run that goes on or ended well, 1 for one that did not."""
    print(f"run {target.run_id}" + (f" in {target.folder}" if target.folder else ""))
    failed = False
    if target.kfp_run is not None:
        run = kubeflow_runs.get(target.server, target.kfp_id)
        _section("Kubeflow Pipelines", _kubeflow_lines(target, run))
        failed = str(run.state) in ("FAILED", "CANCELED")
    if target.folder:
        record = storage.find_json(storage.join(target.folder, "status.json"), {})
        _section("steps", _step_lines(record, target))
        _section("results", verdict_lines(target.folder))
        failed = failed or record.get("state") == "failed"
    if target.operator is not None:
        found = target.operator.describe(target.run_id, target.kfp_id)
        width = max((len(f"{one.kind} {one.name}") for one in found), default=0)
        _section("cluster", (f"{f'{one.kind} {one.name}':<{width}}  {one.told}" for one in found))
    running = local_processes(target)
    _section("processes here", (f"{pid:>7}  {command[:110]}" for pid, command in running.items()))
    for line in target.unseen:
        print(f"not seen: {line}")
    return 1 if failed else 0


def local_processes(target: Target) -> dict[int, str]:
    """pid -> command line of what runs of this run on this machine, the command that
    runs it first.
    """
    output = target.args.output.resolve()
    owner = orphans.owner(Path(output) / target.run_id / "local")
    return ({owner: "python pipeline.py (runs it)"} if owner else {}) | orphans.processes_of(
        target.run_id, output
    )


def _section(title: str, lines: Iterator[str]) -> None:
    listed = list(lines)
    if listed:
        print(f"\n{title}\n" + "\n".join(f"  {line}" for line in listed))


def _kubeflow_lines(target: Target, run: Any) -> Iterator[str]:
    yield f"{str(run.state).lower()}: {target.server.run_url(target.kfp_id)}"
    for step in kubeflow_runs.steps(run):
        columns = f"{step.name:<9} {step.state.lower():<10} {step.started or '':<26} {step.error}"
        yield columns.rstrip()


def _step_lines(record: dict[str, Any], target: Target) -> Iterator[str]:
    for name, step in record.get("steps", {}).items():
        state = step["state"]
        if (
            state == "running"
            and target.kfp_run is None
            and not local_processes(target)
            and not storage.is_s3(target.folder)
        ):
            state = "was running when it was killed"
        yield (
            f"{name:<9} {state:<12} {step['time']} "
            f" {step['reason'].splitlines()[0] if step['reason'] else ''}".rstrip()
        )


def verdict_lines(folder: str) -> Iterator[str]:
    """What a run's folder holds of results, as far as it got."""
    names = ("search.json", "metrics.json", "service.json")
    search, metrics, service = (storage.find_json(storage.join(folder, name), {}) for name in names)
    if search:
        objective = search["objective"]["name"]
        best = next(trial for trial in search["trials"] if trial["name"] == search["optimal"])
        yield (
            f"{len(search['trials'])} trials, best {best['name']}: {objective}"
            f" {best['metrics'][objective]['min']:.5f}"
        )
    else:
        started = {
            entry.uri[len(folder) + 1 :].split("/")[1]
            for entry in storage.entries(storage.join(folder, "trials"))
        }
        if started:
            yield f"{len(started)} trials begun"
    if metrics:
        gain = metrics["gain"]
        told = (
            f"{gain['value']:+.1f} % [{gain['low']:+.1f}, {gain['high']:+.1f}] over the"
            " standard JEC"
            if gain
            else "not measured"
        )
        yield f"resolution gain {told}"
        yield (
            "gate passed"
            if metrics["passed"]
            else f"gate not passed: {'; '.join(metrics['reasons'])}"
        )
        yield f"report: {storage.join(folder, 'report.html')}"
    if service:
        yield _service_line(service, here=not storage.is_s3(folder))


def _service_line(service: dict[str, Any], *, here: bool) -> str:
    from serving import triton

    line = f"served as {service['name']} at {service['url']} ({service['kind']})"
    # of a server on one machine, which ends with the command that started it
    pid = service.get("details", {}).get("pid")
    if pid is None or not here or triton.is_running(pid):
        return line
    return f"was {line}, which has ended; --resume with --serve brings it back"
