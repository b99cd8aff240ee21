"""Storage is a URI: `s3://bucket/prefix` or a directory. One module does both.

Every write is atomic: a temporary name and a rename on disk, one PUT or a completed multipart
upload on S3, so that nothing half-written is ever read. The endpoint of S3 comes from
AWS_ENDPOINT_URL, credentials from the usual AWS variables or files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError, StorageError

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig

# bytes a part of a multipart transfer: large enough that the part count stays far below S3's 10,000
PART = 16 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored file: its URI, its size in bytes, and a tag that changes with its content.

    The tag is S3's ETag, or the time of the last change in ns.
    """

    uri: str
    size: int
    tag: str
    written: str = ""
    """The path as the user's pattern has it, where that is known."""


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI with single slashes."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The URI without dependence on the working directory: a relative path made absolute."""
    return uri.rstrip("/") if is_s3(uri) else os.path.abspath(os.path.expanduser(uri))


def name(uri: str) -> str:
    return uri.rstrip("/").rsplit("/", 1)[-1]


def exists(uri: str) -> bool:
    """True if a file, or anything below the folder, of that URI exists."""
    if not is_s3(uri):
        return os.path.exists(uri)
    bucket, key = _split(uri)
    with _explained(uri):
        found = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=10).get("Contents", [])
    return any(
        item["Key"] == key or item["Key"].startswith(key.rstrip("/") + "/") for item in found
    )


def read_bytes(uri: str) -> bytes:
    """The content of one file. Raises InputError where there is none."""
    if is_s3(uri):
        bucket, key = _split(uri)
        with _explained(uri):
            content: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
            return content
    try:
        return Path(uri).read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"there is no file {uri}") from None


def read_text(uri: str) -> str:
    return read_bytes(uri).decode("utf-8")


def read_json(uri: str) -> Any:
    """The parsed JSON file. Raises InputError where it is missing or no JSON."""
    text = read_text(uri)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{uri} is not JSON: {error}") from None


