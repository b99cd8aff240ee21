"""S3 with boto3. The endpoint comes from AWS_ENDPOINT_URL, credentials from the usual variables."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from common.errors import AccessError, InputError, NoCredentials, StorageError
from common.storage import http, space
from common.storage.addresses import (
    BUCKET_NAME,
    check_endpoints,
    matches,
    split_s3,
    wildcard_at,
)
from common.storage.entry import Entry
from common.storage.retries import PassingError, retry, s3_attempts
from common.storage.source import REQUESTS, Source

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig

# bytes a part of a multipart transfer: large enough that the part count stays far below S3's 10,000
PART = 16 * 2**20
ACCESS_DENIED = (
    *("AccessDenied", "403", "401", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"),
    "RequestExpired",
)
"""S3's error codes for keys, tokens and rights that give no access, or no longer."""


class S3Source(Source):
    """An object of S3.

    Ranges are read from an address that boto3 has signed once, because a request by boto3 takes
    2 ms of CPU time. If that fails, boto3 reads the rest: it retries, renews its keys, finds a
    bucket's region, and reports errors with their reason.
    """

    def __init__(self, uri: str, entry: Entry | None = None) -> None:
        """Ask for the size and the ETag, unless a listing had them."""
        self.uri = uri
        self._signed: str | None = ""
        """The address; empty before the first range, None once boto3 reads."""
        self._bucket, self._key = split_s3(uri)
        if entry is not None:
            self.size, self._tag = entry.size, f'"{entry.tag}"'
            return
        with translate_errors(uri):
            head = client().head_object(Bucket=self._bucket, Key=self._key)
        self.size = head["ContentLength"]
        # Its bytes are of one version of the object: another is refused (PreconditionFailed).
        self._tag = head["ETag"]

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop. Raises StorageError, InputError."""
        if stop <= start:  # HTTP knows no empty range
            return b""
        content = self._read_signed(start, stop)
        if content is None:
            content = retry(
                lambda: _get(self.uri, Range=f"bytes={start}-{stop - 1}", IfMatch=self._tag)
            )
        return self.check(content, start, stop)

    def _read_signed(self, start: int, stop: int) -> bytes | None:
        """Return the bytes start:stop from the signed address, in one attempt.

        None where they fail.
        """
        from botocore.exceptions import BotoCoreError, ClientError

        if self._signed is None:
            return None
        try:
            if not self._signed:
                parameters = {"Bucket": self._bucket, "Key": self._key}
                self._signed = str(signer().generate_presigned_url("get_object", parameters))
            content = http.range_of(self._signed, start, stop, {"If-Match": self._tag}, _verify())
        # ValueError: of an address that is none
        except (BotoCoreError, ClientError, ValueError):
            content = None
        if content is None:
            self._signed = None
        return content


def _get(uri: str, **options: str) -> bytes:
    """Return the body of one GET.

    Raises PassingError if the connection is lost while it is read.
    """
    bucket, key = split_s3(uri)
    with translate_errors(uri):
        body = client().get_object(Bucket=bucket, Key=key, **options)["Body"]
    with translate_errors(uri, PassingError), contextlib.closing(body):
        content: bytes = body.read()
    return content


def open_source(uri: str, entry: Entry | None = None) -> Source:
    """Open an object for reading parts of it."""
    return S3Source(uri, entry)


def exists(uri: str) -> bool:
    """Return whether there is an object of this key, or one below it."""
    bucket, key = split_s3(uri)
    with translate_errors(uri):
        answer = client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=10)
    keys = [item["Key"] for item in answer.get("Contents", [])]
    return any(_is_below(each_key, key) for each_key in keys)


def read_bytes(uri: str) -> bytes:
    """Return a whole object. Raises StorageError, InputError."""
    return retry(lambda: _get(uri))


def write_bytes(uri: str, content: bytes) -> None:
    """Write an object."""
    bucket, key = split_s3(uri)
    with translate_errors(uri):
        client().put_object(Bucket=bucket, Key=key, Body=content)


def create(uri: str, content: bytes) -> bool | None:
    """Write an object unless it exists; None where the endpoint makes no conditional writes."""
    import botocore.exceptions as aws

    bucket, key = split_s3(uri)
    with translate_errors(uri):
        try:
            client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except aws.ParamValidationError:  # a boto3 that is older than the condition
            return None
        except aws.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (409, 412):  # another write is under way, or has been
                return False
            if status in (400, 501):  # Ceph before Tentacle, MinIO before 2024
                return None
            raise
    return True


def entries(uri: str) -> list[Entry]:
    """Return the objects of that name, or below the folder of that name."""
    _, key = split_s3(uri)
    return [entry for entry in listing(uri) if _is_below(split_s3(entry.uri)[1], key)]


def listing(prefix: str) -> Iterator[Entry]:
    """Yield the objects whose addresses begin with `prefix`."""
    bucket, key = split_s3(prefix)
    with translate_errors(prefix):
        pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        for page in pages:
            for item in page.get("Contents", []):
                yield Entry(
                    uri=f"s3://{bucket}/{item['Key']}",
                    size=item["Size"],
                    tag=item["ETag"].strip('"'),
                )


def glob(pattern: str) -> list[Entry]:
    """Return the objects that match; only what begins with the text before the wildcard is listed.

    Raises:
        InputError: the bucket's name has a wildcard.
    """
    prefix = pattern[: wildcard_at(pattern)]
    if "/" not in prefix.removeprefix("s3://"):
        raise InputError(f"'{pattern}': name the bucket without wildcards")
    return [entry for entry in listing(prefix) if matches(entry.uri, pattern)]


def _is_below(key: str, folder: str) -> bool:
    return not folder or key == folder or key.startswith(folder.rstrip("/") + "/")


def upload(path: str, uri: str) -> None:
    """Copy one local file to S3, atomically."""
    bucket, key = split_s3(uri)
    with translate_errors(uri):
        from boto3.exceptions import S3UploadFailedError

        try:
            client().upload_file(path, bucket, key, Config=_transfer())
        except S3UploadFailedError as error:
            # boto3 hides the server's answer in an error of its own, which is of no AWS kind
            raise (error.__context__ or error) from None


def download(uri: str, target: str) -> None:
    """Copy one object to a local path. A body that is cut is fetched again by boto3, then by us."""
    bucket, key = split_s3(uri)

    def fetch() -> None:
        with translate_errors(uri, PassingError):
            client().download_file(bucket, key, target, Config=_transfer())

    retry(fetch)


def delete(uri: str) -> int:
    """Remove an object, or everything below a folder; returns the number of objects."""
    objects = entries(uri)
    with translate_errors(uri):
        for entry in objects:
            bucket, key = split_s3(entry.uri)
            client().delete_object(Bucket=bucket, Key=key)
    return len(objects)


@functools.cache
def client() -> Any:
    """Return the S3 client, which is made once for each endpoint."""
    return _client()


@functools.cache
def signer() -> Any:
    """Return a client that signs addresses as all regions and servers take it."""
    return _client(signature_version="s3v4")


def _verify() -> str | bool:
    """Return the certificates that boto3 trusts, as for requests: a file, or True for the usual."""
    return os.environ.get("AWS_CA_BUNDLE") or True


@functools.cache
def _session() -> Any:
    """Return the session, which keeps the keys; boto3's default one could not be forgotten."""
    import boto3

    return boto3.Session()


