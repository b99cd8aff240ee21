"""Run the replicas of a PyTorchJob as processes of this machine, started and stopped together."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clusters.orphans import RUN_VARIABLE
from clusters.pod_command import program_of
from clusters.protocol import RUN_LABEL, Manifest, run_id_of
from common.errors import FULL_DISK, PASSING_FAILURE, FullDiskError
from common.machine import free_port
from common.storage import space

GRACE = 15.0  # seconds between SIGTERM and SIGKILL: enough to write a checkpoint
TAIL = 12  # log lines shown of a process that failed
ERROR = "error: "  # start of the sentence with which our programs end (common.cli.run_main)
PR_SET_PDEATHSIG = 1
DEFAULT_BACKOFF_LIMIT = 6  # Kubernetes' default


def ends_with_parent() -> None:
    """Make the kernel send SIGTERM to this process when its parent dies; for `preexec_fn`.

    Works on Linux only, however the parent dies.
    """
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def host_command(command: list[str]) -> list[str]:
    """Return the command of a container for this machine, with our own python instead of PATH's."""
    if command[0] in ("python", "python3"):
        return [sys.executable, *command[1:]]
    if command[0] == "torchrun":
        return [sys.executable, "-m", "weaver.fit.torchrun", *command[1:]]
    return list(command)


def stop(*processes: subprocess.Popen[Any], grace: float = GRACE) -> None:
    """Stop processes and their sessions: SIGTERM, `grace` seconds for all, then SIGKILL.

    Sessions whose first process is gone are included, since others of it may still run. No error if
    all are gone.
    """
    for process in processes:
        _signal(process, signal.SIGTERM)
    end = time.monotonic() + grace
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def tail(log: Path, lines: int = TAIL) -> str:
    """Return the last lines of a log; empty if there is no log.

    Of a line that a progress bar overwrote, only the last state counts.
    """
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 64 * 1024))
        text = file.read().decode(errors="replace")
    states = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return "\n".join([line for line in states if line][-lines:])


