"""Bound the size of an operation's result before the operation runs.

A few characters of a data config can ask for more memory than any machine has: `x[:, None] * x` for
a million jets, `np.histogram(x, 10**10)`, `np.ones(10**12)`. Each function here computes a bound on
the number of elements from the shapes of the arguments; the evaluator rejects results above
MOST_ELEMENTS. A bound of 0 means that the result cannot be larger than the arguments, or that the
arguments do not fit each other, which the operation itself then reports.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from weaver.config.vocabulary import SIZE_RULES

GROWING = ("combinations", "argcombinations", "cartesian", "argcartesian", "pad_none")
"""Functions of awkward whose result may be far larger than their arguments."""
BROADCAST = {
    "numpy": (
        *("where", "select", "choose", "clip", "isclose", "cross", "broadcast_arrays", "polyval"),
        "take_along_axis",
    ),
    "awkward": (
        *("where", "isclose", "mask", "broadcast_arrays", "corr", "covar", "linear_fit", "zip"),
        *("with_field", "concatenate", "broadcast_fields", "cartesian"),
    ),
    "helper": ("_clip", "_concat", "_p4_from_ptetaphie", "_p4_from_ptetaphim", "_p4_from_pxpypze"),
    "method": ("clip", "deltaR", "deltaphi", "deltaeta", "deltaR2", "deltaRapidityPhi"),
}
"""Functions, other than ufuncs, whose array arguments are broadcast against each other."""
MOST_STEPS = 1000
"""Bound on repetitions: of np.diff over its array, and of the loop that counts combinations."""


def of_call(namespace: str, name: str, arguments: Sequence[Any], words: Mapping[str, Any]) -> float:
    """Bound the number of elements that a call returns.

    namespace: one of the vocabulary's, or "method", with the array itself as the first argument.
    words: the keyword arguments. Raises TypeError or ValueError for arguments that the function
    does not take.
    """
    if namespace in ("numpy", "method") and name in _NUMPY:
        return float(_NUMPY[name](*arguments, **words))
    if (namespace == "numpy" and name in SIZE_RULES) or (namespace, name) == ("method", "repeat"):
        return _of_sized_function(name, arguments, words)
    if namespace == "awkward" and name in GROWING:
        return _of_growing_function(name, arguments, words)
    if namespace == "helper" and name in _HELPERS:
        return _HELPERS[name](*arguments, **words)
    is_ufunc = namespace == "numpy" and isinstance(getattr(np, name, None), np.ufunc)
    if is_ufunc or name in BROADCAST.get(namespace, ()):
        return of_broadcast([*arguments, *words.values()])
    return 0


# ----------------------------------------------------------------------------------- broadcasting


def of_broadcast(values: Iterable[Any]) -> float:
    """Bound the number of elements of arrays that are broadcast against each other.

    values: arrays, also in lists or mappings; other values count as one number. The result is
    larger than the largest array only if an array has an axis of length 1, as in `x[:, None]`.
    """
    arrays = list(_arrays(values))
    if len(arrays) < 2 or not any(_has_unit_axis(array) for array in arrays):
        return 0
    shapes = [_shape(array) for array in arrays]
    regular = [shape for shape in shapes if shape is not None]
    if len(regular) == len(arrays):
        try:
            return math.prod(np.broadcast_shapes(*regular))
        except ValueError:  # they do not fit; the operation itself will report it
            return 0
    length = max(len(array) for array in arrays)
    if any(len(array) not in (1, length) for array in arrays):
        return 0
    ranks = {array.ndim for array in arrays}
    if len(ranks) > 1 and any(_ends_in_unit_axis(array) for array in arrays):
        # Inside its lists awkward aligns axes from the right, as numpy does. So each number of one
        # array may be combined with each number of the others.
        return float(max(_count(array) for array in arrays)) ** len(arrays)
    entries = np.ones(length)
    for axis in range(1, max(ranks)):
        longest = [_longest(array, axis) for array in arrays if array.ndim > axis]
        entries = entries * np.maximum.reduce(
            [np.broadcast_to(length_of_array, length) for length_of_array in longest]
        )
    return float(entries.sum())


def _arrays(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _arrays(value)
        elif isinstance(value, Mapping):
            yield from _arrays(value.values())
        elif getattr(value, "ndim", 0) > 0:
            yield value


def _layout(array: Any) -> Any:
    return getattr(array, "layout", None)


def _has_unit_axis(array: Any) -> bool:
    """Return whether the array has an axis of length 1 for all jets."""
    if isinstance(array, np.ndarray):
        return 1 in array.shape
    node = _layout(array)
    if len(array) == 1:
        return True
    while node is not None:
        if getattr(node, "is_regular", False) and node.size == 1:
            return True
        if 1 in getattr(node, "inner_shape", ()):
            return True
        node = _below(node)
    return False


def _below(node: Any) -> Any:
    """Return the layout inside another one; for a record or a union, that of its first part."""
    contents = getattr(node, "contents", None)
    if contents:
        return contents[0]
    return getattr(node, "content", None)


def _shape(array: Any) -> tuple[int, ...] | None:
    """Return the shape of a regular array; None for an array with lists of different lengths."""
    if isinstance(array, np.ndarray):
        return array.shape
    shape = [len(array)]
    node = _layout(array)
    while node is not None:
        if getattr(node, "is_list", False):
            if not node.is_regular:
                return None
            shape.append(node.size)
        shape.extend(getattr(node, "inner_shape", ()))
        node = _below(node)
    return tuple(shape)


def _ends_in_unit_axis(array: Any) -> bool:
    """Return whether a regular axis of length 1 follows the last axis of lists."""
    if isinstance(array, np.ndarray):
        return 1 in array.shape[1:]
    has_unit = False
    node = _layout(array)
    while node is not None:
        if getattr(node, "is_list", False):
            has_unit = node.is_regular and (has_unit or node.size == 1)
        has_unit = has_unit or 1 in getattr(node, "inner_shape", ())
        node = _below(node)
    return has_unit


def _longest(array: Any, axis: int) -> np.ndarray:
    """Return (N,): the length of each jet's longest list at an axis."""
    if isinstance(array, np.ndarray):
        return np.full(len(array), array.shape[axis], float)
    import awkward as ak

    lengths = ak.num(array, axis=axis)
    while lengths.ndim > 1:
        lengths = ak.max(lengths, axis=-1)
    return ak.to_numpy(ak.fill_none(lengths, 0)).astype(float)


