"""Quantiles of more values than fit in memory, equal to those of np.percentile to the bit.

The values are read several times, piece by piece. Each pass counts the next 16 bits of the values
near a quantile, from the highest bits on, until all bits of the quantile's neighbours are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

BITS = 16  # counted in a pass
Pieces = Callable[[], Iterable[np.ndarray]]
"""Gives all values again at each call: arrays (n,) of one type of numbers."""


def percentiles(
    pieces: Pieces, dtype: np.dtype, count: int, shares: Sequence[float]
) -> list[float]:
    """Return np.percentile(values, shares) of `count` values of a type, none of which is NaN."""
    places = np.array(shares) / 100 * (count - 1)
    lower = np.floor(places).astype(np.int64)
    upper = np.minimum(lower + 1, count - 1)
    values = order_statistics(pieces, dtype, [*lower.tolist(), *upper.tolist()])
    below, above = values[: len(places)], values[len(places) :]
    # numpy's linear interpolation, from the nearer neighbour
    weights = places - lower
    step = above - below
    between = np.where(weights >= 0.5, above - step * (1 - weights), below + step * weights)
    return [float(value) for value in between]


def order_statistics(pieces: Pieces, dtype: np.dtype, ranks: Sequence[int]) -> np.ndarray:
    """Return the values that stand at these places once all are sorted; 0 is the least."""
    width = 8 * dtype.itemsize
    bits = min(BITS, width)
    prefixes = [0] * len(ranks)  # the highest bits of each value
    ranks_in_prefix = list(ranks)  # places among the values with these bits
    for shift in range(width - bits, -1, -bits):
        counts = {prefix: np.zeros(2**bits, np.int64) for prefix in prefixes}
        for piece in pieces():
            keys = _keys(piece)
            next_bits = ((keys >> shift) & (2**bits - 1)).astype(np.int64)
            for prefix in counts:
                bits_of_prefix = next_bits
                if shift + bits < width:
                    bits_of_prefix = next_bits[keys >> (shift + bits) == prefix]
                counts[prefix] += np.bincount(bits_of_prefix, minlength=2**bits)
        for number, prefix in enumerate(prefixes):
            ends = np.cumsum(counts[prefix])
            digit = int(np.searchsorted(ends, ranks_in_prefix[number], side="right"))
            ranks_in_prefix[number] -= int(ends[digit - 1]) if digit else 0
            prefixes[number] = (prefix << bits) | digit
    return _values(np.array(prefixes, f"u{dtype.itemsize}"), dtype)


def _keys(values: np.ndarray) -> np.ndarray:
    """Unsigned numbers (n,) in the order of the values, none of which is NaN."""
    size = values.itemsize
    sign = np.array(2 ** (8 * size - 1), f"u{size}")
    if values.dtype.kind == "u":
        return values
    if values.dtype.kind == "i":
        return values.view(f"u{size}") ^ sign
    bits = (values + values.dtype.type(0)).view(f"u{size}")  # -0.0 becomes 0.0
    return np.where(bits & sign, ~bits, bits | sign)


def _values(keys: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return the values of such numbers."""
    sign = np.array(2 ** (8 * dtype.itemsize - 1), keys.dtype)
    if dtype.kind == "u":
        return keys
    if dtype.kind == "i":
        return (keys ^ sign).view(dtype)
    return np.where(keys & sign, keys ^ sign, ~keys).view(dtype)
