"""Run the compiled pipeline on this machine with kfp.local, using processes instead of containers.

kfp's SubprocessRunner accepts only lightweight Python components and has no extension point, so two
of its internals are replaced while a pipeline runs (hence the exact pin of kfp in pyproject.toml):
  - the handler of a task's command line starts it as a process with this Python;
  - the reader of a task's outputs adds the artifacts that the component declares, as the cluster's
      launcher does.
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
from common.cli import stop_signals
from common.errors import InterruptedRun, JecError
from common.project import ROOT


class StepError(JecError):
    """A step ended with an exit code other than 0; it has printed its reason itself."""

    def __init__(self, step: str, code: int) -> None:
        """Store the step's name and exit code; a signal's negative code becomes 1."""
        super().__init__(f"step {step} ended with exit code {code}")
        self.step, self.exit_code = step, code if code > 0 else 1


LAST_LINES = 20
"""Number of last lines of a failed step that a quiet run prints."""


@dataclasses.dataclass
class _Session:
    """State that the handlers of one run share.

    It has the environment of the steps, the running processes, the error of the first failed step,
    and whether the run is stopping.
    """

    environment: dict[str, str]
    on_start: Callable[[str, list[str]], None]
    on_end: Callable[[str, list[str]], None]
    quiet: bool = False
    running: list[subprocess.Popen[str]] = dataclasses.field(default_factory=list)
    error: StepError | None = None
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
    """Execute the IR at `path`. No step still runs when the function returns or raises.

    Args:
        path: file with the compiled pipeline.
        parameters: values of the pipeline's parameters.
        work: folder for the files of kfp.
        environment: additional environment variables of the steps.
        on_start: called as `on_start(step, command)` before each step.
        on_end: called as `on_end(step, command)` after each step that succeeded.
        quiet: print only the last lines of a failed step.

    Raises:
        StepError: a step failed.
        InterruptedRun: SIGINT, SIGTERM or SIGHUP arrived.
    """
    from kfp import components, local

    session = _Session(environment=environment, on_start=on_start, on_end=on_end, quiet=quiet)
    pipeline = components.load_component_from_text(_without_retries(path))
    with _patched_kfp(session), _stopped_by_signals(session), _quiet():
        # By default kfp leaves its workspace in the temporary folder.
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
            if session.error is None:
                raise
        if session.error:
            raise session.error


def _without_retries(path: Path) -> str:
    """Return the IR with a single attempt for each step.

    On one machine a repeated attempt would fail in the same way, and the user sees the error.
    """
    import yaml

    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    dags = [
        documents[0]["root"]["dag"],
        *(part["dag"] for part in documents[0]["components"].values() if "dag" in part),
    ]
    for dag in dags:
        for task in dag["tasks"].values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all(documents, sort_keys=False)


def step_name(command: list[str]) -> str:
    """Return the step's name in a command line `python -m components.<step> ...`."""
    return next(
        (part.rsplit(".", 1)[1] for part in command if part.startswith("components.")), command[0]
    )


def _run(session: _Session, command: list[str], env: dict[str, str]) -> bool:
    """Run one step to its end and print its lines with its name; return whether it succeeded."""
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
            start_new_session=True,  # Ctrl-C reaches only us, and we end the steps in order
            # It only calls prctl, which is safe in a forked process.
            preexec_fn=processes.ends_with_parent,  # noqa: PLW1509
        )
        session.running.append(process)
    if session.stopping:  # the signal came while the process was being started
        processes.stop(process)
    assert process.stdout is not None  # it is a pipe
    # kfp captures sys.stdout while a step runs.
    terminal = sys.__stdout__ or sys.stdout
    last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    with process.stdout:
        for line in process.stdout:
            last_lines.append(f"[{name}] {line}")
            if not session.quiet:
                terminal.write(last_lines[-1])
                terminal.flush()
    code = process.wait()
    session.running.remove(process)
    if code != 0:
        if session.quiet and not session.stopping:
            terminal.writelines(last_lines)
            terminal.flush()
        session.error = session.error or StepError(name, code)
        return False
    session.on_end(name, command)
    return True


@contextlib.contextmanager
def _patched_kfp(session: _Session) -> Iterator[None]:
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
            """Run the task; kfp calls it."""
            return (
                status.Status.SUCCESS
                if _run(session, self.command, self.env)
                else status.Status.FAILURE
            )

    add_type = executor_output_utils.add_type_to_executor_output

    def with_declared_artifacts(executor_input: Any, executor_output: Any) -> Any:
        """Add the declared artifacts, with their URIs, to a task's outputs."""
        for name, declared in executor_input.outputs.artifacts.items():
            if name not in executor_output.artifacts:
                executor_output.artifacts[name].CopyFrom(declared)
            for artifact, expected in zip(
                executor_output.artifacts[name].artifacts, declared.artifacts, strict=False
            ):
                artifact.uri, artifact.name = (
                    artifact.uri or expected.uri,
                    artifact.name or expected.name,
                )
        return add_type(executor_input=executor_input, executor_output=executor_output)

    with (
        mock.patch.object(subprocess_task_handler, "SubprocessTaskHandler", HostTaskHandler),
        mock.patch.object(
            executor_output_utils, "add_type_to_executor_output", with_declared_artifacts
        ),
    ):
        yield


@contextlib.contextmanager
def _stopped_by_signals(session: _Session) -> Iterator[None]:
    """End the running steps on SIGINT, SIGTERM or SIGHUP (a closed terminal).

    The steps end their own children, and kfp then sees a failed task.
    """

    def stop(*_: Any) -> None:
        """Send SIGTERM to the running steps once."""
        if session.stopping:
            return
        session.stopping = True
        errors = sys.__stderr__ or sys.stderr
        errors.write("\nstopping: ending the running step and its children ...\n")
        for process in list(session.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        threading.Thread(target=_kill_remaining, args=(session,), daemon=True).start()

    before = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_remaining(session: _Session) -> None:
    """Kill a step that ignores SIGTERM. The kernel then ends its children."""
    processes.stop(*session.running, grace=2 * processes.GRACE)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress kfp's log lines and its warnings about limits of pods.

    The steps print what a user needs.
    """
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