def _count(array: Any) -> int:
    if isinstance(array, np.ndarray):
        return int(array.size)
    import awkward as ak

    return int(ak.count(array, axis=None)) if not ak.fields(array) else len(ak.flatten(array, None))


# ---------------------------------------------------------------------------------------- indexing


def of_index(value: Any, index: Any) -> float:
    """Bound the number of elements of `value[index]` for an index of integer arrays.

    Slices, conditions and lists of positions for each jet cannot enlarge an array.
    """
    index_shapes = []
    for part in index if isinstance(index, tuple) else (index,):
        array = np.asarray(part) if isinstance(part, list) else part
        shape = _shape(array) if getattr(array, "ndim", 0) > 0 else None
        if shape is not None and getattr(array, "dtype", np.dtype(int)).kind in "iu":
            index_shapes.append(shape)
    if not index_shapes or getattr(value, "ndim", 0) == 0:
        return 0
    try:
        num_rows = math.prod(np.broadcast_shapes(*index_shapes))
    except ValueError:
        return 0
    per_row = 1.0
    for axis in range(len(index_shapes), value.ndim):
        longest = _longest(value, axis)
        per_row *= longest.max() if len(longest) else 0
    return num_rows * per_row


# --------------------------------------------------------------------------------------- of numpy


def _of_sized_function(name: str, arguments: Sequence[Any], words: Mapping[str, Any]) -> float:
    """Bound the result of a function in SIZE_RULES."""
    values: dict[str, Any] = dict(
        inspect.signature(getattr(np, name)).bind(*arguments, **words).arguments
    )
    match SIZE_RULES[name]:
        case "shape":
            return math.prod(np.ravel(values["shape"]).tolist())
        case "square":
            rows = values["N"] if "N" in values else values["n"]
            return float(rows * (values.get("M") or rows))
        case "num":
            return float(values.get("num", 50)) * _size(values["start"], values["stop"])
        case "range":
            parts = [part for part in arguments if part is not None]
            start, stop, step = (*([0] if len(parts) == 1 else []), *parts, 1)[:3]
            return float(abs(stop - start) / (abs(step) or 1))
        case _:
            repeats = np.asarray(values["repeats"] if "repeats" in values else values["reps"])
            one_each = repeats.ndim and name == "repeat"
            length = np.size(values["a"] if "a" in values else values["A"])
            return float(repeats.sum() if one_each else length * repeats.prod())


def _size(*values: Any) -> float:
    """Return the number of elements of arrays that are broadcast; 1 for plain numbers."""
    return max(of_broadcast(values), *(float(np.size(value)) for value in values))


def _histogram(a: Any, bins: Any = 10, *others: Any, **words: Any) -> float:
    if isinstance(bins, str):
        raise ValueError("np.histogram takes a number of bins or their edges here, not a rule")
    return float(np.size(bins) if np.ndim(bins) else bins)


def _quantile(a: Any, q: Any, axis: Any = None, *others: Any, **words: Any) -> float:
    """Return each quantile is computed for all positions along the other axes."""
    return float(np.size(q)) * (1 if axis is None else _count(np.asarray(a)))


