"""Let uproot read distant files through our storage, in vectored reads and ahead of decoding.

Import it late, because it imports uproot.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from uproot.source.chunk import Chunk, Source
from uproot.source.futures import TrivialFuture

from common import storage
from weaver.read.remote import Ends, Parts, Range, join

THREADS = 4  # steps that are read at the same time


class StorageSource(Source):  # type: ignore[misc]
    """A file of our storage, with the interface of uproot's sources."""

    def __init__(self, file_path: str, **_: Any) -> None:
        """Open the file through our storage; read its start and its end."""
        super().__init__()
        self._file_path = file_path
        self._source = storage.open_source(file_path)
        self._num_bytes = self._source.size
        self._ends = Ends(self._source)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read")
        self._ahead: list[Future[Parts]] = []
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the source is closed."""
        return self._closed

    def __enter__(self) -> StorageSource:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the reading threads and close the file."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)
        self._source.close()

    def chunk(self, start: int, stop: int) -> Chunk:
        """Return the bytes start:stop, or up to the end of the file."""
        content = self._ends(start, stop - start)
        return Chunk(self, start, start + len(content), TrivialFuture(content))

    def chunks(self, ranges: list[Range], notifications: queue.Queue[Chunk]) -> list[Chunk]:
        """Return the bytes of all ranges, from an earlier `begin` or from one read now."""
        if not ranges:
            return []
        parts = self._take(ranges)
        if parts is None:
            parts = self._read(ranges)
        chunks = []
        for start, stop in ranges:
            chunk = Chunk(self, start, stop, TrivialFuture(parts(start, stop - start)))
            chunks.append(chunk)
            notifications.put(chunk)
        return chunks

    def begin(self, ranges: Sequence[Range]) -> None:
        """Start to read ranges in a thread, for one of the next calls of `chunks`."""
        self._ahead.append(self._pool.submit(self._read, ranges))

    def _read(self, ranges: Sequence[Range]) -> Parts:
        requests = join(ranges)
        return Parts(requests, self._source.read_ranges(requests))

    def _take(self, ranges: Sequence[Range]) -> Parts | None:
        """Take the result of the oldest `begin`; None if it does not contain all these ranges."""
        if not self._ahead:
            return None
        parts = self._ahead.pop(0).result()
        try:
            for start, stop in ranges:
                parts(start, stop - start)
        except KeyError:
            return None
        return parts
