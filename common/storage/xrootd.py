"""XRootD (root://server//path) with the `xrootd` client, which the extra 'xrootd' installs.

The client finds its credentials itself: an X509 proxy, a Kerberos ticket or a bearer token
(common/storage/xrootd_login.py). Its own XRD_* variables are honoured; without them it waits
seconds where its defaults are minutes, and the repetitions of common/storage/retries.py follow.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import io
import os
import posixpath
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from common.errors import AccessError, InputError, StorageError
from common.storage import vectors, xrootd_login
from common.storage.addresses import EXTRA, WILDCARDS, split_xrootd
from common.storage.entry import Entry
from common.storage.levels import Child, matching_files
from common.storage.local import PARTIAL
from common.storage.retries import PassingError, retry
from common.storage.source import Source
from common.storage.vectors import Range

SECONDS = 60  # limit of one request, unless XRD_REQUESTTIMEOUT is set
DEFAULTS = {
    # seconds for one attempt to connect, and number of attempts; a dead server costs the product
    "ConnectionWindow": 5,
    "ConnectionRetry": 1,
    "RequestTimeout": SECONDS,
    "StreamTimeout": 30,
    # seconds after a failure in which the client sends no new request to the server
    "StreamErrorWindow": 1,
}
CHUNK = 8 * 2**20  # bytes of one request that copies a file

# XrdCl's codes (XrdClStatus.hh)
INVALID_ADDRESS, NOT_SUPPORTED = 101, 13
CONNECTION_LOST = frozenset((16, *range(102, 110), 206, 207, 301, 302, 303, 306))
"""Sockets, timeouts and redirects: failures of the connection, which may be temporary."""
LOGIN_FAILED = frozenset((110, 202, 203, 204))
# the server's own numbers (XProtocol.hh), beside XrdCl's code 400
SERVER_ERROR = 400
NOT_FOUND, NOT_AUTHORIZED, NOT_A_FILE = 3011, (3010, 3030), (3015, 3016)
NOT_A_FOLDER = "not a directory"  # the server has no number of its own for it
FAILED_THERE = frozenset((3007, 3012, 3014, 3024, 3029, 3034, 3035))
"""I/O error, internal error, no server, overloaded, no replicas, timeouts."""


@functools.cache
def _library() -> Any:
    """Return the client's module. Raises InputError where it is not installed."""
    try:
        client: Any = importlib.import_module("XRootD.client")
    except ImportError:
        raise InputError(f"root:// takes the XRootD client; type: {EXTRA}") from None
    _suppress_warnings_at_exit()
    for name, value in DEFAULTS.items():
        if f"XRD_{name.upper()}" not in os.environ:
            client.EnvPutInt(name, value)
    return client


def _suppress_warnings_at_exit() -> None:
    """Suppress warnings while the client closes its open files at the exit of Python.

    To find them, its exit handler inspects every object of the process, and some objects of torch
    emit a deprecation warning when they are inspected.
    """
    finalize: Any = importlib.import_module("XRootD.client.finalize").finalize

    def quietly() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            finalize()

    atexit.unregister(finalize)
    atexit.register(quietly)


def _flags() -> Any:
    return importlib.import_module("XRootD.client.flags")


def _file_system(uri: str) -> tuple[Any, str]:
    """Return the client of the address's server, and the path on it."""
    xrootd_login.prepare()
    server, path = split_xrootd(uri)
    return _library().FileSystem(server), path


def check(status: Any, uri: str, file: Any = None) -> None:
    """Raise the error that a status stands for.

    file: the client's open file, which knows the server that it was redirected to. Raises
    InputError if the file is missing or the address wrong, AccessError if access is refused,
    PassingError if a retry may succeed, and StorageError for other failures.
    """
    if status.ok:
        return
    server, path = split_xrootd(uri)
    data_server = file.get_property("DataServer") if file is not None else ""
    redirect_text = (
        "" if not data_server or server.endswith(data_server) else f" (redirected to {data_server})"
    )
    reason = status.message.strip().removeprefix("[ERROR] ").removeprefix("[FATAL] ")
    reason = reason.removeprefix("Server responded with an error: ")
    if status.code == SERVER_ERROR and status.errno == NOT_FOUND:
        raise InputError(f"there is no file {uri}; correct the address")
    if status.code == SERVER_ERROR and NOT_A_FOLDER in status.message:
        raise InputError(
            f"{uri}: its parent on {server} is a file, not a folder; correct the address"
        )
    if status.code == SERVER_ERROR and status.errno in NOT_A_FILE:
        raise InputError(f"{uri} is a folder; name a file in it")
    is_refused = status.code == SERVER_ERROR and status.errno in NOT_AUTHORIZED
    if is_refused or status.code in LOGIN_FAILED:
        raise AccessError(f"{server} refused access to {path} ({reason}). {xrootd_login.state()}")
    if status.code == INVALID_ADDRESS:
        raise InputError(
            f"there is no server {server} ({reason}); correct its name, or check this machine's"
            " network"
        )
    if status.code in CONNECTION_LOST or (
        status.code == SERVER_ERROR and status.errno in FAILED_THERE
    ):
        raise PassingError(f"cannot reach {uri}{redirect_text}: {reason}")
    raise StorageError(f"{server} failed for {path}: {reason}")


