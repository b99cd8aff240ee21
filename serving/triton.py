"""A model server on this machine: Triton from a wheel, or kserve's own where Triton cannot run.

    server = start("runs/x/model", model_name="pfn", log="server.log")
    ...                                    # server.url + "/v2/models/pfn/infer"
    stop(server.pid)

The server loads the same repository as a cluster, unchanged. It is reachable from this machine
only, unless another address is given. It keeps running after the process that started it has ended;
with `owner`, it is stopped when that process ends.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clusters.server_log import error_lines
from common import storage
from common.errors import ClusterError, DeadlineError, InputError, unknown
from common.machine import free_port
from common.storage import space
from serving import server_folder, server_processes, triton_wheel
from serving.client import Client
from serving.server_folder import Running, ServerFolder
from serving.server_processes import IDENTITY, STOP_SECONDS, is_running, stop
from serving.triton_wheel import unusable as triton_unusable
from weaver.onnx.triton_config import LOCAL

__all__ = ["IDENTITY", "Server", "is_running", "start", "stop", "triton_unusable"]

HOST = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104  # only where the user gives it
KINDS = ("auto", "triton", "kserve-server")
# A free port may be taken by another process between the choice and the server's own bind.
PORT_ATTEMPTS = 4
# Seconds: Triton needs about 3, kserve's imports about 10, a loaded machine several times that.
START_DEADLINE = 120.0
LOG_LINES = 15  # lines of a server's log in an error
_PORT_IN_USE = re.compile(
    r"address already in use|failed to start HTTP service|Errno 98", re.IGNORECASE
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is ready."""

    pid: int
    """Of the server, which leads a process group of its own."""
    url: str
    kind: str
    """'triton' or 'kserve-server'."""
    log: str
    reason: str = ""
    """Why kserve's server was started; empty for Triton."""


def start(
    repository_dir: str | os.PathLike[str],
    *,
    model_name: str,
    log: str | os.PathLike[str],
    http_port: int = 0,
    deadline: float = START_DEADLINE,
    kind: str = "auto",
    options: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
    owner: int | None = None,
) -> Server:
    """Start a server over a Triton repository and return when `model_name` is ready.

    repository_dir: a directory or an address; all models in it are served. The other arguments and
    the errors are those of `start_models`; raises InputError for a repository without the model.
    """
    models = models_of(os.fspath(repository_dir))
    if model_name not in models:
        raise InputError(
            f"{storage.absolute(os.fspath(repository_dir))}: {unknown('model', model_name, models)}"
        )
    # start_models waits until the first model is ready
    models = {model_name: models.pop(model_name), **models}
    return start_models(
        models,
        log=log,
        http_port=http_port,
        deadline=deadline,
        kind=kind,
        options=options,
        report=report,
        owner=owner,
    )


def models_of(repository: str) -> dict[str, str]:
    """Return the folder of each model of a Triton repository, by name.

    Raises:
        StorageError: If the repository cannot be read.
    """
    repository = storage.absolute(repository)
    if not storage.is_local(repository):
        names = set()
        for entry in storage.entries(repository):
            name, _, file = entry.uri[len(repository) + 1 :].partition("/")
            if file == "config.pbtxt":
                names.add(name)
    else:
        pattern = storage.join(glob.escape(repository), "*", "config.pbtxt")
        names = {entry.uri.split("/")[-2] for entry in storage.glob(pattern)}
    return {name: storage.join(repository, name) for name in sorted(names)}


