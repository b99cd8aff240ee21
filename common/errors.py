"""The exception tree of the project.

    JecError                     reported as one clear sentence, without a traceback (exit code 1)
    ├── InputError               refused before work starts: the input cannot be used (exit code 2)
    │   ├── DamagedFile          a data file cannot be read to its end      (weaver.read.opening)
    │   ├── DamagedCheckpoint    a .pt file is not as it was written  (weaver.fit.checkpoint)
    │   ├── MissingFile          a web server has no such file        (common.storage.http)
    │   ├── WebPage              a web page came in place of data     (common.storage.http)
    │   ├── NoCredentials        no keys are set for S3                (common.storage.s3)
    │   ├── AuthError            no valid login for Kubeflow                (operations.auth)
    │   └── NoCluster            no Kubernetes cluster is configured        (clusters.api)
    ├── StorageError             a read or write in the storage failed
    │   ├── AccessError          ... because it refuses access
    │   ├── FullDiskError        ... because a disk is full, or a quota used up
    │   └── PassingError         ... for a reason that may pass       (common.storage.retries)
    ├── ClusterError             a job, an experiment or a service did not end well
    │   ├── DeadlineError        ... within its deadline
    │   ├── NoNodeError          no node takes a service's pods  (clusters.kubernetes_service)
    │   ├── UnreachableError     nobody answers at an address (yet)
    │   │   └── Unreachable      ... of a model server                      (serving.client)
    │   ├── NotServing           a model server answers, but not for this model  (serving.client)
    │   ├── ServerEnded          a model server ended before it was ready        (serving.triton)
    │   ├── PortInUse            another process has the port that was asked for (serving.triton)
    │   └── ModelError           a model server or its model failed         (serving.client)
    ├── TrainingError            training cannot go on and would fail again in the same way
    ├── ServerError              of jec_client, with Unreachable, NotServing and Refused; here
    │                            serving.client raises its own classes above, or InputError
    ├── GateError                a finished model did not pass a gate
    ├── StepError                a step of a local run ended with an error  (components.host_runner)
    └── InterruptedRun           stopped by the user or by the system (exit code 130)

JecError, InputError, ServerError and the functions that word errors are defined in
jec_client/errors.py, because the client is also installed without this project.

Exceptions outside the tree never reach a user: UnsupportedFile (weaver.read.root.root_tree: uproot
reads this file instead), _PortInUseError (serving.triton: another port is tried) and _FileError
(serving.calibration.work: it carries a file's JecError to the loop over files).
"""

from __future__ import annotations

from jec_client.errors import SIGNATURE, InputError, JecError, nearest, unknown, without_secrets

__all__ = [
    "SIGNATURE",
    "AccessError",
    "ClusterError",
    "DeadlineError",
    "FullDiskError",
    "GateError",
    "InputError",
    "InterruptedRun",
    "JecError",
    "NoCredentials",
    "StorageError",
    "TrainingError",
    "UnreachableError",
    "nearest",
    "unknown",
    "without_secrets",
]


FULL_DISK = 74
"""Exit code of a trial or job whose disk is full: EX_IOERR of sysexits.h."""
PASSING_FAILURE = 75
"""Exit code of a trial or job that failed for another reason that may pass: EX_TEMPFAIL."""


class NoCredentials(InputError):
    """No keys are set for S3. It says nothing about the file."""


class StorageError(JecError):
    """A read or write in the storage failed, in spite of the client's own retries."""

    retryable = True


class AccessError(StorageError):
    """A storage refuses access: rights, keys or a token, which somebody has to renew.

    It does not mean that the file is damaged. The text names what to renew; then the same command
    succeeds.
    """


class FullDiskError(StorageError):
    """A disk is full, or the user's quota on it is used up.

    The text names the folder, its free space and, if known, the space that is needed.
    """


class ClusterError(JecError):
    """A job, an experiment or a service failed.

    The text gives the reason, from its pods or processes.
    """


class DeadlineError(ClusterError):
    """A wait ended by its deadline; the text says what was waited for."""


class UnreachableError(ClusterError):
    """No server answers at that address (yet)."""

    retryable = True


class TrainingError(JecError):
    """Training failed for a reason that would recur.

    Examples are a non-finite loss, and an option that the network refuses.
    """


class GateError(JecError):
    """A finished model did not pass a gate (parity, resolution, closure)."""


class InterruptedRun(JecError):
    """The run was stopped by the user or the system."""

    exit_code = 130
