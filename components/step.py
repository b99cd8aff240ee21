"""Functions that all steps share: arguments, exit code, retries, status.json, artifacts.

A step is a program in a KFP container component. In a pod of a KFP run it uses the pod's cluster;
started by the local runner (LOCAL_DIR) it uses this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import functools
import getpass
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clusters.protocol import KFP_POD, Cluster
from common import storage
from common.cli import Parser, require_url, run_main
from common.config import AUTO, RunConfig, flag, label_value
from common.errors import DeadlineError, InterruptedRun, JecError
from common.layout import RunFolder
from common.records import StatusRecord, StepStatus, UnchangedRecord
from common.run import Run
from common.storage import space
from common.storage.addresses import check_endpoints, local_path
from components.steps import RETRIES, step_of

LOCAL_DIR = "JEC_LOCAL_DIR"
"""Variable that the local runner sets to the folder of local runs; unset in a cluster's pods."""
RESERVE = ".reserve"
RESERVED_BYTES = 64 * 2**10
"""Size of the file RESERVE, which is removed to make room for status.json on a full disk."""
NO_BUCKET = (
    "--s3-bucket (storage_bucket in Kubeflow's form) is 'auto': give s3://bucket/prefix, where the"
    " pods of the run can read and write"
)
UNCHANGED = "unchanged"
"""Output of a step that --if-data-changed has skipped."""
PATIENCE_SECONDS = 45.0
"""How long an attempt waits after a temporary failure, before Kubeflow makes the next one."""


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every step after prepare takes."""
    result = Parser(prog=f"python -m components.{name}", description=description)
    result.add_argument(
        "--run", required=True, metavar="URI", help="the run's folder, as prepare printed it"
    )
    result.add_argument(
        "--s3-endpoint",
        default=AUTO,
        metavar="URL",
        help="S3 endpoint; 'auto' takes AWS_ENDPOINT_URL (default: auto)",
    )
    result.add_argument(
        "--job-id",
        type=str,
        default="",
        metavar="ID",
        help="KFP job id, by which a repeated attempt is recognised; leave it out by hand",
    )
    result.add_argument(
        "--executor-input",
        type=str,
        default="",
        metavar="JSON",
        help="KFP's executor input; leave it out by hand",
    )
    return result


def main(name: str, args: argparse.Namespace, body: Callable[[Run], None]) -> int:
    """Run a step on the run in its arguments and write its status; return the exit code."""

    def run_step() -> None:
        """Run the step unless it is skipped or failed before for a permanent reason."""
        use_endpoint(args.s3_endpoint)
        if is_unchanged(name, args):
            return
        run = Run.load(args.run)
        refuse_repetition(name, run.uri, args.job_id)
        with_status(name, run, lambda: body(run), job_id=args.job_id)

    stop_on_sigterm()
    is_last = functools.partial(is_last_attempt, name, args.run, args.job_id)
    return run_main(patient(run_step, args.job_id, is_last))


def is_unchanged(name: str, args: argparse.Namespace) -> bool:
    """Return whether --if-data-changed skips the step; if so, write 'unchanged' to its outputs."""
    record = UnchangedRecord.find(RunFolder(args.run).unchanged)
    if record is None:
        return False
    artifacts = Artifacts(args.executor_input)
    for output, kind in step_of(name).outputs.items():
        if kind == "parameter":
            write_output(getattr(args, f"{output}_output"), UNCHANGED)
        else:
            # Kubeflow's UI shows an error for a missing page
            artifacts.set(output, content=f"unchanged: {record.reason}\n")
    say_result(f"unchanged: {record.reason}")
    return True


def patient(
    body: Callable[[], None], job_id: str, is_last: Callable[[], bool] = lambda: False
) -> Callable[[], None]:
    """Return `body` with a pause after a temporary failure.

    Kubeflow makes the next attempt after a few seconds, whatever the reason of the failure; the
    pause gives the cause time to pass. There is none without a job id and after the last attempt,
    because no attempt follows. The exit handler does not count attempts and always pauses.
    """

    def attempt() -> None:
        """Run `body`; after a temporary failure wait PATIENCE_SECONDS before raising it."""
        try:
            body()
        except (KeyboardInterrupt, InterruptedRun):
            raise
        except Exception as error:
            on_kubeflow = job_id and LOCAL_DIR not in os.environ
            if on_kubeflow and is_retryable(error) and not is_last():
                say(f"failed: {error}; this attempt ends in {PATIENCE_SECONDS:.0f} s")
                time.sleep(PATIENCE_SECONDS)
            raise

    return attempt


def is_last_attempt(name: str, uri: str, job_id: str) -> bool:
    """Return whether a step has started the last attempt that Kubeflow makes, by status.json.

    False if status.json cannot be read. Retry in the UI allows all attempts of the job again.
    """
    try:
        entry = read_status(uri).steps.get(name)
    except JecError:
        return False
    if entry is None or entry.job_id != job_id or not entry.attempts:
        return False
    return entry.attempts % (RETRIES + 1) == 0


def is_retryable(error: Exception) -> bool:
    """Return whether another attempt may succeed; True for exceptions that are not ours."""
    return error.retryable if isinstance(error, JecError) else True


def echo(config: RunConfig) -> None:
    """Print the parameters that differ from their defaults."""
    defaults = RunConfig().parameters()
    changed_values = {
        name: value for name, value in config.parameters().items() if value != defaults[name]
    }
    for name, value in changed_values.items():
        say(f"  --{flag(name)} {value}")
    say(f"  and {len(defaults) - len(changed_values)} parameters at their defaults")


def refuse_repetition(name: str, uri: str, job_id: str) -> None:
    """Raise JecError if Kubeflow retries a step that failed for a permanent reason.

    Kubeflow retries every failure. After `--resume`, which is another job, the step runs again. So
    it does after Retry in the UI, which keeps the job id: finish has reset the flag `retryable`,
    or, if finish was lost, the retries are used up.
    """
    status = read_status(uri)
    before = status.steps.get(name)
    if before is None or not job_id or before.job_id != job_id:
        return
    if before.state != "failed" or before.retryable or before.refused >= RETRIES:
        return
    entry = dataclasses.replace(before, refused=before.refused + 1)
    # an error of the storage must not hide the reason
    with contextlib.suppress(JecError):
        dataclasses.replace(status, steps={**status.steps, name: entry}).save(RunFolder(uri).status)
    raise JecError(f"{name} failed before for a reason that would repeat: {before.reason}")


def with_status(name: str, run: Run, body: Callable[[], None], *, job_id: str = "") -> None:
    """Run a step and write its state into status.json.

    The state is running, then done, failed or interrupted, with the reason. Raises as `body`.
    """
    folder = local_path(run.uri) if storage.is_local(run.uri) else None
    try:
        with disk_reserve(folder), space.catch_full_disk(*([folder] if folder else [])):
            write_status(run, name, "running", job_id=job_id)
            body()
            write_status(run, name, "done", job_id=job_id)
    except (KeyboardInterrupt, InterruptedRun):
        # an error of the storage must not hide why the step ended
        with contextlib.suppress(JecError):
            write_status(run, name, "interrupted", "stopped by a signal", job_id=job_id)
        raise
    except Exception as error:
        with contextlib.suppress(JecError):
            write_failure(run, name, error, job_id)
        raise


@contextlib.contextmanager
def disk_reserve(folder: str | None) -> Iterator[None]:
    """Keep a file of RESERVED_BYTES in a run's folder, and remove it if the block fails.

    So a step that fails because the disk is full still has room to write status.json. If the block
    succeeds, the file stays for the next step; after the last one, `free_reserve` removes it.
    `folder`: the run's folder on this machine; None, for a remote storage, does nothing.
    """
    if folder is None:
        yield
        return
    path = Path(folder, RESERVE)
    if not path.exists():
        # On a disk that is nearly full, the file has only as many bytes as fit.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(RESERVED_BYTES))
    try:
        yield
    except BaseException:
        free_reserve(folder)
        raise


def free_reserve(folder: str) -> None:
    """Remove the file of `disk_reserve` from a run's folder, if it exists."""
    Path(folder, RESERVE).unlink(missing_ok=True)


