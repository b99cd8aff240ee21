"""Read many byte ranges of one file with several requests at a time.

A range is cut into pieces of at most PIECE bytes, which are requested in parallel, because one
request over a long distance does not use the whole bandwidth. `one_each` makes a request for each
piece; `in_vectors` combines small pieces in one request, which XRootD allows.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

Range = tuple[int, int]
"""Place of the first byte, and the place after the last one."""

REQUESTS = 16  # requests at a time in the threads; each caller makes one more itself
PIECE = 16 * 2**20  # largest number of bytes in a piece
# Vectored reads of XRootD. Both limits of an item are the defaults of its servers.
VECTOR_ITEM = 2 * 2**20 - 16  # largest number of bytes in an item
VECTOR_ITEMS = 1024  # largest number of items in a request
VECTOR_BYTES = 4 * 2**20  # largest number of bytes in a request, so that several run in parallel


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
    """Return the bytes of each range, in the order of `ranges`.

    group: `one_each` or `in_vectors`: cuts the ranges into pieces, and returns the pieces of each
    request. read: makes one request, and returns the bytes of each of its pieces.
    """
    groups = group(list(ranges))
    if not groups:
        return _join(ranges, [])
    others = [_threads(os.getpid()).submit(read, pieces) for pieces in groups[1:]]
    try:
        pieces = list(read(groups[0]))
        for other in others:
            pieces += other.result()
    finally:
        for other in others:
            other.cancel()
        wait(others)  # once this function has ended, the caller may close the file
    return _join(ranges, pieces)


@functools.lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the threads of this process for requests; a forked process has none of them.

    They are reused, because starting a thread costs as much CPU time as a small request.
    """
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="request")


def one_each(ranges: list[Range]) -> list[list[Range]]:
    """Cut the ranges into pieces; return the pieces of each request, here one."""
    return [[piece] for piece in split_ranges(ranges)]


def in_vectors(ranges: list[Range]) -> list[list[Range]]:
    """Cut the ranges into pieces; return the pieces of each request.

    A piece larger than VECTOR_ITEM is a request by itself. Smaller ones share requests.
    """
    groups: list[list[Range]] = []
    room = 0  # bytes that the last request can still take
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


def _join(ranges: Iterable[Range], pieces: Iterable[bytes]) -> list[bytes]:
    """Join the bytes of consecutive pieces to those of the ranges that were cut into them."""
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
