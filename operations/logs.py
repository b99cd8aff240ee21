"""`pipeline.py --logs RUN_ID [STEP]`: the last lines of a run's pods, and of the files that a run
on this machine writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clusters.processes import tail
from common.errors import InputError, unknown
from operations.kubeflow_runs import STEPS
from operations.target import Target

LINES = 200  # of each pod or file
PLACES = {"search": "search", "export": "jobs", "evaluate": "jobs", "deploy": "services"}


def logs(target: Target, part: str) -> int:
    """Print them, each below its name. Raises InputError where a step or trial has none."""
    told = [*_local(target, part)]
    if target.operator is not None:
        told += target.operator.logs(target.run_id, part, kfp_run=target.kfp_id, lines=LINES)
    for name, lines in told:
        print(f"== {name}")
        print("\n".join(lines) if lines else "(nothing written, or no longer there)")
        print()
    for line in target.unseen if not told else []:
        print(f"not seen: {line}")
    if not told:
        strange = part and part not in STEPS
        what = (
            f"{unknown('step', part, STEPS)}, and no trial or pod of that name has a log"
            if strange
            else "no log is left"
        )
        raise InputError(f"run {target.run_id}: {what}")
    return 0


def _local(target: Target, part: str) -> Iterator[tuple[str, list[str]]]:
    """Files below <output>/<run id>/local, of one step or of one trial if `part` names it."""
    folder = Path(target.args.output).resolve() / target.run_id / "local"
    for file in sorted(folder.glob("**/*.log"), key=lambda file: file.stat().st_mtime):
        relative = file.relative_to(folder)
        if file.name == "metrics.log" or (part and not _belongs(relative.parts, part)):
            continue
        yield str(file), tail(file, LINES).splitlines()


def _belongs(parts: tuple[str, ...], part: str) -> bool:
    if part not in PLACES:
        return part in parts  # a trial, a job
    return parts[0] == PLACES[part] and (parts[0] != "jobs" or parts[1].endswith(f"-{part}"))
