"""The columns of a tree's branches, straight from its baskets (weaver/read/root/root_tree.py finds
them), for any range of entries.

A step holds whole baskets as long as it is worked on and knows nothing of other steps, so that
several can be decoded at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from weaver.read.jagged import Jagged, Lists
from weaver.read.root.inflate import inflate
from weaver.read.root.root_tree import Branch

Fetch = Callable[[int, int], bytes]
_RECORD = struct.Struct(">ihiIhh")  # stored and full size, the date, the length of the key
_BASKET = struct.Struct(">Hiiii")  # version, sizes, entries, the end of the data
FLAG = 1  # byte between these numbers and the data


def ranges(branches: Iterable[Branch], rows: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges of entries up to `stop`, of at least `rows` (the last one may be shorter), that cut no
    basket of the largest branch.
    """
    largest = max(branches, key=lambda branch: branch.uncompressed)
    start = 0
    for end in largest.first_entries[1:].tolist():
        if end - start >= rows or end >= stop:
            yield start, min(end, stop)
            start = end
        if end >= stop:
            return


def columns(
    fetch: Fetch, branches: Mapping[str, Branch], start: int, stop: int
) -> dict[str, np.ndarray | Jagged]:
    """The entries start:stop of branches: numbers (N,), or lists; branches with lists of the same
    lengths share these.

    Raises ValueError, struct.error or the decompressor's error for damaged or unusual baskets.
    """
    known: list[Lists] = []
    return {name: _column(fetch, branch, start, stop, known) for name, branch in branches.items()}


def _column(
    fetch: Fetch, branch: Branch, start: int, stop: int, known: list[Lists]
) -> np.ndarray | Jagged:
    first, last = np.searchsorted(branch.first_entries, (start, stop - 1), side="right") - 1
    parts = [_basket(fetch, branch, number) for number in range(first, last + 1)]
    content = parts[0][0] if len(parts) == 1 else np.concatenate([part for part, _ in parts])
    within = slice(
        start - int(branch.first_entries[first]), stop - int(branch.first_entries[first])
    )
    if not branch.jagged:
        return content[within].astype(branch.dtype.newbyteorder("="))
    ends = np.cumsum([0, *(len(part) for part, _ in parts)])
    offsets = np.concatenate(
        [*(part[:-1] + end for (_, part), end in zip(parts, ends, strict=False)), ends[-1:]]
    )
    return Jagged(content, _shared(Lists(offsets[:-1][within], np.diff(offsets)[within]), known))


def _shared(lists: Lists, known: list[Lists]) -> Lists:
    for other in known:
        if np.array_equal(lists.starts, other.starts) and np.array_equal(
            lists.counts, other.counts
        ):
            return other
    known.append(lists)
    return lists


def _basket(fetch: Fetch, branch: Branch, number: int) -> tuple[np.ndarray, np.ndarray | None]:
    """A basket's numbers, and where each entry's begin with the end of them all:

    (entries + 1,) int64; None for one number an entry.
    """
    stored, entries = (
        int(branch.sizes[number]),
        int(branch.first_entries[number + 1] - branch.first_entries[number]),
    )
    record = fetch(int(branch.seeks[number]), stored)
    size, _, full, _, key_length, _ = _RECORD.unpack_from(record)
    *_, found, end = _BASKET.unpack_from(record, key_length - _BASKET.size - FLAG)
    if size != stored or len(record) != stored or found != entries:
        raise ValueError(
            f"the basket at byte {branch.seeks[number]} is not that of '{branch.name}'"
        )
    data = inflate(memoryview(record)[key_length:], full)
    end -= key_length
    values = np.frombuffer(data, branch.dtype, end // branch.dtype.itemsize)
    if not branch.jagged:
        if end != full or len(values) != entries:
            raise ValueError(
                f"the basket at byte {branch.seeks[number]} has not one number for each entry"
            )
        return values, None
    offsets = np.empty(entries + 1, np.int64)
    offsets[:-1] = np.frombuffer(data, ">i4", entries + 1, end)[1:]
    offsets[:-1] -= key_length
    offsets[-1] = end
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or (offsets % branch.dtype.itemsize).any():
        raise ValueError(f"the basket at byte {branch.seeks[number]} has lists out of order")
    return values, offsets // branch.dtype.itemsize
