"""Read many ranges of one file with several requests in flight.

XRootD takes many small ranges in one request. Large ranges are cut, because a
single connection over a long distance does not use the whole bandwidth.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

Range = tuple[int, int]
"""First byte, and the one behind the last."""

REQUESTS = 16  # in flight at a time, beside one for each caller
PIECE = 16 * 2**20  # bytes of one request
# of XRootD: what a server takes in one request, unless it was configured otherwise
VECTOR_ITEM = 2 * 2**20 - 16
VECTOR_BYTES = 4 * 2**20  # of one request, so that there are several
VECTOR_ITEMS = 1024


def split_ranges(ranges: Iterable[Range], most: int = PIECE) -> list[Range]:
    """Split the ranges into pieces of at most `most` bytes."""
    pieces = []
    for start, stop in ranges:
        for begin in range(start, stop, most):
            pieces.append((begin, min(begin + most, stop)))
    return pieces


def read_in_pieces(
    ranges: Sequence[Range],
    group: Callable[[list[Range]], list[list[Range]]],
    read: Callable[[list[Range]], list[bytes]],
) -> list[bytes]:
    """The bytes of each range, in their order.

    group: cuts ranges into groups of pieces, one for each request. read: one such request.
    """
    groups = group(list(ranges))
    if not groups:
        return _together(ranges, [])
    others = [_threads(os.getpid()).submit(read, pieces) for pieces in groups[1:]]
    try:
        pieces = list(read(groups[0]))
        for other in others:
            pieces += other.result()
    finally:
        for other in others:
            other.cancel()
        wait(others)  # once this function has ended, the caller may close the file
    return _together(ranges, pieces)


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """The threads of this process for requests; a forked process has none of them.

    They are reused, because starting a thread costs as much CPU time as a small request.
    """
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="request")


def one_each(ranges: list[Range]) -> list[list[Range]]:
    """A request for each piece."""
    return [[piece] for piece in split_ranges(ranges)]


def in_vectors(ranges: list[Range]) -> list[list[Range]]:
    """A request for each large piece, and one for many small ones that follow each other."""
    groups: list[list[Range]] = []
    room = 0  # bytes that the last group still takes
    for start, stop in split_ranges(ranges):
        size = stop - start
        if size > VECTOR_ITEM:
            groups.append([])
            room = size
        elif size > room or len(groups[-1]) == VECTOR_ITEMS:
            groups.append([])
            room = VECTOR_BYTES
        groups[-1].append((start, stop))
        room -= size
    return groups


def _together(ranges: Iterable[Range], pieces: Iterable[bytes]) -> list[bytes]:
    """The pieces, in order, as the contents of the ranges."""
    rest = iter(pieces)
    contents = []
    for start, stop in ranges:
        parts = []
        missing = stop - start
        while missing > 0:
            parts.append(next(rest))
            missing -= len(parts[-1])
        contents.append(parts[0] if len(parts) == 1 else b"".join(parts))
    return contents
