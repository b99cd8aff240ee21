"""`pipeline.py --logs RUN_ID [STEP]`: print the last lines of a run's pods and local files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clusters.processes import tail
from common.errors import InputError, unknown
from components.steps import NAMES, STEPS
from operations.target import Target

LINES = 200  # lines of each pod or file
PLACES = {step.name: step.logs for step in STEPS if step.logs}
"""Step -> the folder below <run>/local that holds its logs."""


def logs(target: Target, part: str) -> int:
    """Print the logs, each below its name; return the exit code 0.

    `part` names a step, a trial or a pod; empty for all. Raises InputError if there is no log.
    """
    texts = list(local_logs(target, part))
    if target.operator is not None:
        texts += target.operator.logs(target.run_id, part, kfp_run=target.kfp_id, lines=LINES)
    for name, lines in texts:
        print(f"== {name}")
        print("\n".join(lines) if lines else "(empty, or removed meanwhile)")
        print()
    if texts:
        return 0

    for line in target.unseen:
        print(f"not seen: {line}")
    problem = "no log is left"
    if part and part not in NAMES:
        problem = f"{unknown('step', part, NAMES)}, and no trial or pod of that name has a log"
    raise InputError(f"run {target.run_id}: {problem}")


def local_logs(target: Target, part: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (path, last lines) of the files below <output>/<run id>/local, oldest first."""
    folder = Path(target.args.output).resolve() / target.run_id / "local"
    for file in sorted(folder.glob("**/*.log"), key=lambda file: file.stat().st_mtime):
        parts = file.relative_to(folder).parts
        if part in PLACES:
            belongs = parts[0] == PLACES[part]
            # the folder `jobs` has a folder for each step: <run id>-export, <run id>-evaluate
            if parts[0] == "jobs":
                belongs = belongs and parts[1].endswith(f"-{part}")
        else:
            belongs = not part or part in parts  # a trial, a job
        # metrics.log has a trial's metrics and is no log.
        if belongs and file.name != "metrics.log":
            yield str(file), tail(file, LINES).splitlines()
