"""Read and write files by address: `s3://bucket/key`, `root://server//path`, `https://...`, a path.

These functions call the module of the address's scheme. Every write is atomic, so that no reader
sees a partial file: a temporary name and a rename on disk and on XRootD, one PUT or a completed
multipart upload on S3. Web servers are read only.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import InputError
from common.storage import http, local, retries, s3, xrootd
from common.storage.addresses import (
    LOCAL,
    S3,
    XROOTD,
    absolute,
    is_local,
    is_s3,
    join,
    local_path,
    name,
    scheme_of,
    wildcard_at,
)
from common.storage.entry import Entry
from common.storage.s3 import forget_client
from common.storage.source import Source, SourceFile

__all__ = [
    "Entry",
    "Source",
    "absolute",
    "create",
    "delete",
    "digest",
    "download",
    "entries",
    "exists",
    "find_json",
    "find_object",
    "fingerprint",
    "forget_client",
    "glob",
    "is_local",
    "is_s3",
    "join",
    "name",
    "open_file",
    "open_source",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "upload",
    "write_bytes",
    "write_json",
    "write_text",
]


class Backend(Protocol):
    """The functions that each module of this package has for its schemes."""

    def open_source(self, uri: str, entry: Entry | None = None, /) -> Source: ...
    def exists(self, uri: str, /) -> bool: ...
    def entries(self, uri: str, /) -> list[Entry]: ...
    def glob(self, pattern: str, /) -> list[Entry]: ...
    def read_bytes(self, uri: str, /) -> bytes: ...
    def write_bytes(self, uri: str, content: bytes, /) -> None: ...
    def upload(self, source: str, uri: str, /) -> None: ...
    def download(self, uri: str, target: str, /) -> None: ...
    def delete(self, uri: str, /) -> int: ...


def _backend(uri: str) -> tuple[Backend, str]:
    """Return the module for an address, and the address in that module's form.

    Raises InputError for an unknown scheme.
    """
    scheme = scheme_of(uri)
    if scheme == LOCAL:
        return local, os.path.expanduser(local_path(uri))
    if scheme == S3:
        return s3, uri
    # The client takes root://server/path for a relative path, which servers refuse.
    return (xrootd, absolute(uri)) if scheme in XROOTD else (http, uri)


def exists(uri: str) -> bool:
    """Return True if a file, or anything below the folder, of that URI exists."""
    backend, uri = _backend(uri)
    return backend.exists(uri)


def open_source(uri: str, entry: Entry | None = None) -> Source:
    """Open a file for reading parts of it. Raises InputError if it does not exist.

    entry: the file's entry in a listing. It can save the request for size and tag, and the file is
    refused if it has changed since the listing.
    """
    backend, uri = _backend(uri)
    return backend.open_source(uri, entry)


def open_file(uri: str) -> io.BufferedReader:
    """Return the file as a seekable binary file object. Raises InputError where there is none."""
    return io.BufferedReader(SourceFile(open_source(uri)), 2**18)


def read_bytes(uri: str) -> bytes:
    """Return the content of one file. Raises InputError where there is none."""
    backend, uri = _backend(uri)
    return backend.read_bytes(uri)


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """Give up soon on servers that do not answer, within the block: `--check` has many to ask."""
    with retries.quick():
        forget_client()
        try:
            yield
        finally:
            forget_client()


def read_text(uri: str) -> str:
    """Return the content of one text file. Raises InputError where there is none, or no text."""
    try:
        return read_bytes(uri).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri} is not text in UTF-8: {error.reason}; give a text file") from None


def read_json(uri: str) -> Any:
    """Return the parsed JSON file. Raises InputError where it is missing or no JSON."""
    text = read_text(uri)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{uri} is not JSON: {error}; correct the file there") from None


def find_json(uri: str, default: Any = None) -> Any:
    """Return the parsed JSON file, or `default` where there is no such file.

    Raises InputError where it is no JSON.
    """
    return read_json(uri) if exists(uri) else default


def read_object(uri: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises InputError where it is missing, or is none."""
    content = read_json(uri)
    if not isinstance(content, dict):
        raise InputError(
            f"{uri} holds a {type(content).__name__}, not names with values; correct the file there"
        )
    return content