def write_failure(run: Run, name: str, error: Exception, job_id: str = "") -> None:
    """Write into status.json why a step failed, and whether another attempt may succeed."""
    reason = str(error) if isinstance(error, JecError) else f"{type(error).__name__}: {error}"
    write_status(run, name, "failed", reason, job_id=job_id, retryable=is_retryable(error))


def write_status(
    run: Run, step: str, state: str, reason: str = "", *, job_id: str = "", retryable: bool = True
) -> None:
    """Write a step's state, time and reason into status.json, and count its attempts."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    steps = read_status(run.uri).steps
    before = steps.get(step)
    attempts = before.attempts if before and before.job_id == job_id else 0
    if state == "running":
        attempts += 1
    entry = StepStatus(
        state=state,
        reason=reason,
        time=now,
        job_id=job_id,
        retryable=retryable,
        attempts=attempts,
    )
    steps = {**steps, step: entry}
    record = StatusRecord(step=step, state=state, reason=reason, time=now, steps=steps)
    record.save(run.folder.status)


def read_status(uri: str) -> StatusRecord:
    """Return the status.json of a run's folder; an empty record if there is none."""
    return StatusRecord.find_readable(RunFolder(uri).status) or StatusRecord()


def use_endpoint(endpoint: str) -> None:
    """Set the S3 endpoint of this process and its children, unless it is 'auto'.

    TensorBoard reads it from S3_ENDPOINT. Raises InputError for an invalid URL, and for one with a
    login, which logs and Kubernetes objects would show.
    """
    if endpoint != AUTO:
        require_url("--s3-endpoint", endpoint)
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    check_endpoints()
    if "AWS_ENDPOINT_URL" in os.environ:
        os.environ.setdefault("S3_ENDPOINT", os.environ["AWS_ENDPOINT_URL"])
    # Newer boto3 sends checksums that older Ceph gateways refuse.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")


