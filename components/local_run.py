"""A run on this machine: the folder of local runs, the chain, the service, the last lines."""

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
from common import storage, tracking
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
SMALL = (
    "run.json",
    "search.json",
    "metrics.json",
    "report.html",
    "service.json",
    "summary.json",
    "status.json",
)
"""Copied beside the logs when the results lie on S3, so that `latest` has something to look at."""


class LocalRun:
    """Runs the chain below `output`.

    Results lie in `output` too, unless the configuration names another storage.
    """

    def __init__(
        self, config: RunConfig, output: Path, *, serve: bool, quiet: bool = False
    ) -> None:
        """Settle where results lie; nothing is started yet."""
        self.output, self.serve, self.started = output.resolve(), serve, time.monotonic()
        self.quiet = quiet
        place = str(self.output) if config.s3_bucket == AUTO else storage.absolute(config.s3_bucket)
        self.config = tracking.settled(config.replace(s3_bucket=place), on_this_machine=True)
        self.run: Run | None = None
        # why the chain did nothing after prepare
        self.unchanged: UnchangedRecord | None = None
        # of the steps; the run's id once prepare has settled it
        self.environment = {**ALLOCATOR, LOCAL_DIR: str(self.output)}
        # prepare writes the run's URI into it as soon as it is settled
        self.uri_file: Path | None = None
        self.lock: RunLock | None = None

    def __call__(self) -> int:
        """Run it, and return the exit code.

        It is 0 also where the gate refused the model, because that is an answer.
        """
        if self.config.webhook_secret != NONE:
            print(f"--webhook-secret is for Kubeflow; here {WEBHOOK} or {WEBHOOK_FILE} is taken")
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
                self._forget_refused(self.lock.run_id)

    def _chain(self, ir: Path, work: Path) -> int:
        """Run the chain, and serve where that is asked for; returns the exit code.

        Raises JecError.
        """
        with space.explained(self.output):
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
        """The run of a chain whose prepare step has ended well. Raises JecError before that."""
        if self.run is None:
            raise JecError("the chain ended without a run: prepare did not run")
        return self.run

    def _before_step(self, step: str, command: list[str]) -> None:
        if step == "prepare":
            self.uri_file = _uri_file(command)
            if self.lock is None:
                job_id = command[command.index("--job-id") + 1]
                self._take_lock(make_run_id(self.config.network_config, job_id))

    def _take_lock(self, run_id: str) -> None:
        """Make this the only process that runs the run; end what a killed one left running.

        Raises InputError where another process runs it.
        """
        has_results_elsewhere = self.config.s3_bucket != str(self.output)
        remote = storage.join(self.config.s3_bucket, run_id) if has_results_elsewhere else ""
        lock = RunLock(run_id, self.output / run_id / "local", remote)
        lock.take(_say)
        self.lock = lock
        left = orphans.processes_of(run_id, self.output)
        if left:
            _say(f"ending {len(left)} processes that a killed command for {run_id} left")
            orphans.end(list(left))
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

    def _forget_refused(self, run_id: str) -> None:
        """Remove the folder of a run that prepare refused: it holds the lock alone."""
        folder = self.output / run_id
        files = [path for path in folder.rglob("*") if not path.is_dir()]
        if files == [folder / "local" / LOCK]:
            shutil.rmtree(folder, ignore_errors=True)

    def _point_latest(self, run: Run) -> None:
        """Let `latest` name the newest run whose preparation is whole.

        The link is replaced in one step, so that it always leads somewhere.
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
                    write_status(self.run, "pipeline", "interrupted", "told to stop")
            print("interrupted", file=sys.stderr)
        elif isinstance(error, host_runner.StepFailed):
            print(f"failed in step {error.step}", file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        if run_id and error.exit_code != InputError.exit_code:
            # Before run.json there is nothing to take the parameters from.
            command = (
                f"python pipeline.py --output {_shown(self.output)}"
                if self.run
                else "the same command with"
            )
            print(f"to go on where it stopped: {command} --resume {run_id}", file=sys.stderr)
        return error.exit_code

    # --------------------------------------------------------------------------- the end of a run

    def _summary(self, run: Run) -> None:
        """What there is, where, how good, and what to do next."""
        search = SearchRecord.load(run.folder.search)
        metrics = MetricsRecord.load(run.folder.metrics)
        best = search.best
        duration = clock(time.monotonic() - self.started)
        lines = [("run", f"{_shown(self.output / run.id)} ({duration})")]
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
        """Send one real jet to the running service."""
        import numpy as np

        from serving.client import Client

        folder = run.folder
        body = storage.read_json(storage.join(folder.golden(service.name), "request.json"))
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
        folder = _shown(self.output / run.id)
        steps = [f"look at {folder}/report.html"]
        if self.serve and self._service():
            steps.append("calibrate jets with it (docs/using-the-model.md); Ctrl-C ends it")
        else:
            steps.append(f"serve it: python -m serving.serve {folder}")
        steps.append(
            "calibrate your own jets: python pipeline.py --data-train 'FILES' --data-val 'FILES'"
            " --data-test 'FILES'"
        )
        return steps

    def _service(self) -> ServiceRecord | None:
        """The service that this run's deploy step left running."""
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
                pid, lambda: self._restart_service(file.parent), log=log, report=_say
            )
        except InterruptedRun:
            return
        except JecError as error:
            with contextlib.suppress(JecError):  # a storage that fails must not hide the reason
                write_status(self._prepared, "pipeline", "failed", str(error))
            raise

    def _ensure_service(self) -> None:
        """Start the server again where it has ended by itself since the deploy step."""
        file = self._service_file()
        if file is not None and not triton.is_running(json.loads(file.read_text())["pid"]):
            self._restart_service(file.parent)

    def _restart_service(self, folder: Path) -> int:
        """Start the server again, and let service.json say so; returns its pid."""
        run = self._prepared
        cluster = LocalCluster(self.output, servers=triton)
        served = cluster.restart_service(folder, run.folder.models, deadline=SERVICE_DEADLINE)
        record = ServiceRecord.load(run.folder.service)
        details = {**record.details, **served.details}
        dataclasses.replace(record, details=details, kind=served.kind).save(run.folder.service)
        _say(f"{served.kind} serves {served.name} again at {served.url}")
        pid: int = served.details["pid"]
        return pid

    def _end_service(self) -> None:
        if file := self._service_file():
            cluster = LocalCluster(self.output, servers=triton)
            cluster.end_service(file.parent)

    def _collect(self) -> None:
        """Bring small results of a run in a remote storage beside its local logs."""
        if self.run and not storage.is_local(self.run.uri):
            for name in SMALL:
                if storage.exists(self.run.path(name)):
                    storage.download(self.run.path(name), self.output / self.run.id / name)


def remove_workspaces(folder: Path) -> None:
    """Remove what kfp kept for runs that were killed: workspaces whose process is gone.

    Those of another machine and of earlier versions go after a day.
    """
    for path in folder.glob("*"):
        host, _, rest = path.name.rpartition(".")[0].rpartition(".")
        is_left = time.time() - path.lstat().st_mtime > STALE_SECONDS
        if host == socket.gethostname() and rest.isdigit():
            is_left = not orphans.is_alive(int(rest))
        if is_left and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif is_left:
            path.unlink(missing_ok=True)


def _uri_file(command: list[str]) -> Path:
    """The file into which the prepare step with this command writes the run's URI."""
    return Path(command[command.index("--run-output") + 1])


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(*_: Any) -> None:
    raise InterruptedRun("told to stop")


def _gain_text(gain: Interval | None) -> str:
    if gain is None:
        return "not measured: too few test jets"
    return f"{gain.percent()} in resolution, over the standard JEC"


def _shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
