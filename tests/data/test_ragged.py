from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import ragged


def test_ranges_are_concatenated():
    assert ragged.ranges(np.array([5, 0, 9]), np.array([2, 3, 0])).tolist() == [5, 6, 0, 1, 2]


def test_pairs_are_all_combinations_within_an_event():
    first, second = ragged.pairs(np.array([2, 0]), np.array([0, 0, 1, 2]), 3)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 3), (1, 0), (1, 1)]


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-10, 10)), max_size=30))
def test_first_and_rank_agree_with_plain_python(members):
    group = np.array([g for g, _ in members], dtype=np.int64)
    order = np.array([o for _, o in members], dtype=float)
    first, rank = ragged.first_in_group(group, order, 6), ragged.rank_in_group(group, order)
    for number in range(6):
        mine = [i for i, g in enumerate(group) if g == number]
        expected = sorted(mine, key=lambda i: (order[i], i))
        assert first[number] == (expected[0] if expected else -1)
        assert sorted(mine, key=lambda i: rank[i]) == expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(3.0, -3.0, 6 - 2 * np.pi), (-3.0, 3.0, 2 * np.pi - 6), (0.1, 0.3, -0.2)],
)
def test_delta_phi_wraps_at_pi(a, b, expected):
    assert ragged.delta_phi(np.array(a), b) == pytest.approx(expected)
