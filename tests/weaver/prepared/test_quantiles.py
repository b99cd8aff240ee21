"""Quantiles computed piece by piece equal numpy's to the bit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from weaver.prepared import derive
from weaver.prepared.quantiles import order_statistics, percentiles

SHARES = (0, 16, 37.5, 50, 84, 100)
TYPES = ["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "f2"]


def values_of(dtype: str, count: int, seed: int) -> np.ndarray:
    """Values of both signs, with repeats, and with very small and large ones."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        values = np.concatenate([rng.normal(0, 30, count - count // 3), np.zeros(count // 3)])
        values[:: max(count // 5, 1)] = 1e-5
        values = np.where(rng.random(count) < 0.1, -values, values)  # -0.0 too
        return rng.permutation(values).astype(kind)
    low = max(np.iinfo(kind).min, -(2**40))
    return rng.integers(low, min(np.iinfo(kind).max, 2**40), count).astype(kind)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 10, 1001, 4000])
def test_percentiles_equal_those_of_numpy(dtype, count):
    values = values_of(dtype, count, seed=count)
    parts = np.array_split(values, 3)
    quantiles = percentiles(lambda: parts, values.dtype, count, SHARES)
    assert quantiles == [float(value) for value in np.percentile(values, SHARES)]


def test_order_statistics_include_infinity():
    values = np.array([np.inf, -np.inf, 0, 5, -3, np.inf], "f4")
    places = order_statistics(lambda: [values], values.dtype, range(6))
    assert places.tolist() == np.sort(values).tolist()


@pytest.mark.parametrize(
    "kinds", [["f4"], ["f4", "f8"], ["?"], ["i4", "f4"]], ids=["one", "two", "bool", "mixed"]
)
@pytest.mark.parametrize("with_nan", [False, True])
def test_the_standardisation_is_the_same_in_memory_or_not(tmp_path, monkeypatch, kinds, with_nan):
    parts: derive.Parts = []
    with open(tmp_path / "values", "wb") as file:
        for number, kind in enumerate(kinds):
            values = values_of("f8", 1000, seed=number)
            values = values > 0 if kind == "?" else values.astype(kind)
            if with_nan and values.dtype.kind == "f":
                values[:7] = np.nan
                values[7] = np.inf
            parts.append((values.dtype, len(values)))
            values.tofile(file)
    results = []
    for most in (2**27, 0):
        monkeypatch.setattr(derive, "IN_MEMORY_BYTES", most)
        monkeypatch.setattr(derive, "PIECE", 300)
        results.append(derive._center_and_scale(tmp_path / "values", parts, "x", None))
    assert results[0] == results[1]


def test_memory_does_not_grow_with_the_values(tmp_path, monkeypatch):
    """16 MB of values; they were read as a whole, and sorted in a copy."""
    values = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
    values.tofile(tmp_path / "values")
    parts: derive.Parts = [(values.dtype, len(values))]
    expected = np.percentile(values, derive.QUANTILES)
    monkeypatch.setattr(derive, "IN_MEMORY_BYTES", 2**20)
    monkeypatch.setattr(derive, "PIECE", 2**15)
    tracemalloc.start()
    center, _ = derive._center_and_scale(tmp_path / "values", parts, "x", None)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert center == float(expected[1])
    assert most < 6e6
