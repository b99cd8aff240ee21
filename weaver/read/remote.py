"""Parts of a distant file: which of them travel together, and reading them in threads.

A request costs a round trip, and each byte that nobody needs costs as much as one that is needed.
So the ranges of a step go out as one vectored read, joined where little lies between them, while
the steps before it are decoded.
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
"""First byte, and the one behind the last."""
Buffer = bytes | memoryview
Fetch = Callable[[int, int], Buffer]
"""(first byte, number of bytes) -> bytes of a file, fewer where it ends before."""

JOINED = 0.06  # of the bytes that are asked for, so many others may come along
END_SHARE = 0.01  # of a file, so much is read at its beginning and at its end to open it
LEAST_END, MOST_END = 2**12, 2**16  # bytes of these; a tree of 200 branches takes 35,000
# of one request, cut between baskets: one connection of a long line carries less than the line, and
# a request takes a millisecond of CPU time
REQUEST_BYTES = 2**23
READERS = 8  # steps on their way at a time
AHEAD_BYTES = 2**26  # read before they are decoded: 0.2 s of a line of 300 MB/s


def join(ranges: Iterable[Range], share: float = JOINED) -> list[Range]:
    """What to ask for so that each of the ranges comes in one piece, in the order in the file.

    Neighbours are asked for together, up to REQUEST_BYTES. So are those with little between them,
    the smallest gaps first, as long as all gaps are at most `share` of the bytes of the ranges.
    """
    apart = _without_overlaps(ranges)
    gaps = sorted((after[0] - before[1], after) for before, after in itertools.pairwise(apart))
    left = share * sum(stop - start for start, stop in apart)
    near = set()  # the ranges that go with the one before them
    for gap, after in gaps:
        if gap > left:
            break
        left -= gap
        near.add(after)
    joined: list[Range] = []
    for start, stop in apart:
        if (start, stop) in near and stop - joined[-1][0] <= REQUEST_BYTES:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return joined


def _without_overlaps(ranges: Iterable[Range]) -> list[Range]:
    """The ranges in their order in the file, those that overlap as one."""
    apart: list[Range] = []
    for start, stop in sorted(ranges):
        if apart and start < apart[-1][1]:
            apart[-1] = apart[-1][0], max(stop, apart[-1][1])
        else:
            apart.append((start, stop))
    return apart


class Parts:
    """Ranges of a file in memory, in their order; none overlaps another."""

    def __init__(self, ranges: Sequence[Range], contents: Sequence[bytes]) -> None:
        """Hold the bytes of each range."""
        self._starts = [start for start, _ in ranges]
        self._contents = [memoryview(content) for content in contents]

    def __call__(self, start: int, size: int) -> memoryview:
        """The bytes from `start` on. Raises KeyError where they are not within one range."""
        number = bisect.bisect_right(self._starts, start) - 1
        if number >= 0:
            begin = start - self._starts[number]
            content = self._contents[number][begin : begin + size]
            if len(content) == size:
                return content
        raise KeyError((start, size))


class Ends:
    """A file of which the beginning and the end, where its lists are, came in one read.

    Whatever else is asked for is read then, and kept.
    """

    def __init__(self, source: Source) -> None:
        """Read the first and the last part of the file, where ROOT keeps its directories."""
        self.source = source
        length = min(max(int(END_SHARE * source.size), LEAST_END), MOST_END)
        ranges = join([(0, min(length, source.size)), (max(source.size - length, 0), source.size)])
        self._kept = [Parts(ranges, source.read_ranges(ranges))]

    def __call__(self, start: int, size: int) -> Buffer:
        """The bytes from `start` on, fewer where the file ends before."""
        stop = min(start + size, self.source.size)
        if stop <= start:
            return b""
        for parts in self._kept:
            with contextlib.suppress(KeyError):
                return parts(start, stop - start)
        content = self.source.read(start, stop)
        self._kept.append(Parts([(start, stop)], [content]))
        return content


class Readers:
    """Threads that read parts of files while others are decoded.

    They are a context manager, whose end closes all files.
    """

    def __init__(self) -> None:
        """Start without files; threads start with the first one."""
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
        """A file of which `read` will be called so many times."""
        file = RemoteFile(entry, count, self._pool)
        self._files = {other for other in self._files if not other.is_done} | {file}
        return file


class RemoteFile:
    """A file of which parts are read in threads: opened for the first, closed after the last."""

    def __init__(self, entry: Entry, count: int, pool: ThreadPoolExecutor) -> None:
        """Remember the file, which `count` loads will read; it is opened by the first."""
        self._entry = entry
        self._left = count
        self._pool = pool
        self._lock = threading.Lock()
        self._source: Source | None = None
        self._error: JecError | None = None

    @property
    def is_done(self) -> bool:
        """Whether all loads have been read."""
        return not self._left

    def read(self, ranges: Sequence[Range]) -> Future[Parts]:
        """Begin to read some ranges in one vectored read."""
        return self._pool.submit(self._read, ranges)

    def _read(self, ranges: Sequence[Range]) -> Parts:
        try:
            joined = join(ranges)
            return Parts(joined, self._opened().read_ranges(joined))
        finally:
            with self._lock:
                self._left -= 1
            if self.is_done:
                self.close()

    def _opened(self) -> Source:
        """The file, opened by the first read; if that failed after all attempts, so do others."""
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
        """Close the file; a second time does nothing."""
        with self._lock:
            if self._source is not None:
                self._source.close()
            self._source = None
