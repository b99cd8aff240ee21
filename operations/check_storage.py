"""The storage of runs: written, read, listed and cleared with a small file, by the credentials that
the run's pods will have.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

from clusters.manifests import CREDENTIALS
from common import storage
from common.config import AUTO, RunConfig
from common.errors import InputError, JecError, StorageError
from operations.table import Line, error, not_seen, ok

PROBE = ".check"


def check_storage(config: RunConfig, *, on_kubeflow: bool) -> Iterator[Line]:
    """Lines on the storage: on a directory as we are, on S3 with the Secret's keys where they can
    be read, else with our own.
    """
    if not storage.is_s3(config.s3_bucket):
        if on_kubeflow:
            yield error(
                "storage",
                f"--s3-bucket {config.s3_bucket}: pods cannot reach a directory of this machine",
                "give s3://bucket/prefix",
            )
        else:
            yield _tried(storage.absolute(config.s3_bucket), "this account")
        return
    keys, whose = _pods_keys(config) if on_kubeflow else ({}, "")
    if not keys:
        if on_kubeflow:
            yield not_seen("storage as the pods", whose, "the line below is of our own keys")
        yield _tried(config.s3_bucket, "our own credentials")
        return
    with credentials(keys):
        yield _tried(config.s3_bucket, whose)


def _tried(place: str, whose: str) -> Line:
    """Write, list, read and remove one small file."""
    uri, content = storage.join(place, f"{PROBE}-{uuid.uuid4().hex[:12]}"), uuid.uuid4().bytes
    endpoint = (
        f" at {os.environ['AWS_ENDPOINT_URL']}"
        if storage.is_s3(place) and "AWS_ENDPOINT_URL" in os.environ
        else ""
    )
    try:
        storage.write_bytes(uri, content)
        if storage.read_bytes(uri) != content:
            raise StorageError(f"{uri} came back with other content than was written")
        if [entry.uri for entry in storage.entries(uri)] != [uri]:
            raise StorageError(f"{uri} was written and is not listed")
        storage.delete(uri)
    except (InputError, StorageError, OSError) as problem:
        return error("storage", f"{place}{endpoint} as {whose}: {problem}", _cure(problem))
    return ok("storage", f"{place}{endpoint}: written, listed, read and removed as {whose}")


def _cure(problem: Exception) -> str:
    said = str(problem)
    if "no bucket" in said:
        return "make the bucket, or correct --s3-bucket or --s3-endpoint"
    return "check the keys and the bucket's policy" if "refused access" in said else ""


def _pods_keys(config: RunConfig) -> tuple[dict[str, str], str]:
    """The Secret's keys and the endpoint that the pods will have, and whose they are; none and why
    if they cannot be had.
    """
    from clusters.api import NoCluster, connect, namespace_of
    from clusters.survey import Survey

    try:
        connection = connect()
        survey = Survey(connection, namespace_of(connection, config.namespace))
        secret = survey.secret(config.s3_secret)
    except NoCluster as problem:
        return {}, f"Secret {config.s3_secret}: {problem.short}"
    except JecError as problem:
        return {}, f"Secret {config.s3_secret}: {problem}"
    if secret is None:
        return {}, survey.unseen.get(
            f"Secret {config.s3_secret}", f"there is no Secret {config.s3_secret}"
        )
    if missing := [key for key in CREDENTIALS if not secret.values.get(key)]:
        return {}, f"Secret {config.s3_secret} has no {' and no '.join(missing)}"
    keys = {key: secret.values[key] for key in CREDENTIALS}
    if config.s3_endpoint != AUTO:
        keys["AWS_ENDPOINT_URL"] = config.s3_endpoint
    return keys, f"Secret {config.s3_secret}"


@contextlib.contextmanager
def credentials(values: dict[str, str]) -> Iterator[None]:
    """Within it the storage is asked with these AWS variables."""
    cleared = [name for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE") if name in os.environ]
    before = {name: os.environ.get(name) for name in (*values, *cleared)}
    for name in cleared:
        del os.environ[name]
    os.environ.update(values)
    storage.forget_client()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        storage.forget_client()