def _diff(a: Any, n: int = 1, *others: Any, **words: Any) -> float:
    """Return the result is smaller than the array, but numpy goes over the array n times."""
    if abs(n) > MOST_STEPS:
        raise ValueError(f"np.diff takes at most n={MOST_STEPS} here")
    return 0


def _contraction(a: Any, b: Any, axes: int) -> float:
    """Bound the product of two arrays that sums over the last `axes` axes."""
    first, second = np.shape(a), np.shape(b)
    if not first or not second:  # a plain number times an array
        return 0
    contracted = math.prod(first[len(first) - axes :]) if axes else 1
    return math.prod(first) * math.prod(second) / max(contracted, 1) ** 2


def _dot(a: Any, b: Any) -> float:
    return _contraction(a, b, 1)


def _take(a: Any, indices: Any, *others: Any, **words: Any) -> float:
    return of_index(a, indices)


def _tensordot(a: Any, b: Any, axes: Any = 2) -> float:
    if isinstance(axes, int):
        return _contraction(a, b, axes)
    shape = np.shape(a)
    length = math.prod(shape[axis] for axis in np.ravel(axes[0]).tolist())
    return math.prod(shape) * math.prod(np.shape(b)) / max(length, 1) ** 2


def _matmul(a: Any, b: Any, *others: Any, **words: Any) -> float:
    first, second = np.shape(a), np.shape(b)
    if len(first) < 2 or len(second) < 2:
        return 0
    try:
        batch = np.broadcast_shapes(first[:-2], second[:-2])
    except ValueError:
        return 0
    return math.prod(batch) * first[-2] * second[-1]


def _einsum(subscripts: Any, *operands: Any, **words: Any) -> float:
    """Return the number of products: that of the lengths of all axes."""
    if not isinstance(subscripts, str):
        raise ValueError("np.einsum takes its subscripts as text here")
    lengths: dict[object, int] = {}
    parts = subscripts.replace(" ", "").partition("->")[0].split(",")
    for part, operand in zip(parts, operands, strict=False):
        before, dots, after = part.partition("...")
        shape = np.shape(operand)
        free = len(shape) - len(before) - len(after) if dots else 0
        # The axes of "..." are aligned from the right.
        labels: list[object] = [*before, *range(-free, 0), *after]
        for label, length in zip(labels, shape, strict=False):
            lengths[label] = max(lengths.get(label, 1), length)
    return math.prod(lengths.values())


def _pad(array: Any, maxlen: int, *others: Any, **words: Any) -> float:
    return float(len(array) * maxlen)


_HELPERS: dict[str, Callable[..., float]] = {
    "_pad": _pad,
    "_repeat_pad": _pad,
    "_batch_gather": of_index,
}
_NUMPY: dict[str, Callable[..., float]] = {
    "histogram": _histogram,
    "quantile": _quantile,
    "percentile": _quantile,
    "nanquantile": _quantile,
    "nanpercentile": _quantile,
    "diff": _diff,
    "take": _take,
    "dot": _dot,
    "inner": _dot,
    "tensordot": _tensordot,
    "matmul": _matmul,
    "einsum": _einsum,
}
"""Functions and methods of numpy -> function that bounds the size of their result."""


# -------------------------------------------------------------------------------------- of awkward


def _of_growing_function(name: str, arguments: Sequence[Any], words: Mapping[str, Any]) -> float:
    """Bound the result of a function in GROWING."""
    import awkward as ak

    bound = inspect.signature(getattr(ak, name)).bind(*arguments, **words)
    bound.apply_defaults()
    values = bound.arguments
    axis = values["axis"]
    arrays = values["arrays"] if "arrays" in values else [values["array"]]
    if isinstance(arrays, Mapping):
        arrays = list(arrays.values())
    counts = []
    for array in arrays:
        lengths = len(array) if axis == 0 else ak.flatten(ak.num(array, axis=axis), axis=None)
        counts.append(np.atleast_1d(np.asarray(lengths, np.float64)))
    if name == "pad_none":
        return float(np.maximum(counts[0], values["target"]).sum())
    if "n" in values:
        chosen_per_tuple = values["n"]
        more = chosen_per_tuple - 1 if values["replacement"] else 0
        return float(np.sum(_choose(counts[0] + more, chosen_per_tuple)) * chosen_per_tuple)
    with np.errstate(over="ignore"):
        return float(np.prod(np.array(counts), axis=0).sum() * len(counts))


def _choose(counts: np.ndarray, number: int) -> np.ndarray:
    """Binomial coefficients of counts (N,) over `number`, as floats (N,)."""
    ways = np.ones_like(counts)
    with np.errstate(over="ignore"):
        for i in range(min(number, MOST_STEPS)):
            ways = ways * np.maximum(counts - i, 0) / (i + 1)
    return ways