class Replicas:
    """The Master and Worker processes of a PyTorchJob.

    They get the environment that the training operator sets. If one is killed, all start again,
    within the limits of restartPolicy and backoffLimit, and resume from their checkpoint. If one
    exits with a code, it is not restarted, because it would fail again. Requests for GPUs and
    memory, and volumes, have no effect.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        folder: Path,
        root: Path,
        threads: int,
        rewrites: dict[str, str] | None = None,
        on_restart: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Prepare the processes; none is started.

        Args:
            manifest: The PyTorchJob.
            folder: Folder for the logs.
            root: Folder with the code, in which commands run.
            threads: Threads of each process.
            rewrites: Texts to replace in the command.
            on_restart: Called with the reason before the replicas start again.
        """
        self.manifest = manifest
        self.folder = folder
        self.root = root
        self.threads = threads
        self.rewrites = rewrites or {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.failed_replica = ""
        self.restarts = 0
        self._on_restart = on_restart
        self._is_stopped = False

    def start(self) -> None:
        """Start all replicas.

        Logs go to `<folder>/<role>-<index>.log` and are appended to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        specs = self.manifest["spec"]["pytorchReplicaSpecs"]
        roles = []
        for role in ("Master", "Worker"):
            if role in specs:
                roles += [(role, index) for index in range(specs[role].get("replicas", 1))]
        port = free_port()
        for rank, (role, index) in enumerate(roles):
            self._start_one(
                f"{role.lower()}-{index}",
                specs[role]["template"],
                self._rank_environment(rank, len(roles), port),
            )

    def poll(self) -> int | None:
        """Return None while running, 0 if all succeeded, else the exit code of the first failure.

        After a failure the other replicas are stopped.
        """
        codes = {name: process.poll() for name, process in self.processes.items()}
        for name, code in codes.items():
            if code is None or code == 0:
                continue
            if was_killed(code) and not self._is_stopped and self.restarts < self._max_restarts:
                self._restart(name)
                return None
            self.failed_replica = name
            self.stop()
            return code
        return None if None in codes.values() else 0

    def stop(self) -> None:
        """Stop all replicas and their children."""
        self._is_stopped = True
        stop(*self.processes.values())

    @property
    def _max_restarts(self) -> int:
        spec = self.manifest["spec"]
        policies = {
            replica.get("restartPolicy", "Never")
            for replica in spec["pytorchReplicaSpecs"].values()
        }
        if policies == {"Never"}:
            return 0
        return int(spec.get("runPolicy", {}).get("backoffLimit", DEFAULT_BACKOFF_LIMIT))

    def _restart(self, name: str) -> None:
        """Start all replicas again, because the others cannot continue without the killed one."""
        self.failed_replica = name
        how = self._how_it_ended()
        stop(*self.processes.values())
        self.restarts += 1
        self.failed_replica = ""
        self._on_restart(f"{name} {how}: started again ({self.restarts} of {self._max_restarts})")
        self.processes = {}
        self.start()

    def _how_it_ended(self) -> str:
        code = self.processes[self.failed_replica].returncode
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def log(self, name: str = "master-0") -> Path:
        """Return the path of the log of a replica."""
        return self.folder / f"{name}.log"

    def reason(self) -> str:
        """Return exit code or signal, and last log lines, of the replica that failed first."""
        tries = f", after {self.restarts} restarts" if self.restarts else ""
        log = self.log(self.failed_replica)
        return (
            f"{self.failed_replica} {self._how_it_ended()}{tries}; its log ({log})"
            f" ends:\n{tail(log)}"
        )

    def full_disk(self, code: int) -> FullDiskError | None:
        """Return an error if a full disk ended the replica that failed first, else None.

        code: the replica's exit code. The message is the replica's own, from its log. There is none
        if the log's disk was full too, or if SIGBUS killed the replica, as when shared memory is
        full. Then the message names the disk that is full now.
        """
        if code not in (FULL_DISK, -signal.SIGBUS, 128 + signal.SIGBUS):
            return None
        if code == FULL_DISK:
            for line in reversed(tail(self.log(self.failed_replica)).splitlines()):
                if line.startswith(ERROR):
                    return FullDiskError(line.removeprefix(ERROR))
        folder = space.full_folder(self.folder)
        if folder:
            return space.error_of_folder(folder)
        if code == FULL_DISK:  # the disk has free space again
            return FullDiskError(f"a disk was full: {self.reason()}")
        return None

    def _start_one(self, name: str, template: Manifest, rank_environment: dict[str, str]) -> None:
        container = template["spec"]["containers"][0]
        # Without the shell of the pod: a signal reaches the whole session, and the shell would send
        # it to the program a second time.
        program = host_command(program_of(container))
        command = [self._rewrite(part) for part in program]
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                cwd=self.root,
                env={**os.environ, **self._container_environment(container), **rank_environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # so that one signal reaches the replica and all its children
                start_new_session=True,
                # It calls prctl and nothing else, which is safe in a forked process.
                preexec_fn=ends_with_parent,  # noqa: PLW1509
            )

    def _rewrite(self, text: str) -> str:
        for old, new in self.rewrites.items():
            text = text.replace(old, new)
        return text

    def _container_environment(self, container: Manifest) -> dict[str, str]:
        """Return the environment variables of the container.

        Keys of Secrets come from variables of the same names of this process.
        """
        values = {
            entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry
        }
        threads = min(self.threads, int(values.get("OMP_NUM_THREADS", self.threads)))
        if RUN_LABEL in self.manifest["metadata"].get("labels", {}):
            values[RUN_VARIABLE] = run_id_of(self.manifest)
        return {**values, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(self.root)}

    def _rank_environment(self, rank: int, replicas: int, port: int) -> dict[str, str]:
        per_node = str(self.manifest["spec"].get("nprocPerNode", "1"))
        return {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(replicas),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
            "PET_NODE_RANK": str(rank),
            "PET_NNODES": str(replicas),
            "PET_NPROC_PER_NODE": per_node,
        }


def was_killed(code: int) -> bool:
    """Return whether an exit code shows that a process was stopped or killed from outside.

    Signals of its own crashes (SIGSEGV, SIGABRT, SIGBUS) do not count, since they would repeat.
    """
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return code in {-number for number in numbers} | {128 + number for number in numbers}


def is_transient(code: int) -> bool:
    """Return whether a process with this exit code may succeed if it runs again."""
    return was_killed(code) or code in (FULL_DISK, PASSING_FAILURE)


def wait(replicas: Replicas, *, deadline: float, poll: float = 0.1) -> int | None:
    """Return the result of `Replicas.poll`, or None at the deadline (s). Stops all processes."""
    end = time.monotonic() + deadline
    try:
        while (code := replicas.poll()) is None and time.monotonic() < end:
            time.sleep(poll)
        return code
    finally:
        replicas.stop()
