"""Follow a run on Kubeflow to its end: steps, trials, the verdict. The exit code is the run's."""

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

POLL = 10.0  # seconds between two looks
# Seconds that a server may stay away before we stop following: a restart of Kubeflow takes minutes.
PATIENCE = 900.0
SILENCE = 30.0  # seconds without a state before it is said: KFP's agent takes a few
# No run can take longer.
DEADLINE = sum(step.deadline for step in STEPS) * (1 + RETRIES)


class Screen:
    """Prints a line about a topic whenever it differs from the last one about it."""

    def __init__(self) -> None:
        """Begin with nothing printed."""
        self.lines: dict[str, str] = {}

    def show(self, topic: str, line: str) -> None:
        """Print a line unless it is the last one about its topic."""
        if self.lines.get(topic) != line:
            self.lines[topic] = line
            print(line, flush=True)

    def note(self, topic: str, line: str) -> None:
        """Take a line as printed, because it says nothing about this run."""
        self.lines[topic] = line


def follow(
    target: Target,
    run: KubeflowRun,
    *,
    quiet: bool = False,
    poll: float = POLL,
    deadline: float = DEADLINE,
) -> int:
    """Print every change until the run has ended, or only its end: 0 if it succeeded, 1 if not.

    Ctrl-C leaves the run alone and says how to come back. Raises DeadlineError for a server that
    stays away, and AuthError for a login that ended meanwhile.
    """
    screen = Screen()
    again = (
        f"to follow it again: python pipeline.py --status {target.run_id} --follow"
        f" {place_flags(run.server.host, target.args)}"
    )
    begun = time.monotonic()
    ends = begun + deadline
    away_since: float | None = None
    try:
        while True:
            try:
                run.refresh()
                away_since = None
            except AuthError:
                # an expired login does not come back by waiting
                raise
            except ClusterError as error:
                away_since = away_since or time.monotonic()
                screen.show("server", f"{error}; trying again")
                if time.monotonic() - away_since > PATIENCE:
                    raise DeadlineError(f"{error}. The run goes on; {again}") from error
            else:
                if not run.state and time.monotonic() - begun > SILENCE:
                    screen.show(
                        "state",
                        f"Kubeflow Pipelines has given the run no state for {SILENCE:.0f} s; its"
                        " persistence agent or Argo's controller may be down",
                    )
                if not quiet:
                    show_changes(target, run, screen)
                if run.has_ended:
                    return show_end(target, run)
            if time.monotonic() > ends:
                raise DeadlineError(
                    f"run {target.run_id} did not end within any deadline of its steps; {again}"
                )
            time.sleep(poll)
    except KeyboardInterrupt:
        print(f"\nno longer following; the run goes on. {again}", flush=True)
        return 130


def show_changes(target: Target, run: KubeflowRun, screen: Screen) -> None:
    """Print what changed of the steps, and of the run's objects on the cluster.

    An object whose step has not begun is of an earlier run of the same id (`--resume`,
    `--more-trials`): only what changes of it is of this one.
    """
    begun = set()
    for step in kubeflow_runs.steps(run):
        if step.state not in ("PENDING", "OMITTED"):
            begun.add(step.name)
        state = "omitted" if is_omitted(target, run, step) else step.state.lower()
        line = f"[{step.name}] {state}"
        screen.show(f"step {step.name}", f"{line}: {step.error}" if step.error else line)
    if target.operator is None or run.has_ended:
        return
    try:
        for entry in target.operator.describe(target.run_id, run.id):
            name = f"{entry.kind} {entry.name}"
            say = screen.show if not entry.step or entry.step in begun else screen.note
            say(name, f"  {name}: {entry.state}")
    except JecError as error:
        # the run is followed by its steps alone
        screen.show("cluster", f"  the cluster does not tell more: {error}")


def is_omitted(target: Target, run: KubeflowRun, step: Step) -> bool:
    """Whether a step has ended well on Kubeflow because the gate left it nothing to do."""
    if step.name != "deploy" or step.state != "SUCCEEDED":
        return False
    try:
        folder = RunFolder(storage.join(target.args.s3_bucket, target.run_id))
        record = StatusRecord.find_readable(folder.status) or StatusRecord()
    except JecError:
        return False  # the folder cannot be read from here
    return is_refused_by_gate(step, run, record)


def show_end(target: Target, run: KubeflowRun) -> int:
    """Print the run's state, and its results if its folder can be read from here.

    The last lines of a run that did not end well are its reason and how to go on.
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