class XRootDSource(Source):
    """A file on XRootD, opened anew where its server is lost."""

    def __init__(self, uri: str, entry: Entry | None = None) -> None:
        """Open the file. Raises StorageError, also for another size than was listed; InputError."""
        self.uri = uri
        self._lock = threading.Lock()
        self._file: Any = None
        self._modification_time: int | None = None
        retry(self.file)
        # Not the date: that of a data server may differ from that of the server that lists.
        if entry is not None and entry.size != self.size:
            self.close()
            raise self._changed_error()

    def file(self) -> Any:
        """Return the open file of the client. Raises PassingError where it cannot be opened now."""
        with self._lock:
            if self._file is None:
                self._file = self._open()
            return self._file

    def _open(self) -> Any:
        xrootd_login.prepare()
        file = _library().File()
        status, _ = file.open(self.uri, _flags().OpenFlags.READ, timeout=SECONDS)
        check(status, self.uri, file)
        status, info = file.stat(timeout=SECONDS)
        check(status, self.uri, file)
        if self._modification_time is None:
            self.size = int(info.size)
            self._modification_time = info.modtime
        elif (info.size, info.modtime) != (self.size, self._modification_time):
            raise self._changed_error()
        return file

    def _changed_error(self) -> StorageError:
        """Return the error for a file that was replaced since it was listed or opened."""
        return StorageError(f"{self.uri} has changed while it was read; start again")

    def forget(self, file: Any) -> None:
        """Have the file opened again, because its connection failed."""
        with self._lock:
            if self._file is file:
                self._file = None
        # Closing fails as well if the server is lost; its status is ignored.
        file.close(timeout=1)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop. Raises StorageError, InputError."""
        if stop <= start:  # a size of 0 would be the whole file
            return b""
        content = self._request(lambda file: file.read(start, stop - start, timeout=SECONDS))
        return self.check(bytes(content), start, stop)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return the bytes of several ranges, in vectored reads."""
        return vectors.read_in_pieces(ranges, vectors.in_vectors, self._read_vector)

    def _read_vector(self, pieces: list[Range]) -> list[bytes]:
        """Return one vectored read."""
        if len(pieces) == 1:
            return [self.read(*pieces[0])]
        chunks = [(start, stop - start) for start, stop in pieces]
        try:
            answer = self._request(lambda file: file.vector_read(chunks, timeout=SECONDS))
        except PassingError:
            raise
        except StorageError:  # a server that takes no vectors, or only smaller ones
            return [self.read(*piece) for piece in pieces]
        return [
            self.check(bytes(chunk.buffer), *piece)
            for chunk, piece in zip(answer.chunks, pieces, strict=True)
        ]

    def _request(self, request: Callable[[Any], Any]) -> Any:
        """Return the answer to one request (an open file -> status, answer), which is repeated."""

        def attempt() -> Any:
            file = self.file()
            status, answer = request(file)
            try:
                check(status, self.uri, file)
            except PassingError:
                self.forget(file)
                raise
            return answer

        return retry(attempt)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.close(timeout=SECONDS)


def open_source(uri: str, entry: Entry | None = None) -> Source:
    """Open a file for reading parts of it."""
    return XRootDSource(uri, entry)


def exists(uri: str) -> bool:
    """Return whether there is a file or folder of this path."""
    return _stat(uri) is not None


def read_bytes(uri: str) -> bytes:
    """Return a whole file. Raises StorageError, InputError."""
    with XRootDSource(uri) as source:
        return source.read(0, source.size)


def entries(uri: str) -> list[Entry]:
    """Return the files below a folder, or the one file of that name."""
    info = _stat(uri)
    if info is None:
        return []
    if not _is_folder(info):
        return [_entry(uri, info)]
    files: list[Entry] = []
    for child in _children(uri):
        if child.is_folder:
            files += entries(child.uri)
        elif child.entry and not child.name.startswith(PARTIAL):
            files.append(child.entry)
    return files


def glob(pattern: str) -> list[Entry]:
    """Return the files that match."""
    server, path = split_xrootd(pattern)
    files = matching_files(f"{server}/", path, WILDCARDS, _children)
    return [file.entry for file in files if file.entry]


