"""`pipeline.py --follow`: print steps, trials and verdict of a run on Kubeflow until it ends."""

from __future__ import annotations

import time

from common import storage
from common.errors import ClusterError, DeadlineError, JecError
from common.layout import RunFolder
from common.records import StatusRecord, SummaryRecord
from components.steps import RETRIES, STEPS
from operations import kubeflow_runs
from operations.auth import AuthError
from operations.kubeflow_runs import KubeflowRun, Step
from operations.status import is_refused_by_gate, reason_lines, results_of, run_word
from operations.target import Target, place_flags

POLL = 10.0  # seconds between two requests
# Stop following after so many seconds without an answer; a restart of Kubeflow takes minutes.
PATIENCE = 900.0
SILENCE = 30.0  # report a run without a state after so many seconds; KFP's agent needs a few
# Seconds. No run can take longer: all attempts of all steps have deadlines.
DEADLINE = sum(step.deadline for step in STEPS) * (1 + RETRIES)


class Screen:
    """Print a line about a topic only if it differs from the last line about that topic."""

    def __init__(self) -> None:
        """Start without any line."""
        self.lines: dict[str, str] = {}

    def show(self, topic: str, line: str) -> None:
        """Print a line unless it is the last one about its topic."""
        if self.lines.get(topic) != line:
            self.lines[topic] = line
            print(line, flush=True)

    def note(self, topic: str, line: str) -> None:
        """Remember a line without printing it, because it is not about this run."""
        self.lines[topic] = line


def follow(
    target: Target,
    run: KubeflowRun,
    *,
    quiet: bool = False,
    poll: float = POLL,
    deadline: float = DEADLINE,
) -> int:
    """Print every change until the run has ended; return the exit code.

    It is 0 if the run succeeded, 1 if not, and 130 after Ctrl-C, which does not stop the run.

    Args:
        target: the run and the places that know it.
        run: the same run on Kubeflow.
        quiet: print only how the run ended.
        poll: seconds between two requests.
        deadline: seconds after which to stop following.

    Raises:
        DeadlineError: the server does not answer for PATIENCE, or the run does not end in time.
        AuthError: the login has expired.
    """
    screen = Screen()
    again = (
        f"to follow it again: python pipeline.py --status {target.run_id} --follow"
        f" {place_flags(run.server.host, target.args)}"
    )
    start = time.monotonic()
    last_moment = start + deadline
    away_since: float | None = None
    try:
        while True:
            try:
                run.refresh()
                away_since = None
            except AuthError:
                # waiting does not renew an expired login
                raise
            except ClusterError as error:
                away_since = away_since or time.monotonic()
                screen.show("server", f"{error}; trying again")
                if time.monotonic() - away_since > PATIENCE:
                    raise DeadlineError(f"{error}. The run goes on; {again}") from error
            else:
                if not run.state and time.monotonic() - start > SILENCE:
                    screen.show(
                        "state",
                        f"Kubeflow Pipelines has given the run no state for {SILENCE:.0f} s; its"
                        " persistence agent or Argo's controller may be down",
                    )
                if not quiet:
                    show_changes(target, run, screen)
                if run.has_ended:
                    return show_end(target, run)
            if time.monotonic() > last_moment:
                raise DeadlineError(
                    f"run {target.run_id} did not end within any deadline of its steps; {again}"
                )
            time.sleep(poll)
    except KeyboardInterrupt:
        print(f"\nno longer following; the run goes on. {again}", flush=True)
        return 130


def show_changes(target: Target, run: KubeflowRun, screen: Screen) -> None:
    """Print the steps and the objects on the cluster whose state changed.

    An object whose step has not started is of an earlier run with the same id (`--resume`,
    `--more-trials`), so that its state is printed only after it changes.
    """
    begun_steps = set()
    for step in kubeflow_runs.steps(run):
        if step.state not in ("PENDING", "OMITTED"):
            begun_steps.add(step.name)
        state = "omitted" if is_omitted(target, run, step) else step.state.lower()
        line = f"[{step.name}] {state}"
        screen.show(f"step {step.name}", f"{line}: {step.error}" if step.error else line)
    if target.operator is None or run.has_ended:
        return
    try:
        for entry in target.operator.describe(target.run_id, run.id):
            name = f"{entry.kind} {entry.name}"
            show_line = screen.show if not entry.step or entry.step in begun_steps else screen.note
            show_line(name, f"  {name}: {entry.state}")
    except JecError as error:
        # the steps are still shown
        screen.show("cluster", f"  the cluster does not show the run's objects: {error}")


def is_omitted(target: Target, run: KubeflowRun, step: Step) -> bool:
    """Return whether deploy succeeded on Kubeflow without deploying, because the gate refused."""
    if step.name != "deploy" or step.state != "SUCCEEDED":
        return False
    try:
        folder = RunFolder(storage.join(target.args.s3_bucket, target.run_id))
        record = StatusRecord.find_readable(folder.status) or StatusRecord()
    except JecError:
        return False  # the folder cannot be read from here
    return is_refused_by_gate(step, run, record)


def show_end(target: Target, run: KubeflowRun) -> int:
    """Print the run's state, and its results if its folder can be read; return the exit code.

    For a failed run the last lines are the reason and the command to resume it.
    """
    folder = RunFolder(storage.join(target.args.s3_bucket, target.run_id))
    try:
        record = StatusRecord.find_readable(folder.status) or StatusRecord()
        print(f"run {target.run_id} {run_word(run, record)}: {run.url}")
        for line in results_of(folder, target).lines():
            print(line)
        for line in reason_lines(target, run, record, SummaryRecord.find_readable(folder.summary)):
            print(line)
    except JecError as error:
        print(f"run {target.run_id} {run_word(run, StatusRecord())}: {run.url}")
        print(f"(its folder cannot be read from here: {error})")
        for line in reason_lines(target, run, StatusRecord(), None):
            print(line)
    return 0 if run.state == "SUCCEEDED" else 1