def find_json(uri: str, default: Any = None) -> Any:
    """The parsed JSON file, or `default` where there is no such file.

    Raises InputError where it is no JSON.
    """
    return read_json(uri) if exists(uri) else default


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file atomically, making its folder where needed."""
    if is_s3(uri):
        bucket, key = _split(uri)
        with _explained(uri):
            _client().put_object(Bucket=bucket, Key=key, Body=content)
        return
    with _replacing(uri) as temporary:
        Path(temporary).write_bytes(content)


def write_text(uri: str, content: str) -> None:
    write_bytes(uri, content.encode("utf-8"))


def write_json(uri: str, content: Any) -> None:
    """Write one JSON file, indented, without NaN (which is no JSON)."""
    write_text(uri, json.dumps(content, indent=2, allow_nan=False) + "\n")


def entries(uri: str) -> list[Entry]:
    """All files below a folder, or the one file of that name, sorted by URI.

    Empty where nothing is there.
    """
    return sorted(
        _s3_entries(uri) if is_s3(uri) else _local_entries(uri), key=lambda entry: entry.uri
    )


def glob(pattern: str) -> list[Entry]:
    """Files that match a pattern, sorted by URI.

    The pattern may hold `*`, `?` and `[...]`, none of which crosses a `/`. A folder stands for
    everything in it. Raises InputError for an address that is neither s3:// nor a path.
    """
    if "://" in pattern and not is_s3(pattern):
        raise InputError(f"cannot read '{pattern}': give a path or an s3:// address")
    pattern = pattern if is_s3(pattern) else absolute(pattern)
    wild = next((i for i, char in enumerate(pattern) if char in "*?["), None)
    if wild is None:
        return entries(pattern)
    folder = pattern[: pattern.rindex("/", 0, wild)]
    return [entry for entry in entries(folder) if _matches(entry.uri, pattern)]


def upload(path: str | os.PathLike[str], uri: str) -> None:
    """Copy a local file, or a folder with everything in it, to a URI.

    A folder's files arrive one by one, each whole.
    """
    path = Path(path)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            upload(file, join(uri, str(file.relative_to(path))))
        return
    if is_s3(uri):
        bucket, key = _split(uri)
        with _explained(uri):
            _client().upload_file(str(path), bucket, key, Config=_transfer())
        return
    with _replacing(uri) as temporary:
        shutil.copyfile(path, temporary)


def download(uri: str, path: str | os.PathLike[str]) -> Path:
    """Copy a file, or a folder with everything in it, to a local path; returns it.

    Raises InputError where there is none.
    """
    found = entries(uri)
    if not found:
        raise InputError(f"there is nothing at {uri}")
    if [entry.uri for entry in found] == [uri]:
        _fetch(uri, str(path))
        return Path(path)
    for entry in found:
        _fetch(entry.uri, os.path.join(path, entry.uri[len(uri.rstrip("/")) + 1 :]))
    return Path(path)


def delete(uri: str) -> int:
    """Remove a file or a folder with everything in it; returns how many files went."""
    found = entries(uri)
    if is_s3(uri):
        with _explained(uri):
            for entry in found:
                bucket, key = _split(entry.uri)
                _client().delete_object(Bucket=bucket, Key=key)
    elif os.path.isdir(uri) and not os.path.islink(uri):
        shutil.rmtree(uri)
    elif found:
        os.remove(uri)
    return len(found)


def fingerprint(found: list[Entry]) -> str:
    """SHA-256 over address, size and tag of each file.

    It stays the same as long as no file is added, removed or changed.
    """
    digest = hashlib.sha256()
    for entry in sorted(found, key=lambda entry: entry.uri):
        digest.update(f"{entry.uri}\0{entry.size}\0{entry.tag}\n".encode())
    return digest.hexdigest()


def digest(content: bytes) -> str:
    """SHA-256 of some content, in hex."""
    return hashlib.sha256(content).hexdigest()


def s3_options() -> dict[str, str | None]:
    """Options for s3fs (as uproot passes them on) that agree with the client used here."""
    return {"endpoint_url": os.environ.get("AWS_ENDPOINT_URL") or None}


# ------------------------------------------------------------------------------------ one machine


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, which becomes `path` if the block ends well.

    If it does not, the temporary file is removed.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".partial-")
    os.close(handle)
    try:
        yield temporary
        # mkstemp's 0600 would hide results from colleagues on a shared disk
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _local_entries(path: str) -> Iterator[Entry]:
    files = (
        [path]
        if os.path.isfile(path)
        else [os.path.join(d, f) for d, _, names in os.walk(path) for f in names]
    )
    for file in files:
        if not os.path.basename(file).startswith(".partial-"):
            stat = os.stat(file)
            yield Entry(uri=file, size=stat.st_size, tag=str(stat.st_mtime_ns))


def _matches(uri: str, pattern: str) -> bool:
    parts, wanted = uri.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _fetch(uri: str, path: str) -> None:
    with _replacing(path) as temporary:
        if is_s3(uri):
            bucket, key = _split(uri)
            with _explained(uri):
                _client().download_file(bucket, key, temporary, Config=_transfer())
        else:
            shutil.copyfile(uri, temporary)


# --------------------------------------------------------------------------------------------- S3


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InputError(f"'{uri}' names no bucket; write s3://bucket/prefix")
    return bucket, key


@functools.cache
def _client() -> Any:
    import boto3
    from botocore.config import Config

    # Newer boto3 adds checksums that older Ceph gateways refuse. Throttling, 5xx and lost
    # connections are tried again after a random pause of up to 1, 2, 4 ... 20 s, for about a minute
    # in all. (Mode "adaptive" would slow down what comes after, too.)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 9},
        connect_timeout=10,
        read_timeout=60,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1"
    return boto3.client("s3", config=config, region_name=region)


def forget_client() -> None:
    """Have the next request read the AWS variables anew."""
    _client.cache_clear()


def _transfer() -> TransferConfig:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=2 * PART, multipart_chunksize=PART)


def _s3_entries(uri: str) -> Iterator[Entry]:
    bucket, key = _split(uri)
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    with _explained(uri):
        for page in pages:
            for item in page.get("Contents", []):
                if item["Key"] == key or not key or item["Key"].startswith(key.rstrip("/") + "/"):
                    yield Entry(
                        uri=f"s3://{bucket}/{item['Key']}",
                        size=item["Size"],
                        tag=item["ETag"].strip('"'),
                    )


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn botocore's errors into ours.

    What is missing or misspelt is an InputError, anything else a StorageError.
    """
    import botocore.exceptions as aws

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    try:
        yield
    except (aws.NoCredentialsError, aws.PartialCredentialsError):
        raise InputError(
            f"no S3 credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except aws.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchKey", "404"):
            raise InputError(f"there is no file {uri} (endpoint {endpoint})") from None
        if code == "NoSuchBucket":
            raise InputError(f"there is no bucket '{_split(uri)[0]}' at {endpoint}") from None
        if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            raise InputError(
                f"{endpoint} refused access to {uri} ({code}); check the S3 credentials"
            ) from None
        raise StorageError(f"{endpoint} answered {code} for {uri}: {error}") from None
    except (aws.BotoCoreError, OSError) as error:
        raise StorageError(f"cannot reach {uri} at {endpoint}: {error}") from None
