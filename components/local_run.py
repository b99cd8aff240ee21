"""Run the pipeline on this machine: lock, steps, model server, and the summary at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from clusters import orphans
from clusters.local import LocalCluster
from clusters.orphans import RUN_VARIABLE
from clusters.run_lock import LOCK, RunLock
from common import pids, storage, tracking
from common.config import AUTO, NONE, RunConfig
from common.errors import InputError, InterruptedRun, JecError
from common.layout import RunFolder
from common.measurements import Interval
from common.progress import clock
from common.records import (
    ExportRecord,
    MetricsRecord,
    SearchRecord,
    ServiceRecord,
    UnchangedRecord,
)
from common.run import Run, make_run_id
from common.storage import space
from components import chain, host_runner
from components.step import LOCAL_DIR, write_status
from components.steps import SERVICE_DEADLINE, WEBHOOK, WEBHOOK_FILE
from serving import restarts, server_folder, triton
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR

STALE_SECONDS = 24 * 3600
SMALL_FILES = (
    "run.json",
    "search.json",
    "metrics.json",
    "report.html",
    "service.json",
    "summary.json",
    "status.json",
)
"""Files that are copied to --output if the results are on S3, so that `latest` shows them."""


class LocalRun:
    """A run on this machine, with its logs in `output`; calling it executes the steps.

    The results are in `output` too, unless the configuration names another storage.
    """

    def __init__(
        self, config: RunConfig, output: Path, *, serve: bool, quiet: bool = False
    ) -> None:
        """Decide where the results go; nothing is started yet."""
        self.output, self.serve, self.start_time = output.resolve(), serve, time.monotonic()
        self.quiet = quiet
        place = str(self.output) if config.s3_bucket == AUTO else storage.absolute(config.s3_bucket)
        self.config = tracking.with_server_address(
            config.replace(s3_bucket=place), on_this_machine=True
        )
        self.run: Run | None = None
        # set if --if-data-changed ended the run after prepare
        self.unchanged: UnchangedRecord | None = None
        # environment variables of the steps; after prepare also the run's id
        self.environment = {**ALLOCATOR, LOCAL_DIR: str(self.output)}
        # prepare writes the run's URI into this file as soon as it is known
        self.uri_file: Path | None = None
        self.lock: RunLock | None = None

    def __call__(self) -> int:
        """Execute the steps; return the exit code.

        It is 0 also if the gate refused the model, because that is a valid result.
        """
        if self.config.webhook_secret != NONE:
            print(
                f"--webhook-secret is for Kubeflow; on one machine set {WEBHOOK} or {WEBHOOK_FILE}"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        workspaces = self.output / ".kfp"
        remove_workspaces(workspaces)
        work = workspaces / f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
        ir = work / "pipeline.yaml"
        for number in host_runner.stop_signals():
            signal.signal(number, _interrupt)
        try:
            return self._chain(ir, work)
        except JecError as error:
            code = self._ended_badly(error)
            with contextlib.suppress(JecError):
                self._collect()
            return code
        finally:
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):  # another run may have its own there
                workspaces.rmdir()
            self._end_service()
            if self.lock is not None:
                self.lock.release()
                self._remove_refused_run(self.lock.run_id)

    def _chain(self, ir: Path, work: Path) -> int:
        """Run the chain, and serve where that is asked for; returns the exit code.

        Raises JecError.
        """
        with space.catch_full_disk(self.output):
            if self.config.run_id != AUTO:
                self._take_lock(self.config.run_id)
            chain.compile_to(ir, self.config)
            host_runner.run_pipeline(
                ir,
                chain.parameters(self.config),
                work=work,
                environment=self.environment,
                on_start=self._before_step,
                on_end=self._after_step,
                quiet=self.quiet,
            )
            if self.unchanged:
                print(f"\nunchanged: {self.unchanged.reason}", flush=True)
                return 0
            self._collect()
            self._ensure_service()
            self._summary(self._prepared)
            if self.serve and self._service():
                self._keep_serving()
            return 0

    @property
    def _prepared(self) -> Run:
        """The run, after the step prepare. Raises JecError before that."""
        if self.run is None:
            raise JecError("the pipeline ended without a run, because prepare did not run")
        return self.run

    def _before_step(self, step: str, command: list[str]) -> None:
        if step == "prepare":
            self.uri_file = _uri_file(command)
            if self.lock is None:
                job_id = command[command.index("--job-id") + 1]
                self._take_lock(make_run_id(self.config.network_config, job_id))

    def _take_lock(self, run_id: str) -> None:
        """Lock the run for this process, and end processes of an earlier, killed command.

        Raises InputError if another process has the lock.
        """
        has_results_elsewhere = self.config.s3_bucket != str(self.output)
        remote = storage.join(self.config.s3_bucket, run_id) if has_results_elsewhere else ""
        lock = RunLock(run_id, self.output / run_id / "local", remote)
        lock.take(print_line)
        self.lock = lock
        orphan_processes = orphans.processes_of(run_id, self.output)
        if orphan_processes:
            print_line(
                f"ending {len(orphan_processes)} processes that a killed command for {run_id} left"
            )
            orphans.end(list(orphan_processes))
        server_folder.remove_abandoned()

    def _after_step(self, step: str, command: list[str]) -> None:
        if step == "prepare":
            uri = _uri_file(command).read_text()
            self.unchanged = UnchangedRecord.find(RunFolder(uri).unchanged)
            if self.unchanged:
                return
            self.run = run = Run.load(uri)
            self.environment[RUN_VARIABLE] = run.id
            self._point_latest(run)

    def _remove_refused_run(self, run_id: str) -> None:
        """Remove the folder of a run that prepare refused; it has nothing but the lock."""
        folder = self.output / run_id
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        if files == [folder / "local" / LOCK]:
            shutil.rmtree(folder, ignore_errors=True)

    def _point_latest(self, run: Run) -> None:
        """Let the link `latest` point to this run, whose preparation is complete.

        The link is replaced atomically, so that it never dangles.
        """
        folder = self.output / run.id
        folder.mkdir(exist_ok=True)
        link, new = self.output / "latest", self.output / f".latest-{os.getpid()}"
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(link)

    def _ended_badly(self, error: JecError) -> int:
        run_id = (
            storage.name(self.uri_file.read_text())
            if self.uri_file and self.uri_file.exists()
            else ""
        )
        if isinstance(error, InterruptedRun):
            if self.run:
                with contextlib.suppress(JecError):
                    write_status(self.run, "pipeline", "interrupted", "stopped by a signal")
            print("interrupted", file=sys.stderr)
        elif isinstance(error, host_runner.StepError):
            print(f"failed in step {error.step}", file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        if run_id and error.exit_code != InputError.exit_code:
            # Without run.json the parameters have to be typed again.
            command = (
                f"python pipeline.py --output {_short_path(self.output)}"
                if self.run
                else "the same command with"
            )
            print(f"to resume it: {command} --resume {run_id}", file=sys.stderr)
        return error.exit_code

    # --------------------------------------------------------------------------- the end of a run

    def _summary(self, run: Run) -> None:
        """Print the best trial, the gain, the service, the folder, and the next commands."""
        search = SearchRecord.load(run.folder.search)
        metrics = MetricsRecord.load(run.folder.metrics)
        best = search.best
        duration = clock(time.monotonic() - self.start_time)
        lines = [("run", f"{_short_path(self.output / run.id)} ({duration})")]
        if self.config.s3_bucket != str(self.output):
            lines.append(("results", run.uri))
        lines += [
            ("best trial", f"{best.name}: {search.objective.name} {search.best_value:.5f}"),
            ("", ", ".join(f"{name} {value}" for name, value in best.parameters.items())),
            ("gain", _gain_text(metrics.gain)),
        ]
        if service := self._service():
            lines += self._served_lines(run, service)
        else:
            lines.append(("not deployed", "; ".join(metrics.reasons)))
        print("\n" + "\n".join(f"{name:>12}  {text}" for name, text in lines))
        print("\nnext: " + "\n      ".join(self._next_steps(run)), flush=True)

    def _served_lines(self, run: Run, service: ServiceRecord) -> list[tuple[str, str]]:
        """Return the lines on the service, with its answer for one jet of the golden request."""
        import numpy as np

        from serving.client import Client

        folder = run.folder
        body = storage.read_object(storage.join(folder.golden(service.name), "request.json"))
        outputs = Client(service.url, service.name).infer(body)["outputs"]
        answer, *quantiles = outputs[0]["data"]
        text = (
            f"log(pT_gen/pT) = {answer:+.4f} for one jet: multiply its corrected pT by"
            f" {np.exp(answer):.4f}"
        )
        columns = ExportRecord.load(folder.export).output_columns or ["output"]
        factors = []
        for name, value in zip(columns[1:], quantiles, strict=True):
            factors.append(f"{name} {np.exp(value):.3f}")
        if factors:
            text += f" ({', '.join(factors)})"
        return [("served by", f"{service.kind} at {service.url}"), ("answer", text)]

    def _next_steps(self, run: Run) -> list[str]:
        folder = _short_path(self.output / run.id)
        steps = [f"look at {folder}/report.html"]
        if self.serve and self._service():
            steps.append("calibrate jets with it (docs/using-the-model.md); Ctrl-C ends it")
        else:
            steps.append(f"serve it: python -m serving.serve {folder}")
        if ExportRecord.load(run.folder.export).raw:
            steps.append(
                f"calibrate files: python -m serving.calibrate 'FILES' --model {folder}"
                " --output calibrated"
            )
        # --rerun: the defaults of the flags are a search for a cluster, not the one of this run.
        steps.append(
            f"train on your own jets: python pipeline.py --output {_short_path(self.output)}"
            f" --rerun {run.id} --data-train 'FILES' --data-val 'FILES' --data-test 'FILES'"
        )
        return steps

    def _service(self) -> ServiceRecord | None:
        """Return the record of the service that deploy started; None without a service."""
        if self.run is None or self._service_file() is None:
            return None
        return ServiceRecord.find_readable(self.run.folder.service)

    def _service_file(self) -> Path | None:
        if self.run is None:
            return None
        record = (
            self.output / self.run.id / "local" / "services" / self.run.model_name / "service.json"
        )
        return record if record.exists() else None

    def _keep_serving(self) -> None:
        file = self._service_file()
        if file is None:
            return
        pid = json.loads(file.read_text())["pid"]
        print("serving until Ctrl-C ...", flush=True)
        log = file.parent / "server.log"
        try:
            restarts.keep_running(
                pid, lambda: self._restart_service(file.parent), log=log, report=print_line
            )
        except InterruptedRun:
            return
        except JecError as error:
            with contextlib.suppress(JecError):  # an error of the storage must not hide the reason
                write_status(self._prepared, "pipeline", "failed", str(error))
            raise

    def _ensure_service(self) -> None:
        """Start the server again if it has ended since the step deploy."""
        file = self._service_file()
        if file is not None and not triton.is_running(json.loads(file.read_text())["pid"]):
            self._restart_service(file.parent)

    def _restart_service(self, folder: Path) -> int:
        """Start the server again and update service.json; return the server's pid."""
        loaded_run = self._prepared
        cluster = LocalCluster(self.output, servers=triton)
        service = cluster.restart_service(
            folder, loaded_run.folder.models, deadline=SERVICE_DEADLINE
        )
        record = ServiceRecord.load(loaded_run.folder.service)
        details = {**record.details, **service.details}
        dataclasses.replace(record, details=details, kind=service.kind).save(
            loaded_run.folder.service
        )
        print_line(f"{service.kind} serves {service.name} again at {service.url}")
        pid: int = service.details["pid"]
        return pid

    def _end_service(self) -> None:
        if file := self._service_file():
            cluster = LocalCluster(self.output, servers=triton)
            cluster.end_service(file.parent)

    def _collect(self) -> None:
        """Copy the small results of a run on remote storage to its local folder."""
        if self.run and not storage.is_local(self.run.uri):
            for name in SMALL_FILES:
                if storage.exists(self.run.path(name)):
                    storage.download(self.run.path(name), self.output / self.run.id / name)


def remove_workspaces(folder: Path) -> None:
    """Remove kfp's workspaces of runs that were killed, whose process no longer exists.

    Workspaces of other machines and of earlier versions are removed after a day.
    """
    for path in folder.glob("*"):
        host, _, rest = path.name.rpartition(".")[0].rpartition(".")
        is_stale = time.time() - path.lstat().st_mtime > STALE_SECONDS
        if host == socket.gethostname() and rest.isdigit():
            is_stale = not pids.is_alive(int(rest))
        if is_stale and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif is_stale:
            path.unlink(missing_ok=True)


def _uri_file(command: list[str]) -> Path:
    """Return the file into which the step prepare with this command writes the run's URI."""
    return Path(command[command.index("--run-output") + 1])


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def _interrupt(*_: Any) -> None:
    raise InterruptedRun("stopped by a signal")


def _gain_text(gain: Interval | None) -> str:
    if gain is None:
        return "not measured: too few test jets"
    return f"{gain.percent()} in resolution, over the standard JEC"


def _short_path(path: Path) -> str:
    """Return a path relative to the working directory if it is below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