def _children(folder: str) -> list[Child]:
    """Return the files and folders in a folder; empty if there is no such folder."""

    def request() -> list[Child]:
        client, path = _file_system(folder)
        status, items = client.dirlist(path, _flags().DirListFlags.STAT, timeout=SECONDS)
        if status.code == SERVER_ERROR and status.errno == NOT_FOUND:
            return []
        check(status, folder)
        children = []
        for item in items:
            uri = f"{folder}/{item.name}"
            # Servers give a name without a status where the file is gone meanwhile.
            info = item.statinfo or _stat(uri)
            if info is not None:
                children.append(
                    Child(
                        name=item.name,
                        uri=uri,
                        is_folder=_is_folder(info),
                        entry=None if _is_folder(info) else _entry(uri, info),
                    )
                )
        return children

    return retry(request)


def _stat(uri: str) -> Any:
    """Return the client's status of a file or folder; None where there is neither."""

    def request() -> Any:
        client, path = _file_system(uri)
        status, info = client.stat(path, timeout=SECONDS)
        # NOT_A_FOLDER: something below what is a file
        is_missing = status.errno == NOT_FOUND or NOT_A_FOLDER in status.message
        if status.code == SERVER_ERROR and is_missing:
            return None
        check(status, uri)
        return info

    return retry(request)


def _is_folder(info: Any) -> bool:
    return bool(info.flags & _flags().StatInfoFlags.IS_DIR)


def _entry(uri: str, info: Any) -> Entry:
    return Entry(uri=uri, size=int(info.size), tag=str(info.modtime))


def write_bytes(uri: str, content: bytes) -> None:
    """Write a file, whole or not at all."""
    retry(lambda: _write(uri, io.BytesIO(content)))


def upload(path: str, uri: str) -> None:
    """Copy one local file to the server, atomically."""
    with open(path, "rb") as file:
        retry(lambda: _write(uri, file))


def _write(uri: str, source: BinaryIO) -> None:
    """Write a file's content; after a failure it is written again from its start."""
    source.seek(0)
    start = 0
    with _replacing(uri) as write:
        while content := source.read(CHUNK):
            write(content, start)
            start += len(content)


@contextlib.contextmanager
def _replacing(uri: str) -> Iterator[Any]:
    """Yield a function (content, first byte) that writes `uri`, atomically if the block succeeds.

    It is written under another name in the same folder.
    """
    client, path = _file_system(uri)
    flags = _flags()
    folder, name = posixpath.split(path)
    temporary = posixpath.join(folder, f"{PARTIAL}{name}-{uuid.uuid4().hex[:8]}")
    address = f"{split_xrootd(uri)[0]}/{temporary}"
    mode = flags.AccessMode
    # xrootd's defaults would hide results from colleagues
    readable = mode.UR | mode.UW | mode.GR | mode.OR

    file = _library().File()
    status, _ = file.open(address, flags.OpenFlags.NEW, readable, timeout=SECONDS)
    if status.code == SERVER_ERROR and status.errno == NOT_FOUND:
        # Left to the server (MAKEPATH of open), folders get a file's mode: none may enter.
        enterable = readable | mode.UX | mode.GX | mode.OX
        mkdir_status, _ = client.mkdir(
            folder, flags.MkDirFlags.MAKEPATH, enterable, timeout=SECONDS
        )
        check(mkdir_status, uri)
        status, _ = file.open(address, flags.OpenFlags.NEW, readable, timeout=SECONDS)
    check(status, uri, file)

    def write(content: bytes, start: int) -> None:
        status, _ = file.write(content, start, len(content), timeout=SECONDS)
        check(status, uri)

    try:
        try:
            yield write
        finally:
            status, _ = file.close(timeout=SECONDS)
        check(status, uri)
        check(client.mv(temporary, path, timeout=SECONDS)[0], uri)
    except BaseException:
        client.rm(temporary, timeout=5)
        raise


def download(uri: str, target: str) -> None:
    """Copy one file to a local path."""
    with XRootDSource(uri) as source, open(target, "wb") as file:
        for start in range(0, source.size, CHUNK):
            file.write(source.read(start, min(start + CHUNK, source.size)))


def delete(uri: str) -> int:
    """Remove a file or a folder with everything in it; returns how many files went."""
    info = _stat(uri)
    if info is None:
        return 0
    client, path = _file_system(uri)
    is_folder = _is_folder(info)
    count = sum(delete(child.uri) for child in _children(uri)) if is_folder else 1
    remove = client.rmdir if is_folder else client.rm

    def request() -> None:
        status, _ = remove(path, timeout=SECONDS)
        # it may have been removed by a request whose answer was lost
        if not (status.code == SERVER_ERROR and status.errno == NOT_FOUND):
            check(status, uri)

    retry(request)
    return count