def user(config: RunConfig) -> str:
    """Return the owner of a run, as a label's value.

    'auto' is the login name on one machine, and on Kubeflow the namespace, which belongs to a user.
    So a run that a colleague clones in the UI gets the colleague's name.
    """
    if config.user != AUTO:
        return config.user
    if LOCAL_DIR in os.environ:
        with contextlib.suppress(OSError, KeyError):  # in a container the uid may have no name
            return label_value(getpass.getuser())
        return label_value("")
    inside = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
    return label_value(
        inside.read_text(encoding="utf-8")
        if config.namespace == AUTO and inside.exists()
        else config.namespace
    )


def backend(run: Run) -> Cluster:
    """Return the backend of this step: this machine or the pod's cluster."""
    if LOCAL_DIR in os.environ:
        from clusters.local import LocalCluster
        from serving import triton

        return LocalCluster(os.environ[LOCAL_DIR], servers=triton)
    from clusters.kubernetes import KubernetesCluster
    from clusters.owner import workflow_of_this_pod

    namespace = None if run.config.namespace == AUTO else run.config.namespace
    return KubernetesCluster(namespace, owner=workflow_of_this_pod(say))


@contextlib.contextmanager
def remove_if_stopped(cluster: Cluster, remove: Callable[[str], None], name: str) -> Iterator[None]:
    """Remove an object on a cluster, by `remove(name)`, if the block is stopped or gives up.

    Otherwise it would keep its GPUs. A failed object stays for inspection. On one machine nothing
    continues to run, and an interrupted search resumes later. On Kubeflow a stopped pod is killed
    after half a second (observed with KFP 2.15.0 and Argo 3.7.3), and another attempt may continue
    with the object, so that the step `finish` removes it instead.
    """
    try:
        yield
    except DeadlineError:
        if not cluster.resumes:
            remove(name)
        raise
    except (InterruptedRun, KeyboardInterrupt):
        if not cluster.resumes and KFP_POD not in os.environ:
            remove(name)
        raise


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def say_result(line: str) -> None:
    """Print the step's result as its last line. On Kubeflow lines of the launcher follow it."""
    say(f"result: {line}")


def write_output(path: str, value: str) -> None:
    """Write a KFP output parameter to its file; nothing for an empty path, without KFP."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(value, encoding="utf-8")


class Artifacts:
    """KFP artifacts of a container component.

    Their content is written to their paths, their metadata to executor_output.json. That file has
    nothing else, because KFP's launcher prints it below the step's log and sets the other fields.
    """

    def __init__(self, executor_input: str) -> None:
        """Take KFP's executor input as JSON; empty outside of a pipeline."""
        self._outputs: dict[str, Any] = (
            json.loads(executor_input).get("outputs", {}) if executor_input else {}
        )
        self._artifacts: dict[str, Any] = {}

    def set(
        self, name: str, *, metadata: dict[str, Any] | None = None, content: str | None = None
    ) -> None:
        """Write the output artifact `name`. Without KFP (by hand) nothing happens."""
        for artifact in self._outputs.get("artifacts", {}).get(name, {}).get("artifacts", []):
            if content is not None:
                write_output(_local_path(artifact["uri"]), content)
            if metadata is not None:
                self._artifacts[name] = {"artifacts": [{"metadata": metadata}]}
        if self._outputs.get("outputFile") and self._artifacts:
            write_output(self._outputs["outputFile"], json.dumps({"artifacts": self._artifacts}))


def _local_path(uri: str) -> str:
    """Return the path at which KFP mounts an artifact's URI; a local run has plain paths."""
    for scheme, mount in (("minio://", "/minio/"), ("s3://", "/s3/"), ("gs://", "/gcs/")):
        if uri.startswith(scheme):
            return mount + uri[len(scheme) :]
    return uri


def stop_on_sigterm() -> None:
    """Let SIGTERM raise InterruptedRun, so that the step can clean up.

    Kubernetes sends it when a pod is deleted, and the local runner when it is stopped.
    """
    signal.signal(signal.SIGTERM, _stop)


def _stop(*_: Any) -> None:
    # ignore a second signal, which would interrupt the clean-up
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise InterruptedRun("stopped by a signal")
