"""The columns of a tree's branches, straight from its baskets, for any range of entries.

weaver/read/root/root_tree.py finds the baskets. A step holds whole baskets as long as it is worked
on and knows nothing of other steps, so that several can be decoded at once.

This decoder is kept as long as preparing with it is at least 1.5 times as fast as with uproot's
over S3 and over XRootD, at 20 ms for a request and its answer. Measured by benchmarks/remote.py on
2026-11-30 (320,000 jets, the client on one core of an AMD EPYC; median of three pairs, least -
most):

              jets/s, ours / uproot's    CPU of the client, us a jet, ours and uproot's
    S3        1.59 (1.55 - 1.71)         11.8 and 21.2
    XRootD    1.70 (1.65 - 1.74)         11.0 and 19.9
    disk      1.79 (1.71 - 1.82)         10.6 and 20.1
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from weaver.read.jagged import Columns, Jagged, Lists
from weaver.read.remote import Fetch, Range
from weaver.read.root.inflate import inflate
from weaver.read.root.root_tree import Branch

# The header of ROOT's TKey: stored size, version, full size, date, length of the key, cycle.
_RECORD = struct.Struct(">ihiIhh")
# The end of the key of a TBasket: version, buffer size, entry offset length, entries, end of data.
_BASKET = struct.Struct(">Hiiii")
FLAG = 1  # byte between these numbers and the data


def ranges(branches: Iterable[Branch], rows: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges of entries up to `stop`, of at least `rows` (the last one may be shorter).

    They cut no basket of the largest branch, so that it is decoded only once.
    """
    largest = max(branches, key=lambda branch: branch.uncompressed)
    start = 0
    for end in largest.first_entries[1:].tolist():
        if end - start >= rows or end >= stop:
            yield start, min(end, stop)
            start = end
        if end >= stop:
            return


def stored(branches: Iterable[Branch], start: int, stop: int) -> list[Range]:
    """The bytes of the baskets that hold the entries start:stop, a range for each basket."""
    ranges = []
    for branch in branches:
        first, last = _numbers(branch, start, stop)
        for number in range(first, last + 1):
            begin = int(branch.seeks[number])
            ranges.append((begin, begin + int(branch.sizes[number])))
    return ranges


def _numbers(branch: Branch, start: int, stop: int) -> tuple[int, int]:
    """The first and the last of the baskets that hold the entries start:stop."""
    first, last = np.searchsorted(branch.first_entries, (start, stop - 1), side="right") - 1
    return int(first), int(last)


def columns(fetch: Fetch, branches: Mapping[str, Branch], start: int, stop: int) -> Columns:
    """The entries start:stop of branches: numbers (N,), or lists.

    Branches with lists of the same lengths share these. Raises ValueError, struct.error or the
    decompressor's error for damaged or unusual baskets.
    """
    known: list[Lists] = []
    arrays: Columns = {}
    for name, branch in branches.items():
        arrays[name] = _column(fetch, branch, start, stop, known)
    return arrays


def _column(
    fetch: Fetch, branch: Branch, start: int, stop: int, known: list[Lists]
) -> np.ndarray | Jagged:
    """One branch; `known` are the lists of the branches before, and takes its own."""
    first, last = _numbers(branch, start, stop)
    contents: list[np.ndarray] = []  # the numbers of each basket
    starts: list[np.ndarray] = []  # where each entry's numbers begin
    end = 0
    for number in range(first, last + 1):
        content, offsets = _basket(fetch, branch, number)
        contents.append(content)
        if offsets is not None:
            starts.append(offsets[:-1] + end)
        end += len(content)
    content = contents[0] if len(contents) == 1 else np.concatenate(contents)

    # of the baskets' entries, those that belong to start:stop
    first_entry = int(branch.first_entries[first])
    within = slice(start - first_entry, stop - first_entry)
    if not branch.jagged:
        return content[within].astype(branch.dtype.newbyteorder("="))

    bounds = np.concatenate([*starts, np.array([end])])
    lists = Lists(bounds[:-1][within], np.diff(bounds)[within])
    for other in known:
        same_starts = np.array_equal(lists.starts, other.starts)
        if same_starts and np.array_equal(lists.counts, other.counts):
            return Jagged(content, other)
    known.append(lists)
    return Jagged(content, lists)


def _basket(fetch: Fetch, branch: Branch, number: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A basket's numbers, and where each entry's begin with the end of them all.

    The latter are (entries + 1,) int64, or None for one number an entry.
    """
    stored = int(branch.sizes[number])
    entries = int(branch.first_entries[number + 1] - branch.first_entries[number])
    place = f"the basket at byte {branch.seeks[number]}"

    record = fetch(int(branch.seeks[number]), stored)
    size, _, full, _, key_length, _ = _RECORD.unpack_from(record)
    *_, entries_here, end = _BASKET.unpack_from(record, key_length - _BASKET.size - FLAG)
    if size != stored or len(record) != stored or entries_here != entries:
        raise ValueError(f"{place} is not that of '{branch.name}'")
    data = inflate(memoryview(record)[key_length:], full)
    end -= key_length  # ROOT counts from the beginning of the key
    values = np.frombuffer(data, branch.dtype, end // branch.dtype.itemsize)
    if not branch.jagged:
        if end != full or len(values) != entries:
            raise ValueError(f"{place} has not one number for each entry")
        return values, None

    # behind the numbers: a count, then the place of each entry's first number in bytes
    offsets = np.empty(entries + 1, np.int64)
    offsets[:-1] = np.frombuffer(data, ">i4", entries + 1, end)[1:]
    offsets[:-1] -= key_length
    offsets[-1] = end
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or (offsets % branch.dtype.itemsize).any():
        raise ValueError(f"{place} has lists out of order")
    return values, offsets // branch.dtype.itemsize
