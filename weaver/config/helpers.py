"""weaver-core's functions in data-config expressions, under its names.

A column is a numpy array (N,), or an awkward array of N jets with several entries each. awkward and
vector are imported by the helpers that use them, because most data configs use neither.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from common.errors import InputError
from weaver.config import vocabulary

Column = Any
"""A numpy or awkward array. awkward's type is not named because awkward is imported late."""

_RANDOM: contextvars.ContextVar[np.random.Generator | None] = contextvars.ContextVar(
    "random numbers", default=None
)


@contextlib.contextmanager
def random_numbers(seed: int | np.random.Generator) -> Iterator[None]:
    """Let random helpers draw from this generator, or from one with this seed, within the block.

    Outside of such a block each call draws with seed 0. So their values are fixed when data is
    prepared, and are the same in every epoch; weaver-core draws new ones at each reading.
    """
    token = _RANDOM.set(np.random.default_rng(seed))
    try:
        yield
    finally:
        _RANDOM.reset(token)


def _generator() -> np.random.Generator:
    return _RANDOM.get() or np.random.default_rng(0)


def _clip(array: Column, low: Column, high: Column) -> Column:
    """Limit each number of a flat or jagged array to [low, high]; NaN stays NaN."""
    return np.minimum(np.maximum(array, low), high)


def _concat(arrays: Sequence[Column], axis: int = 0) -> Column:
    """Join arrays along an axis."""
    import awkward as ak

    return ak.concatenate(arrays, axis=axis)


def _stack(arrays: Sequence[Column], axis: int = 1) -> Column:
    """Stack arrays along a new axis."""
    if isinstance(arrays[0], np.ndarray):
        return np.stack(arrays, axis=axis)
    import awkward as ak

    # awkward has no stack: each array gets the new axis, of length 1, and they are joined along it.
    place = tuple(np.newaxis if i == axis else slice(None) for i in range(arrays[0].ndim + 1))
    return ak.concatenate([array[place] for array in arrays], axis=axis)


def _hash(*columns: Column) -> np.ndarray:
    """Return (N,) int64: a hash of each jet's numbers.

    It is Python's hash of the tuple of numbers, as in weaver-core. NaN counts as 0, because Python
    gives each NaN a hash of its own. Raises InputError for lists, and for text, whose hash changes
    from process to process.
    """
    numbers = []
    for column in columns:
        are_lists = getattr(column, "ndim", 0) != 1
        values = np.zeros(0) if are_lists else np.asarray(column)
        if are_lists or values.dtype.kind not in "biuf":
            raise InputError("`_hash` takes one number for each jet, and neither lists nor text")
        values = np.nan_to_num(values, nan=0, posinf=np.inf, neginf=-np.inf)
        numbers.append(values.tolist())
    return np.array([hash(jet) for jet in zip(*numbers, strict=True)], np.int64)


def _pad(array: Column, maxlen: int, value: float = 0, dtype: str = "float32") -> np.ndarray:
    """Return (N, maxlen): the first entries of each jet, padded with `value`."""
    import awkward as ak

    if isinstance(array, np.ndarray) and array.ndim >= 2 and array.shape[1] == maxlen:
        return array
    lists = _as_lists(array, dtype)
    return ak.to_numpy(
        ak.fill_none(ak.pad_none(lists, maxlen, clip=True), np.dtype(dtype).type(value))
    )


def _repeat_pad(array: Column, maxlen: int, dtype: str = "float32") -> np.ndarray:
    """Return (N, maxlen): the entries of each jet, repeated; 0 for a jet without entries."""
    import awkward as ak

    lists = _as_lists(array, dtype)
    counts = ak.to_numpy(ak.num(lists))
    content = np.append(ak.to_numpy(ak.flatten(lists)), np.zeros(1, dtype))
    starts = np.cumsum(counts) - counts
    places = starts[:, None] + np.arange(maxlen) % np.maximum(counts, 1)[:, None]  # (N, maxlen)
    return np.where(counts[:, None] > 0, content[places], content.dtype.type(0))


def _as_lists(array: Column, dtype: str) -> Column:
    """Convert an array to one list for each jet; a single number becomes a list of one."""
    import awkward as ak

    array = ak.Array(array)
    lists = ak.unflatten(array, 1) if array.ndim == 1 else ak.from_regular(array)
    return ak.values_astype(lists, dtype)


def _batch_argsort(array: Column) -> Column:
    """For each jet, the positions that sort its entries in rising order."""
    import awkward as ak

    return ak.argsort(array)


def _batch_gather(array: Column, indices: Column) -> Column:
    """For each jet, the entries at these positions."""
    return array[indices]


def _batch_permute_indices(array: Column) -> Column:
    """For each jet, its positions in random order."""
    import awkward as ak

    return ak.argsort(ak.unflatten(_generator().random(ak.count(array)), ak.num(array)))


def _batch_permute_and_drop_indices(
    array: Column,
    random_permute: bool = True,
    drop_rate_min: float = 0,
    drop_rate_max: float = 0,
    min_elements: int = 1,
) -> Column:
    """For each jet, its positions in random or rising order, without a random fraction of them.

    The fraction to drop is drawn for each jet, uniformly between the two rates; at least
    `min_elements` positions stay. With drop_rate_min 0 none is dropped. Raises InputError unless
    drop_rate_min is 0 or 0 < drop_rate_min <= drop_rate_max < 1.
    """
    import awkward as ak

    indices = _batch_permute_indices(array) if random_permute else _batch_argsort(array)
    if not drop_rate_min:
        return indices
    if not 0 < drop_rate_min <= drop_rate_max < 1:
        raise InputError(
            f"drop rates must be 0 < drop_rate_min <= drop_rate_max < 1, found {drop_rate_min} and"
            f" {drop_rate_max}"
        )
    counts = ak.to_numpy(ak.num(array))
    rates = _generator().uniform(drop_rate_min, drop_rate_max, len(counts))
    new_counts = np.maximum(min_elements, np.round(counts * (1 - rates)))
    return indices[indices < new_counts.astype(np.int64)]


def _momentum4(**components: Column) -> Column:
    try:
        import vector
    except ImportError:
        raise InputError("four-momenta take the package vector; type: pip install vector") from None
    vector.register_awkward()
    return vector.zip(components)


def _p4_from_pxpypze(px: Column, py: Column, pz: Column, energy: Column) -> Column:
    """Return four-momenta (GeV)."""
    return _momentum4(px=px, py=py, pz=pz, energy=energy)


def _p4_from_ptetaphie(pt: Column, eta: Column, phi: Column, energy: Column) -> Column:
    """Return four-momenta (GeV, rad)."""
    return _momentum4(pt=pt, eta=eta, phi=phi, energy=energy)


def _p4_from_ptetaphim(pt: Column, eta: Column, phi: Column, mass: Column) -> Column:
    """Return four-momenta (GeV, rad)."""
    return _momentum4(pt=pt, eta=eta, phi=phi, mass=mass)


HELPERS: dict[str, Callable] = {name: globals()[name] for name in vocabulary.names_in("helper")}
"""Name -> function. A helper of the vocabulary without a function here makes the import fail."""