def start_models(
    models: Mapping[str, str],
    *,
    log: str | os.PathLike[str],
    host: str = HOST,
    http_port: int = 0,
    deadline: float = START_DEADLINE,
    kind: str = "auto",
    options: Sequence[str] = (),
    report: Callable[[str], None] = lambda line: None,
    owner: int | None = None,
) -> Server:
    """Start a server over these models and return when the first one is ready.

    models: name -> folder, a directory or an address.
    log: file for the server's output.
    host: address that it listens at.
    http_port: 0 picks a free one.
    deadline: seconds.
    kind: 'triton', 'kserve-server', or 'auto' for the first that can run here; why it is not Triton
    goes to `report` and into the log.
    options: further ones for Triton's command line, such as ("--allow-grpc=true",).
    owner: pid of the process with which the server ends, however that ends; None for none.

    Raises InputError for an unknown kind, ServerEnded with the server's own words if it ended,
    PortInUse, DeadlineError, and FullDiskError where a disk or shared memory is full.
    """
    if kind not in KINDS:
        raise InputError(unknown("kind of server", kind, KINDS))
    folder = server_folder.create()
    try:
        with space.catch_full_disk(folder.path, Path(log).absolute().parent):
            folder.add_models(models)
            reason = ""
            if kind == "auto":
                reason = triton_unusable(folder.path)
            elif kind == "kserve-server":
                reason = "it was asked for"
            attempt = _Start(
                kind="kserve-server" if reason else "triton",
                folder=folder,
                models=models,
                log=Path(log).absolute(),
                host=host,
                ends=time.monotonic() + deadline,
                deadline=deadline,
                options=tuple(options),
                report=report,
                owner=owner,
            )
            attempt.log.parent.mkdir(parents=True, exist_ok=True)
            attempt.log.write_text("")
            if reason:
                attempt.say(f"serving with kserve's model server instead of Triton: {reason}")
            pid, port = attempt.start_on_port(http_port)
            url = f"http://{attempt.client_host}:{port}"
            try:
                folder.record(Running(pid=pid, url=url, models=dict(models), owner=owner))
            except BaseException:
                stop(pid, seconds=2)  # no command could name it
                raise
    finally:
        folder.leave()
        server_folder.remove_abandoned()
    return Server(pid=pid, url=url, kind=attempt.kind, log=str(attempt.log), reason=reason)


class ServerEnded(ClusterError):
    """The server ended before its model was ready; `words` are its own error lines."""

    def __init__(self, text: str, words: str) -> None:
        super().__init__(text)
        self.words = words


class PortInUse(ClusterError):
    """Another process listens at the requested port."""


class _PortInUseError(Exception):
    """Another process has the port, so that another port is tried."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Start:
    """One attempt to start a server, with its deadline."""

    kind: str
    folder: ServerFolder
    models: Mapping[str, str]
    log: Path
    host: str
    ends: float
    """On time.monotonic()'s clock."""
    deadline: float
    """Seconds from the start until `ends`, for messages."""
    options: tuple[str, ...]
    report: Callable[[str], None]
    owner: int | None

    @property
    def model(self) -> str:
        """Name of the model that must become ready."""
        return next(iter(self.models))

    @property
    def client_host(self) -> str:
        """Address at which this machine reaches the server."""
        return HOST if self.host == ANY_ADDRESS else self.host

    def say(self, line: str) -> None:
        """Report a line, and append it to the log."""
        with open(self.log, "a", encoding="utf-8") as output:
            output.write(line + "\n")
        self.report(line)

    def start_on_port(self, http_port: int) -> tuple[int, int]:
        """Start the server; returns its pid and port once it is ready.

        Raises ClusterError where it ends or all ports are taken, and DeadlineError.
        """
        for attempt in range(1, PORT_ATTEMPTS + 1):
            port = http_port or free_port()
            self.say(f"starting {self.kind} for model {self.model} on http://{self.host}:{port}")
            make_command = triton_command if self.kind == "triton" else kserve_command
            command, env = make_command(self, port)
            process = server_processes.launch(
                command, env, folder=self.folder, log=self.log, owner=self.owner
            )
            try:
                self.wait_until_ready(process, port)
                return process.pid, port
            except _PortInUseError:
                stop(process.pid)
                if http_port or attempt == PORT_ATTEMPTS:
                    raise PortInUse(
                        f"port {port} on {self.host} is in use by another process; give another one"
                    ) from None
            except BaseException:
                stop(process.pid, seconds=2)  # nobody waits for its requests
                raise
        raise AssertionError("unreachable")

    def wait_until_ready(self, process: subprocess.Popen[bytes], port: int) -> None:
        """Return when the server says that the model is ready.

        Raises DeadlineError, and as `raise_error_of_log` where the server has ended.
        """
        client = Client(f"http://{self.client_host}:{port}", self.model, timeout=2.0)
        while True:
            # Another program's server on this port may have a model of the same name; the identity
            # shows that this server is ours.
            ready = client.ready() and client.server_name() == self.folder.identity
            exit_code = process.poll()
            if exit_code is not None:
                self.raise_error_of_log(exit_code)
            if ready:
                return
            if time.monotonic() > self.ends:
                raise DeadlineError(
                    f"model {self.model} was not ready within {self.deadline:.0f} s; last lines of"
                    f" {self.log}:\n{last_lines(self.log.read_text(errors='replace'))}"
                )
            time.sleep(0.1)

    def raise_error_of_log(self, exit_code: int) -> None:
        """Raise a ClusterError with the error lines of the server's log, or FullDiskError."""
        # The log may hold the output of attempts on other ports before this one.
        text = self.log.read_text(errors="replace").rsplit("starting ", 1)[-1]
        if _PORT_IN_USE.search(text):
            raise _PortInUseError
        words = error_lines(text) or last_lines(self.log.read_text(errors="replace"))
        places = (self.folder.path, self.log.parent)
        if full := space.error_of_program(words, *places):
            raise full
        if folder := space.full_folder(*places):  # the log itself may have had no room
            raise space.error_of_folder(folder)
        # The server names the links in its own folder; users know the models' addresses.
        for name, uri in self.models.items():
            words = words.replace(str(self.folder.repository / name), uri)
        raise ServerEnded(
            f"{self.kind} ended with exit code {exit_code} before model {self.model} was"
            f" ready:\n{words}\n(log: {self.log})",
            words,
        )