def find_object(uri: str) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one where there is no such file.

    Raises InputError where it is no JSON object.
    """
    return read_object(uri) if exists(uri) else {}


def write_bytes(uri: str, content: bytes) -> None:
    """Write one file atomically, making its folder where needed."""
    backend, uri = _backend(uri)
    backend.write_bytes(uri, content)


def create(uri: str, content: bytes) -> bool | None:
    """Write one file unless it exists: True if it was written, False if it exists.

    None if the storage does not support conditional writes; then nothing was written.
    """
    backend, uri = _backend(uri)
    if backend is local:
        return local.create(uri, content)
    return s3.create(uri, content) if backend is s3 else None


def write_text(uri: str, content: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(uri, content.encode("utf-8"))


def write_json(uri: str, content: Any) -> None:
    """Write one JSON file, indented, without NaN (which is no JSON)."""
    write_text(uri, json.dumps(content, indent=2, allow_nan=False) + "\n")


def entries(uri: str) -> list[Entry]:
    """Return all files below a folder, or the one file of that name, sorted by URI.

    Empty where nothing is there.
    """
    backend, uri = _backend(uri)
    return _sort(backend.entries(uri))


def glob(pattern: str) -> list[Entry]:
    """Return the files that match a pattern, sorted by URI.

    The pattern may hold `*`, `?` and `[...]`, none of which crosses a `/`. A folder stands for
    everything in it. Raises InputError for an address of an unknown scheme.
    """
    backend, address = _backend(pattern)
    if wildcard_at(pattern) is None:
        return entries(absolute(pattern))
    if backend is local:
        # Its glob expands `~`: the home may be called [x].
        if os.path.exists(address):
            return entries(absolute(pattern))
        return _sort(local.glob(local_path(pattern)))
    # perhaps the name of a file, as `a[1].root`; web servers have a[1] as a%5B1%5D
    has_brackets = "[" in pattern and backend is not http
    if has_brackets and (files_of_that_name := backend.entries(absolute(pattern))):
        return _sort(files_of_that_name)
    return _sort(backend.glob(address))


def _sort(files: Sequence[Entry]) -> list[Entry]:
    return sorted(files, key=lambda entry: entry.uri)


def upload(path: str | os.PathLike[str], uri: str) -> None:
    """Copy a local file, or a folder with everything in it, to a URI.

    A folder's files are written one by one, each atomically.
    """
    path = Path(path)
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            upload(file, join(uri, str(file.relative_to(path))))
        return
    backend, uri = _backend(uri)
    backend.upload(str(path), uri)


def download(uri: str, path: str | os.PathLike[str]) -> Path:
    """Copy a file, or a folder with everything in it, to a local path; returns it.

    Raises InputError where there is none.
    """
    uri = absolute(uri)
    files = entries(uri)
    if not files:
        raise InputError(f"there is nothing at {uri}")
    if [entry.uri for entry in files] == [uri]:
        _download_file(files[0], str(path))
        return Path(path)
    for entry in files:
        _download_file(entry, os.path.join(path, entry.uri[len(uri.rstrip("/")) + 1 :]))
    return Path(path)


def _download_file(entry: Entry, path: str) -> None:
    backend, uri = _backend(entry.uri)
    with local.replacing(path, entry.size) as temporary:
        backend.download(uri, temporary)


def delete(uri: str) -> int:
    """Remove a file or a folder with everything in it; returns how many files went."""
    backend, uri = _backend(uri)
    return backend.delete(uri)


def fingerprint(files: Sequence[Entry]) -> str:
    """Return SHA-256 over address, size and tag of each file.

    It stays the same as long as no file is added, removed or changed.
    """
    digest = hashlib.sha256()
    for entry in sorted(files, key=lambda entry: (entry.uri, entry.tree)):
        tree = f"\0{entry.tree}" if entry.tree else ""
        digest.update(f"{entry.uri}\0{entry.size}\0{entry.tag}{tree}\n".encode())
    return digest.hexdigest()


def digest(content: bytes) -> str:
    """Return the SHA-256 of some content, in hex."""
    return hashlib.sha256(content).hexdigest()
