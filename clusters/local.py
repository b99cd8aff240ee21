"""The local backend: run the manifests of a cluster on one machine.

An Experiment runs through Optuna, a PyTorchJob as processes, and an InferenceService as a real
Triton process over the same repository. A wrong manifest fails here as on a cluster.

Layout below `workdir`, the folder of local runs:

    <run-id>/local/search/   study.db (Optuna), <trial>/master-0.log and metrics.log
    <run-id>/local/jobs/     <job name>/master-0.log
    <run-id>/local/services/ <service name>/service.json, server log, a copy of a model repository
        that lies on S3
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from clusters import manifests, orphans, run_lock
from clusters.local_search import LocalSearch
from clusters.processes import Replicas, is_transient, tail, wait
from clusters.protocol import (
    Check,
    ExperimentResult,
    JobEnded,
    Manifest,
    Report,
    Service,
    run_id_of,
)
from common import pids, storage
from common.errors import ClusterError, DeadlineError, JecError
from common.machine import cores
from common.storage import space

POLL = 0.1  # seconds between two checks of the jobs of `run_jobs`


class Servers(Protocol):
    """Starts and stops model servers on this machine (serving.triton)."""

    def start(
        self,
        repository: str,
        *,
        model_name: str,
        log: Path,
        deadline: float,
        http_port: int = 0,
        owner: int | None = None,
    ) -> Any:
        """Start a server and wait until the model is ready.

        `owner` is the pid of the process with which the server ends.

        Returns:
            An object with pid, url and kind.
        """

    def is_running(self, pid: int) -> bool:
        """Return whether the server runs."""

    def stop(self, pid: int) -> bool:
        """Stop the server and its children.

        Returns:
            False if it is gone, or if the pid belongs to another process now.
        """


class LocalCluster:
    """The protocol clusters.protocol.Cluster, implemented on one machine."""

    resumes = True

    def __init__(
        self, workdir: Path | str, root: Path | str | None = None, servers: Servers | None = None
    ) -> None:
        """Use folders and model servers of this machine.

        Args:
            workdir: Folder for logs and records.
            root: Folder with the code, in which commands run (the working folder of an image).
            servers: Starts model servers; only `deploy` needs it.
        """
        self.workdir = Path(workdir).resolve()
        self.root = Path(root) if root else Path(__file__).resolve().parent.parent
        self.servers = servers

    def run_experiment(
        self, manifest: Manifest, *, deadline: float, report: Report
    ) -> ExperimentResult:
        """See clusters.protocol.Cluster. An interrupted search resumes from its study."""
        folder = self._folder(manifest, "search")
        with space.catch_full_disk(folder):  # SQLite does not say which file it cannot write
            search = LocalSearch(manifest, folder=folder, root=self.root, report=report)
            try:
                return search.run(deadline)
            finally:
                search.study.close()

    def can_continue(self, name: str) -> bool:
        """See clusters.protocol.Cluster."""
        return any(self.workdir.glob(f"*/local/search/{name}/study.db"))

    def experiments(self, run_id: str) -> dict[str, dict[str, str]]:
        """See clusters.protocol.Cluster. A failed experiment is included, as it runs again here.

        There are no annotations: changed parameters hold for all further trials.
        """
        studies = list((self.workdir / run_id / "local" / "search").glob("*/study.db"))
        studies.sort(key=lambda study: study.stat().st_mtime, reverse=True)
        return {study.parent.name: {} for study in studies}

    def run_job(self, manifest: Manifest, *, deadline: float, report: Report) -> None:
        """See clusters.protocol.Cluster. Output of the Master is reported line by line.

        Raises:
            ClusterError: If a replica failed, with its last log lines.
            DeadlineError: At the deadline, or at that of the manifest.
            FullDiskError: If a full disk ended a replica.
        """
        name = manifest["metadata"]["name"]
        job = self._job(manifest, threads=cores())
        deadline = min(deadline, _own_deadline(manifest))
        job.start()
        with _follow_log(job.log(), report):
            code = wait(job, deadline=deadline)
        if code is None:
            raise DeadlineError(
                f"job {name} did not end within {deadline:.0f} s; its log ends:\n{tail(job.log())}"
            )
        if code != 0:
            raise _failure(job, code)

    def run_jobs(
        self,
        manifests: Sequence[Manifest],
        *,
        parallel: int,
        on_end: JobEnded,
        deadline: float,
        report: Report,
    ) -> None:
        """See clusters.protocol.Cluster. At most one job per core runs. No process remains.

        Raises:
            DeadlineError: At the deadline.
            FullDiskError: If a full disk ended a job; the other jobs are stopped.
        """
        end = time.monotonic() + deadline
        parallel = max(1, min(parallel, cores(), len(manifests)))
        waiting = list(manifests)
        running: dict[str, Replicas] = {}
        starts: dict[str, float] = {}
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    manifest = waiting.pop(0)
                    name = manifest["metadata"]["name"]
                    running[name] = self._job(manifest, threads=max(1, cores() // parallel))
                    running[name].start()
                    starts[name] = time.monotonic()
                    report(f"job {name}: running; its log is {running[name].log()}")
                for name, job in list(running.items()):
                    longest = _own_deadline(job.manifest)
                    code = job.poll()
                    if code is None and time.monotonic() - starts[name] > longest:
                        job.stop()
                        reason = f"active longer than its deadline of {longest:.0f} s"
                    elif code is None:
                        continue
                    else:
                        if full := job.full_disk(code):
                            raise full  # it may pass, and the others would fail in the same way
                        reason = job.reason() if code else ""
                    del running[name]
                    report(f"job {name} failed: {reason}" if reason else f"job {name}: succeeded")
                    on_end(name, reason)
                if time.monotonic() > end:
                    raise DeadlineError(f"{', '.join(running)} did not end within {deadline:.0f} s")
                time.sleep(POLL)
        finally:
            for job in running.values():
                job.stop()

    def deploy(
        self, manifest: Manifest, *, check: Check, backup: str, deadline: float, report: Report
    ) -> Service:
        """See clusters.protocol.Cluster.

        An earlier server of the same service is stopped first, and is not restored if the check
        fails. The server outlives this process and ends with the process that runs the run.
        """
        name = manifest["metadata"]["name"]
        folder = self._folder(manifest, "services") / name
        self.end_service(folder)
        server = self._start_server(folder, manifests.storage_uri(manifest), deadline)
        report(f"{server.kind} serves {name} at {server.url}")
        log = folder / "server.log"
        service = Service(
            name=name,
            url=server.url,
            kind=server.kind,
            details={"pid": server.pid, "log": str(log)},
            is_running=lambda: self._servers.is_running(server.pid),
        )
        try:
            check(service)
        except JecError as error:
            log_end = f"the server's log ({log}) ends:\n{tail(log)}"
            error.args = (f"{error}\n{log_end}", *error.args[1:])
            raise
        return service

    def restart_service(self, folder: Path, repository: str, *, deadline: float) -> Service:
        """Start the server of a service again, at the same address.

        Args:
            folder: Folder of the service.
            repository: Model repository to serve.
            deadline: Seconds until the model must be ready.

        Raises:
            ClusterError: If it cannot be started.
        """
        url = json.loads((folder / "service.json").read_text())["url"]
        self.end_service(folder)
        server = self._start_server(folder, repository, deadline, urlsplit(url).port or 0)
        details = {"pid": server.pid, "log": str(folder / "server.log")}
        return Service(name=folder.name, url=server.url, kind=server.kind, details=details)

    def _start_server(
        self, folder: Path, repository: str, deadline: float, http_port: int = 0
    ) -> Any:
        """Start the server of a service and record it in the folder of the service.

        It ends with the process that runs the run; if there is none, it keeps running.
        """
        server = self._servers.start(
            repository,
            model_name=folder.name,
            log=folder / "server.log",
            deadline=deadline,
            http_port=http_port,
            owner=run_lock.owner(folder.parents[1]),
        )
        record = {
            "pid": server.pid,
            "started": pids.start_time(server.pid),
            "url": server.url,
            "kind": server.kind,
        }
        try:
            storage.write_json(str(folder / "service.json"), record)
        except BaseException:
            self._servers.stop(server.pid)  # no later command would find it
            raise
        return server

    @property
    def _servers(self) -> Servers:
        if self.servers is None:
            raise ClusterError("this backend has no model servers; pass servers=serving.triton")
        return self.servers

    def delete_experiment(self, name: str) -> None:
        """See clusters.protocol.Cluster."""
        for folder in self.workdir.glob(f"*/local/search/{name}"):
            shutil.rmtree(folder, ignore_errors=True)

    def delete_job(self, name: str) -> None:
        """See clusters.protocol.Cluster."""
        for folder in self.workdir.glob(f"*/local/jobs/{name}"):
            shutil.rmtree(folder, ignore_errors=True)

    def delete(self, run_id: str) -> list[str]:
        """See clusters.protocol.Cluster. Results in the run's storage stay."""
        local = self.workdir / run_id / "local"
        names = []
        for place, kind in (
            ("services", "InferenceService"),
            ("jobs", "PyTorchJob"),
            ("search", "Experiment"),
        ):
            if not _is_inside(local / place, self.workdir / run_id):
                continue
            for folder in sorted((local / place).glob("*")):
                if folder.is_symlink():
                    folder.unlink()  # its target does not belong to the run
                    names.append(f"{kind}/{folder.name}")
                    continue
                if place == "services":
                    self.end_service(folder)
                shutil.rmtree(folder, ignore_errors=True)
                names.append(f"{kind}/{folder.name}")
        return names

    def end_service(self, folder: Path) -> None:
        """Stop the server that the folder of a service names; no error if it is gone."""
        record = folder / "service.json"
        if record.exists() and self.servers:
            pid = self._server_of(folder)
            if pid is not None:
                self.servers.stop(pid)
            record.unlink()

    def _server_of(self, folder: Path) -> int | None:
        """Return the pid of the server of a service; None if the process is not of this run.

        The record may be old or forged: the process must have the start time of the record, and
        this run in its environment.
        """
        try:
            values = json.loads((folder / "service.json").read_text())
            pid, server_start = int(values["pid"]), values.get("started")
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        if not pids.is_alive(pid):
            return pid  # its children may still run, in the process group with this number
        if server_start is not None and server_start != pids.start_time(pid):
            return None
        run_id = folder.parents[2].name
        return pid if orphans.may_be_of(pid, run_id, self.workdir) else None

    def _folder(self, manifest: Manifest, place: str) -> Path:
        folder = self.workdir / run_id_of(manifest) / "local" / place
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _job(self, manifest: Manifest, *, threads: int) -> Replicas:
        """Return the processes of a job, not started, with an empty folder for their logs."""
        folder = self._folder(manifest, "jobs") / manifest["metadata"]["name"]
        shutil.rmtree(folder, ignore_errors=True)
        return Replicas(manifest, folder=folder, root=self.root, threads=threads)


def _is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path, with its links resolved, lies below a folder."""
    return path.resolve().is_relative_to(folder.resolve()) and not folder.is_symlink()


def _own_deadline(manifest: Manifest) -> float:
    """Return the seconds that a job may take by its own manifest."""
    return float(manifest["spec"].get("runPolicy", {}).get("activeDeadlineSeconds", math.inf))


def _failure(job: Replicas, code: int) -> JecError:
    """Return the error of a job that ended with this exit code."""
    if full := job.full_disk(code):
        return full
    error = ClusterError(f"job {job.manifest['metadata']['name']} failed: {job.reason()}")
    error.retryable = is_transient(code)
    return error


@contextlib.contextmanager
def _follow_log(log: Path, report: Report) -> Iterator[None]:
    """Report the lines of a log while the block runs, and the rest of them at its end."""
    is_over = threading.Event()

    def follow() -> None:
        with log.open(encoding="utf-8", errors="replace") as file:
            while True:
                last = is_over.is_set()
                for line in file:
                    report(line.rsplit("\r", 1)[-1].rstrip())
                if last:
                    return
                time.sleep(0.1)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
