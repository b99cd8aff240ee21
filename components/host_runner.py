"""Runs the compiled pipeline on this machine: kfp.local, with host processes for containers.

kfp's SubprocessRunner takes lightweight Python components only and has no extension point, so two
of its internals are replaced while a pipeline runs (hence the exact pin of kfp in pyproject.toml):
  - the handler that runs a task's command line, which here starts it as a process with this Python;
  - the reading of a task's outputs, which here adds the artifacts that the component declared, as
      the cluster's launcher does.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from clusters import processes
from common.errors import InterruptedRun, JecError
from common.project import ROOT


class StepFailed(JecError):
    """A step ended with an exit code that is not 0; it has said why itself."""

    def __init__(self, step: str, code: int) -> None:
        """Keep the step's name and its exit code."""
        super().__init__(f"step {step} ended with exit code {code}")
        self.step, self.exit_code = step, code if code > 0 else 1


LAST_LINES = 20
"""Lines of a step that failed which a quiet run shows."""


@dataclasses.dataclass
class _Session:
    """What the handlers of one run share.

    It is the environment of steps, the processes that run, the step that failed, and whether the
    run is stopping.
    """

    environment: dict[str, str]
    on_start: Callable[[str, list[str]], None]
    on_end: Callable[[str, list[str]], None]
    quiet: bool = False
    running: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)
    failed: StepFailed | None = None
    stopping: bool = False
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def run_pipeline(
    path: Path,
    parameters: dict[str, Any],
    *,
    work: Path,
    environment: dict[str, str],
    on_start: Callable[[str, list[str]], None] = lambda step, command: None,
    on_end: Callable[[str, list[str]], None] = lambda step, command: None,
    quiet: bool = False,
) -> None:
    """Execute the IR at `path`.

    `on_start(step, command)` is called before each step, `on_end` after each that ended well.
    With `quiet` nothing of the steps' output is shown, but the last lines of a step that failed.
    Raises StepFailed, or InterruptedRun when SIGINT or SIGTERM came; either way no step is left
    running.
    """
    from kfp import components, local

    session = _Session(environment=environment, on_start=on_start, on_end=on_end, quiet=quiet)
    pipeline = components.load_component_from_text(_without_retries(path))
    with _replaced_internals(session), _stopped_by_signals(session), _quiet():
        # kfp would make the workspace in the temporary folder and leave it there.
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(work),
            workspace_root=str(work / "workspace"),
        )
        try:
            pipeline(**parameters)
        except RuntimeError:
            if session.stopping:
                raise InterruptedRun("interrupted") from None
            if session.failed is None:
                raise
        if session.failed:
            raise session.failed


def _without_retries(path: Path) -> str:
    """The IR with one attempt for each step.

    What fails on one machine fails again, and its user is there to see it.
    """
    import yaml

    documents = list(yaml.safe_load_all(path.read_text()))
    dags = [
        documents[0]["root"]["dag"],
        *(part["dag"] for part in documents[0]["components"].values() if "dag" in part),
    ]
    for dag in dags:
        for task in dag["tasks"].values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all(documents, sort_keys=False)


def step_name(command: list[str]) -> str:
    """The step of a command line `python -m components.<step> ...`."""
    return next(
        (part.rsplit(".", 1)[1] for part in command if part.startswith("components.")), command[0]
    )


def _run(session: _Session, command: list[str], env: dict[str, str]) -> bool:
    """Run one step to its end, its lines on our stdout behind its name; True if it ended well."""
    name = step_name(command)
    with session.lock:
        if session.stopping:
            return False
        session.on_start(name, command)
        process = subprocess.Popen(
            processes.host_command(command),
            env={
                **os.environ,
                **env,
                **session.environment,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # progress bars need the terminal itself
            stderr=None if sys.stderr.isatty() and not session.quiet else subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us alone, and we end the steps in order
            # It calls prctl and nothing else, which is safe in a forked process.
            preexec_fn=processes.ends_with_parent,  # noqa: PLW1509
        )
        session.running.append(process)
    if session.stopping:  # the signal came while the process was being started
        processes.stop(process)
    assert process.stdout is not None  # it is a pipe
    # kfp captures sys.stdout while a step runs.
    terminal = sys.__stdout__ or sys.stdout
    last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    with process.stdout:
        for line in process.stdout:
            last.append(f"[{name}] {line}")
            if not session.quiet:
                terminal.write(last[-1])
                terminal.flush()
    code = process.wait()
    session.running.remove(process)
    if code != 0:
        if session.quiet and not session.stopping:
            terminal.writelines(last)
            terminal.flush()
        session.failed = session.failed or StepFailed(name, code)
        return False
    session.on_end(name, command)
    return True


@contextlib.contextmanager
def _replaced_internals(session: _Session) -> Iterator[None]:
    from kfp.local import (
        executor_output_utils,
        status,
        subprocess_task_handler,
        task_handler_interface,
    )

    # kfp has no types.
    class HostTaskHandler(task_handler_interface.ITaskHandler):  # type: ignore[misc]
        def __init__(
            self,
            image: str,
            full_command: list[str],
            pipeline_root: str,
            runner: Any,
            env_vars: dict[str, str] | None = None,
        ) -> None:
            self.command, self.env = list(full_command), env_vars or {}

        def run(self) -> status.Status:
            return (
                status.Status.SUCCESS
                if _run(session, self.command, self.env)
                else status.Status.FAILURE
            )

    typed = executor_output_utils.add_type_to_executor_output

    def with_declared_artifacts(executor_input: Any, executor_output: Any) -> Any:
        for name, declared in executor_input.outputs.artifacts.items():
            if name not in executor_output.artifacts:
                executor_output.artifacts[name].CopyFrom(declared)
            for given, wanted in zip(
                executor_output.artifacts[name].artifacts, declared.artifacts, strict=False
            ):
                given.uri, given.name = given.uri or wanted.uri, given.name or wanted.name
        return typed(executor_input=executor_input, executor_output=executor_output)

    with (
        mock.patch.object(subprocess_task_handler, "SubprocessTaskHandler", HostTaskHandler),
        mock.patch.object(
            executor_output_utils, "add_type_to_executor_output", with_declared_artifacts
        ),
    ):
        yield


def stop_signals() -> list[signal.Signals]:
    """Signals that mean to stop. A closed terminal's is among them, unless nohup had it ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


@contextlib.contextmanager
def _stopped_by_signals(session: _Session) -> Iterator[None]:
    """End the running steps on SIGINT, SIGTERM or SIGHUP (a closed terminal).

    They end their own children, and kfp then sees a failed task.
    """

    def stop(*_: Any) -> None:
        if session.stopping:
            return
        session.stopping = True
        errors = sys.__stderr__ or sys.stderr
        errors.write("\nstopping: ending the running step and its children ...\n")
        for process in list(session.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        threading.Thread(target=_make_sure, args=(session,), daemon=True).start()

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_sure(session: _Session) -> None:
    """Kill a step that ignores SIGTERM. The kernel then ends its children."""
    processes.stop(*session.running, grace=2 * processes.GRACE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out kfp's log lines, its rulers, and its warnings about limits of pods.

    The steps print all that matters here.
    """
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
