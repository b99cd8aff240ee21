"""Following a run on Kubeflow to its end: steps, trials, the verdict.

The exit code is the run's.
"""

from __future__ import annotations

import time
from typing import Any

from common import storage
from common.errors import ClusterError, DeadlineError, JecError
from components.chain import RETRIES
from components.steps import STEPS
from operations import kubeflow_runs
from operations.auth import AuthError
from operations.status import verdict_lines
from operations.target import Target

POLL = 10.0  # seconds between two looks
# seconds that a server may stay away before we stop looking; the run goes on without us
PATIENCE = 900.0
# No run can take longer.
DEADLINE = sum(step.deadline for step in STEPS) * (1 + RETRIES)


def follow(target: Target, *, poll: float = POLL, deadline: float = DEADLINE) -> int:
    """Print every change until the run has ended: 0 if it succeeded, 1 if not.

    Ctrl-C leaves the run alone and says how to come back. Raises DeadlineError for a server that
    stays away, and AuthError for a login that ended meanwhile.
    """
    told: dict[str, str] = {}
    ends, away_since = time.monotonic() + deadline, None
    try:
        while True:
            try:
                run = kubeflow_runs.get(target.server, target.kfp_id)
                away_since = None
            except AuthError:
                raise
            except ClusterError as error:
                away_since = away_since or time.monotonic()
                _tell(told, "server", f"{error}; trying again")
                if time.monotonic() - away_since > PATIENCE:
                    raise DeadlineError(f"{error}. The run goes on; {_again(target)}") from error
            else:
                _tell_changes(target, run, told)
                if kubeflow_runs.has_ended(run):
                    return _end(target, run)
            if time.monotonic() > ends:
                raise DeadlineError(
                    f"run {target.run_id} did not end within any deadline of its steps;"
                    f" {_again(target)}"
                )
            time.sleep(poll)
    except KeyboardInterrupt:
        print(f"\nno longer following; the run goes on. {_again(target)}", flush=True)
        return 130


def _again(target: Target) -> str:
    return (
        f"to follow it again: python pipeline.py --status {target.run_id} --follow --host"
        f" {target.server.host}"
    )


def _tell_changes(target: Target, run: Any, told: dict[str, str]) -> None:
    for step in kubeflow_runs.steps(run):
        line = f"[{step.name}] {step.state.lower()}"
        _tell(told, f"step {step.name}", f"{line}: {step.error}" if step.error else line)
    if target.operator is not None and not kubeflow_runs.has_ended(run):
        try:
            for finding in target.operator.describe(target.run_id, target.kfp_id):
                _tell(
                    told,
                    f"{finding.kind} {finding.name}",
                    f"  {finding.kind} {finding.name}: {finding.told}",
                )
        except JecError as error:
            _tell(told, "cluster", f"  the cluster does not tell more: {error}")


def _tell(told: dict[str, str], topic: str, line: str) -> None:
    if told.get(topic) != line:
        told[topic] = line
        print(line, flush=True)


def _end(target: Target, run: Any) -> int:
    """The last lines: the run's state, and what its folder says if it can be read from here."""
    state = str(run.state)
    print(f"run {target.run_id} {state.lower()}: {target.server.run_url(target.kfp_id)}")
    folder = storage.join(target.args.s3_bucket, target.run_id)
    try:
        for line in verdict_lines(folder):
            print(line)
    except JecError as error:
        print(f"(its folder cannot be read from here: {error})")
    return 0 if state == "SUCCEEDED" else 1
