"""Test the storage of runs with a small file: write, read, list and remove it.

The test uses the credentials that the run's pods will have, if they can be read from here.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from clusters.manifests import CREDENTIALS
from common import storage
from common.config import AUTO, RunConfig
from common.errors import InputError, JecError, StorageError
from operations.table import Line, error, not_seen, ok

if TYPE_CHECKING:
    from clusters.survey import SecretKeys

PROBE = ".check"


def check_storage(config: RunConfig, *, on_kubeflow: bool) -> Iterator[Line]:
    """Yield lines on the storage.

    A directory is tested as the current user. S3 is tested with the Secret's keys if the run is on
    Kubeflow and they can be read, else with our own keys.
    """
    if not storage.is_s3(config.s3_bucket):
        if on_kubeflow:
            yield error(
                "storage",
                f"--s3-bucket {config.s3_bucket}: pods cannot reach a directory of this machine",
                "give s3://bucket/prefix",
            )
        else:
            yield try_storage(storage.absolute(config.s3_bucket), "this account")
        return
    if on_kubeflow:
        try:
            keys = pods_keys(config)
        except InputError as problem:
            yield not_seen("storage as the pods", str(problem), "the line below is of our own keys")
        else:
            with credentials(keys):
                yield try_storage(config.s3_bucket, f"Secret {config.s3_secret}")
            return
    yield try_storage(config.s3_bucket, "our own credentials")


def try_storage(place: str, whose: str) -> Line:
    """Write, read, list and remove one small file with the credentials of this process.

    `whose` names the credentials in the line. A failure is an error line, not an exception.
    """
    uri = storage.join(place, f"{PROBE}-{uuid.uuid4().hex[:12]}")
    content = uuid.uuid4().bytes
    endpoint = ""
    if storage.is_s3(place) and "AWS_ENDPOINT_URL" in os.environ:
        endpoint = f" at {os.environ['AWS_ENDPOINT_URL']}"
    try:
        storage.write_bytes(uri, content)
        if storage.read_bytes(uri) != content:
            raise StorageError(f"{uri} was read back with other content than was written")
        if [entry.uri for entry in storage.entries(uri)] != [uri]:
            raise StorageError(f"{uri} was written and is not listed")
        storage.delete(uri)
    except (InputError, StorageError, OSError) as problem:
        reason, cure = str(problem), ""
        # common.storage uses these words for the two mistakes that a user can correct.
        if "no bucket" in reason:
            cure = "create the bucket, or correct --s3-bucket or --s3-endpoint"
        elif "refused access" in reason:
            cure = "check the keys and the bucket's policy"
        return error("storage", f"{place}{endpoint} as {whose}: {reason}", cure)
    return ok("storage", f"{place}{endpoint}: written, listed, read and removed as {whose}")


def pods_keys(config: RunConfig) -> Mapping[str, str]:
    """Return the AWS variables that the pods will have: the Secret's keys and the endpoint.

    Raises InputError with the reason if they cannot be read from here.
    """
    values = secret_of(config, config.s3_secret).values
    if missing := [key for key in CREDENTIALS if not values.get(key)]:
        raise InputError(f"Secret {config.s3_secret} has no {' and no '.join(missing)}; add them")

    keys = {key: values[key] for key in CREDENTIALS}
    if config.s3_endpoint != AUTO:
        keys["AWS_ENDPOINT_URL"] = config.s3_endpoint
    return keys


def secret_of(config: RunConfig, secret_name: str) -> SecretKeys:
    """Return a Secret of the run's namespace.

    Raises InputError with the reason if it cannot be read from here.
    """
    from clusters.api import NoCluster, connect, namespace_of
    from clusters.survey import Survey

    name = f"Secret {secret_name}"
    try:
        connection = connect()
        survey = Survey(connection, namespace_of(connection, config.namespace))
        secret = survey.secret(secret_name)
    except NoCluster as problem:
        raise InputError(f"{name}: {problem.short}") from None
    except JecError as problem:
        raise InputError(f"{name}: {problem}") from None
    if secret is None:
        raise InputError(survey.unseen.get(name, f"there is no {name}"))
    return secret


@contextlib.contextmanager
def credentials(values: Mapping[str, str]) -> Iterator[None]:
    """Use these AWS variables for all storage requests within the block."""
    # Our own session token or profile must not be combined with the Secret's keys.
    foreign = [name for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE") if name in os.environ]
    before = {name: os.environ.get(name) for name in (*values, *foreign)}
    for name in foreign:
        del os.environ[name]
    os.environ.update(values)
    storage.forget_client()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        storage.forget_client()