def _client(**settings: str) -> Any:
    from botocore.config import Config

    check_endpoints()
    # Newer boto3 adds checksums that older Ceph gateways refuse. Throttling, 5xx and lost
    # connections are tried again after a random pause of up to 1, 2, 4 ... 20 s, for about a minute
    # in all. (Mode "adaptive" would slow down what comes after, too.)
    config = Config(
        retries={"mode": "standard", "total_max_attempts": s3_attempts()},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=2 * REQUESTS,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **settings,
    )
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or "us-east-1"
    try:
        return _session().client("s3", config=config, region_name=region)
    except ValueError as error:  # of the address of the server
        raise InputError(f"AWS_ENDPOINT_URL: {error}; write https://server") from None


def forget_client() -> None:
    """Have the next request read the AWS variables again."""
    client.cache_clear()
    signer.cache_clear()
    _session.cache_clear()


def _transfer() -> TransferConfig:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=2 * PART, multipart_chunksize=PART)


@contextlib.contextmanager
def translate_errors(
    uri: str, connection_error: type[StorageError] = StorageError
) -> Iterator[None]:
    """Turn botocore's errors in the block into ours.

    Raises InputError for what is missing or misspelt, AccessError for a refusal, `connection_error`
    for a lost connection, and StorageError otherwise.
    """
    try:
        import boto3.exceptions
        import botocore.exceptions as aws
    except ImportError:
        raise InputError(f"reading {uri} takes boto3; type: pip install boto3") from None

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    try:
        yield
    except (aws.NoCredentialsError, aws.PartialCredentialsError):
        raise NoCredentials(
            f"no S3 credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except aws.ProfileNotFound as error:
        raise InputError(
            f"AWS_PROFILE: {error}; name a profile of ~/.aws/config, or unset AWS_PROFILE"
        ) from None
    except aws.ParamValidationError:
        bucket, key = split_s3(uri)
        problem = f"'{bucket}' is not {BUCKET_NAME}" if key else "it has no path after the bucket"
        raise InputError(f"'{uri}': {problem}; write s3://bucket/path") from None
    except aws.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchKey", "404"):
            raise InputError(
                f"there is no file {uri} (endpoint {endpoint}); correct the address, or the"
                " endpoint (AWS_ENDPOINT_URL)"
            ) from None
        if code in ("PreconditionFailed", "412"):
            raise StorageError(f"{uri} has changed while it was read; start again") from None
        if code == "NoSuchBucket":
            bucket = split_s3(uri)[0]
            raise InputError(
                f"there is no bucket '{bucket}' at {endpoint}; create it, or correct its name or"
                " the endpoint (AWS_ENDPOINT_URL)"
            ) from None
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ACCESS_DENIED or status in (401, 403):
            raise AccessError(
                f"{endpoint} refused access to {uri} ({code}); renew the keys or the token"
                " (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN), or have the rights"
                " on the bucket corrected, and repeat the command"
            ) from None
        raise StorageError(f"{endpoint} answered {code} for {uri}: {error}") from None
    except (aws.BotoCoreError, OSError, boto3.exceptions.RetriesExceededError) as error:
        if isinstance(error, OSError) and error.errno in space.FULL:
            raise  # it is about the target of a copy, which its writer reports
        raise connection_error(f"cannot reach {uri} at {endpoint}: {error}") from None