def last_lines(text: str) -> str:
    """Return the end of a log."""
    return "\n".join(text.splitlines()[-LOG_LINES:])


def triton_command(attempt: _Start, port: int) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of Triton. Raises ClusterError if it is not installed."""
    wheel = triton_wheel.find()
    if wheel is None:
        raise ClusterError(
            "Triton is not installed; pip install --no-deps -r requirements-triton.lock"
        )
    command = [
        os.fspath(wheel.server),
        f"--id={attempt.folder.identity}",
        f"--model-repository={attempt.folder.repository}",
        f"--backend-directory={triton_wheel.assemble(wheel, attempt.folder.path)}",
        f"--backend-config=python,shm-region-prefix-name={attempt.folder.identity}",
        "--disable-auto-complete-config",  # the config.pbtxt of a repository must be complete
        # Models with configs/local.pbtxt use it; others use their config.pbtxt.
        f"--model-config-name={LOCAL}",
        f"--http-address={attempt.host}",
        f"--http-port={port}",
        # By default there is no gRPC and no metrics, since each would need its own port.
        *([] if "--allow-grpc=true" in attempt.options else ["--allow-grpc=false"]),
        *([] if "--allow-metrics=true" in attempt.options else ["--allow-metrics=false"]),
        f"--exit-timeout-secs={STOP_SECONDS}",
        *attempt.options,
    ]
    return command, triton_wheel.environment(wheel, attempt.folder.path)


def kserve_command(attempt: _Start, port: int) -> tuple[list[str], dict[str, str]]:
    """Return command line and environment of kserve's model server."""
    command = [
        sys.executable,
        "-u",  # otherwise its last lines before a crash do not reach the log
        "-m",
        "serving.kserve_server",
        f"--repository={attempt.folder.repository}",
        f"--name={attempt.model}",
        f"--host={attempt.host}",
        f"--http-port={port}",
        f"--id={attempt.folder.identity}",
    ]
    # The server runs in its own folder, and finds the project through PYTHONPATH.
    path = [os.fspath(Path(__file__).parents[1])]
    if os.environ.get("PYTHONPATH"):
        path.append(os.environ["PYTHONPATH"])
    return command, {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
