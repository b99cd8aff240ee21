"""Read parts of a distant file in threads, and decide which parts one request contains.

A request costs a round trip, and unused bytes cost as much as used ones. So the ranges of a step
are read in one vectored read, in which ranges with small gaps are joined, while earlier steps are
decoded.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from common import storage
from common.errors import JecError
from common.storage import Entry, Source

Range = tuple[int, int]
"""(first byte, last byte + 1)."""
Buffer = bytes | memoryview
Fetch = Callable[[int, int], Buffer]
"""(first byte, number of bytes) -> bytes of a file, fewer at its end."""

GAP_SHARE = 0.06  # largest fraction of unused bytes, relative to the used ones
END_SHARE = 0.01  # fraction of a file that is read at its start and at its end, to open it
LEAST_END, MOST_END = 2**12, 2**16  # limits of that, in bytes; a tree of 200 branches needs 35,000
# largest request: one connection over a long distance is slower than the line, so that several
# requests are needed; each takes a millisecond of CPU time
REQUEST_BYTES = 2**23
READERS = 8  # steps that are read at the same time
AHEAD_BYTES = 2**26  # bytes read before decoding: 0.2 s of a line with 300 MB/s


def join(ranges: Iterable[Range], share: float = GAP_SHARE) -> list[Range]:
    """Join ranges to requests, in the order of the file; each range is within one request.

    Adjacent ranges are joined up to REQUEST_BYTES. Ranges with a gap are joined too, the smallest
    gaps first, until the gaps have `share` of the bytes of the ranges.
    """
    apart = _without_overlaps(ranges)
    gaps = sorted((after[0] - before[1], after) for before, after in itertools.pairwise(apart))
    allowance = share * sum(stop - start for start, stop in apart)
    near = set()  # ranges to be joined with the one before
    for gap, after in gaps:
        if gap > allowance:
            break
        allowance -= gap
        near.add(after)
    result: list[Range] = []
    for start, stop in apart:
        if (start, stop) in near and stop - result[-1][0] <= REQUEST_BYTES:
            result[-1] = result[-1][0], stop
        else:
            result.append((start, stop))
    return result


def _without_overlaps(ranges: Iterable[Range]) -> list[Range]:
    """Sort the ranges, and merge those that overlap."""
    apart: list[Range] = []
    for start, stop in sorted(ranges):
        if apart and start < apart[-1][1]:
            apart[-1] = apart[-1][0], max(stop, apart[-1][1])
        else:
            apart.append((start, stop))
    return apart


class Parts:
    """Ranges of a file in memory, sorted and without overlaps."""

    def __init__(self, ranges: Sequence[Range], contents: Sequence[bytes]) -> None:
        """Take the ranges and the bytes of each."""
        self._starts = [start for start, _ in ranges]
        self._contents = [memoryview(content) for content in contents]

    def __call__(self, start: int, size: int) -> memoryview:
        """Return `size` bytes from `start`. Raises KeyError if no range contains them."""
        number = bisect.bisect_right(self._starts, start) - 1
        if number >= 0:
            begin = start - self._starts[number]
            content = self._contents[number][begin : begin + size]
            if len(content) == size:
                return content
        raise KeyError((start, size))


class Ends:
    """Access to a file whose start and end, where its lists are, are read at once.

    Other parts are read on request, and stored.
    """

    def __init__(self, source: Source) -> None:
        """Read the start and the end of the file, where ROOT stores its directories."""
        self.source = source
        length = min(max(int(END_SHARE * source.size), LEAST_END), MOST_END)
        ranges = join([(0, min(length, source.size)), (max(source.size - length, 0), source.size)])
        self._parts = [Parts(ranges, source.read_ranges(ranges))]

    def __call__(self, start: int, size: int) -> Buffer:
        """Return `size` bytes from `start`, fewer at the end of the file."""
        stop = min(start + size, self.source.size)
        if stop <= start:
            return b""
        for parts in self._parts:
            with contextlib.suppress(KeyError):
                return parts(start, stop - start)
        content = self.source.read(start, stop)
        self._parts.append(Parts([(start, stop)], [content]))
        return content


class Readers:
    """Threads that read parts of files while other parts are decoded.

    Use as a context manager, which closes all files at its end.
    """

    def __init__(self) -> None:
        """Start without files; the first file starts the threads."""
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._files: set[RemoteFile] = set()

    def __enter__(self) -> Readers:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the threads and close the files."""
        self._pool.shutdown(cancel_futures=True)
        for file in self._files:
            file.close()

    def file(self, entry: Entry, count: int) -> RemoteFile:
        """Add a file, whose `read` will be called `count` times."""
        file = RemoteFile(entry, count, self._pool)
        self._files = {other for other in self._files if not other.is_done} | {file}
        return file


class RemoteFile:
    """A file whose parts are read in threads; it is closed after the last read."""

    def __init__(self, entry: Entry, count: int, pool: ThreadPoolExecutor) -> None:
        """Take the file and the number of reads; the first read will open the file."""
        self._entry = entry
        self._num_left = count
        self._pool = pool
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._error: JecError | None = None

    @property
    def is_done(self) -> bool:
        """Whether all reads have ended."""
        return not self._num_left

    def read(self, ranges: Sequence[Range]) -> Future[Parts]:
        """Start to read some ranges in one vectored read."""
        return self._pool.submit(self._read, ranges)

    def _read(self, ranges: Sequence[Range]) -> Parts:
        try:
            requests = join(ranges)
            return Parts(requests, self._open().read_ranges(requests))
        finally:
            with self._lock:
                self._num_left -= 1
            if self.is_done:
                self.close()

    def _open(self) -> Source:
        """Open the file at the first read. If that fails, later reads raise the same error."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._source is None:
                try:
                    self._source = storage.open_source(self._entry.uri, self._entry)
                except JecError as error:
                    self._error = error
                    raise
            return self._source

    def close(self) -> None:
        """Close the file; a second call has no effect."""
        with self._lock:
            if self._source is not None:
                self._source.close()
            self._source = None
