"""The two-stage shuffle: each jet once, from all over the data, in long reads."""

from __future__ import annotations

import numpy as np
import pytest

from weaver.feed import order
from weaver.feed.order import BlockShuffle, InFileOrder


@pytest.mark.parametrize(
    ("count", "total", "block"),
    [(10_000, 10_000, 7), (9_999, 10_000, 16), (300, 10_000, 1), (5, 5, 10), (1, 1, 1)],
)
def test_each_jet_comes_once_for_any_sequence_of_parts(count, total, block):
    whole = BlockShuffle(count, total, key=[1, 2], block=block).part(0, count)
    assert np.array_equal(np.sort(whole), InFileOrder(count, total).part(0, count))
    pieces = BlockShuffle(count, total, key=[1, 2], block=block)
    assert np.array_equal(
        np.concatenate([pieces.part(start, start + 333) for start in range(0, count, 333)]), whole
    )
    assert np.array_equal(
        BlockShuffle(count, total, key=[1, 2], block=block).part(count // 2, count),
        whole[count // 2 :],
    )


def test_the_key_determines_the_order():
    first, again, other = (
        BlockShuffle(5000, 5000, key=key, block=10).part(0, 5000)
        for key in ([1, 0], [1, 0], [1, 1])
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_batches_mix_jets_from_all_over_the_data():
    """Of 100 files of 10,000 jets, a batch of 500 holds jets of nearly all, no more of one than
    chance gives.
    """
    shuffle = BlockShuffle(1_000_000, 1_000_000, key=[1, 0], block=100)
    for start in range(0, 1_000_000, 100_000):
        files = np.bincount(shuffle.part(start, start + 500) // 10_000, minlength=100)
        assert (files > 0).sum() > 75
        assert files.max() < 25


def test_each_range_of_a_round_is_requested_once_before_its_jets(monkeypatch):
    monkeypatch.setattr(order, "ROUND", 10)
    ranges: list[tuple[int, int]] = []
    shuffle = BlockShuffle(
        1000, 2000, key=[1], block=8, read_ahead=lambda start, stop: ranges.append((start, stop))
    )
    for start in range(0, 1000, 50):
        jets = shuffle.part(start, start + 50)
        is_requested = np.zeros(2000, bool)
        for first, end in ranges:
            is_requested[first:end] = True
        assert is_requested[jets].all()
    assert len(ranges) == len(set(ranges)) == 125


@pytest.mark.parametrize(
    ("nbytes", "limit", "block_bytes"),
    [
        pytest.param(2**30, None, 0, id="small: as a whole"),
        pytest.param(2**33, None, 2**22, id="large"),
        pytest.param(2**33, 12 * 2**30, 2**22, id="large in the default pod"),
        pytest.param(2**30, 12 * 2**30, 0, id="small in the default pod"),
        pytest.param(2**30, 2**30, 2**30 / 6 / 512, id="larger than a small container's cache"),
        pytest.param(2**33, 600 * 10**6, 10**8 / 512, id="large in a small container"),
        pytest.param(2**33, 10**8, 2**16, id="blocks have a least size"),
    ],
)
def test_two_rounds_fit_the_memory_of_a_container(nbytes, limit, block_bytes):
    jets = nbytes // 2048
    block = order.block_of(jets, nbytes, limit)
    assert block * 2048 == pytest.approx(block_bytes, rel=0.01)
    if limit and block_bytes > 2**16:
        assert 2 * order.ROUND * block * 2048 <= limit / 5
