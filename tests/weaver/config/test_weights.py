"""Weights: an epoch draws jets by them, and histograms follow their method. test_peer.py compares
them with weaver-core's.
"""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from weaver.config import weights
from weaver.config.weights import HistogramMaker, Reweighting, Sampler, jet_weights, make_histograms

BINS = ((0, 1, 2, 4), (0, 10))
FLAT = Reweighting(
    method="flat",
    variables=("x", "y"),
    bins=BINS,
    classes=("a", "b"),
    class_weights=None,
    threshold=10,
    discard=True,
    base=None,
)


def jets(count=4000, seed=1) -> dict[str, np.ndarray]:
    """A falling spectrum of class a (1 in 5 jets) and a rising one of class b, some of both outside
    the bins.
    """
    rng = np.random.default_rng(seed)
    a = rng.random(count) < 0.2
    x = np.where(a, 4.4 * rng.random(count) ** 2, 4.4 - 4.4 * rng.random(count) ** 2).astype("f4")
    return {
        "x": x,
        "y": (10 * rng.random(count)).astype("f4"),
        "a": a.astype("i4"),
        "b": ~a,
        "w": rng.random(count) + 0.5,
    }


def test_flat_reweighting_makes_classes_flat_and_equal():
    columns = jets()
    hists, num_in_bins, total = make_histograms([columns], FLAT)
    result = jet_weights(columns, FLAT, hists)
    assert (num_in_bins, total) == (np.count_nonzero(columns["x"] <= 4), 4000)
    assert result.dtype == np.float32
    assert (result[columns["x"] > 4] == 0).all()
    sums = {
        c: np.histogram(
            columns["x"][columns[c] == 1], [0, 1, 2, 4], weights=result[columns[c] == 1]
        )[0]
        for c in "ab"
    }
    assert sums["a"].sum() == pytest.approx(sums["b"].sum(), rel=1e-4)
    assert sums["b"].max() / sums["b"].min() < 1.1  # the bins of least content set the level
    assert result.max() == pytest.approx(0.9, abs=1e-6)


def test_reference_reweighting_gives_every_class_the_shape_of_the_first():
    columns = jets()
    reference = Reweighting(
        **{**vars(FLAT), "method": "ref", "threshold": 0, "class_weights": (1, 2)}
    )
    result = jet_weights(columns, reference, make_histograms([columns], reference)[0])
    a, b = (
        np.histogram(columns["x"][columns[c] == 1], [0, 1, 2, 4], weights=result[columns[c] == 1])[
            0
        ]
        for c in "ab"
    )
    assert np.allclose(b, 2 * a, rtol=1e-4)


def test_histograms_do_not_depend_on_the_chunks_of_jets():
    columns = jets()
    reweighting = Reweighting(**{**vars(FLAT), "base": "w", "discard": False})
    chunks = [
        {name: values[start : start + 7] for name, values in columns.items()}
        for start in range(0, 4000, 7)
    ]
    whole, split = (
        make_histograms([columns], reweighting)[0],
        make_histograms(chunks, reweighting)[0],
    )
    assert all(np.array_equal(whole[label], split[label]) for label in "ab")
    result = jet_weights(columns, reweighting, whole)
    assert np.percentile(result, 90) == pytest.approx(1, rel=1e-6)


def test_an_empty_class_is_refused():
    columns = jets() | {"a": np.zeros(4000)}
    with pytest.raises(InputError, match="no selected training jet of class a lies in the bins"):
        make_histograms([columns], FLAT)
    assert HistogramMaker(FLAT).contents["a"].shape == (15,)


def test_a_draw_repeats_each_jet_by_its_weight(monkeypatch):
    """n = floor(1 / mean weight) copies for weight 1, as weaver-core; each jet's copies are its
    average rounded up or down.
    """
    monkeypatch.setattr(weights, "BLOCK", 97)
    jet_weight_values = np.array([0, 0.1, 0.25, 0.5, 1, 3, np.nan, -1] * 50, np.float32)
    sampler = Sampler(jet_weight_values)
    mean = np.array([0, 0.1, 0.25, 0.5, 1, 1, 0, 0] * 50) * sampler.copies
    assert (sampler.copies, sampler.size) == (2, round(mean.sum()))
    sample = [sampler.draw(np.random.default_rng([seed, 0])) for seed in range(400)]
    assert {len(positions) for positions in sample} == {sampler.size}
    copies = np.array(
        [np.bincount(positions, minlength=len(jet_weight_values)) for positions in sample]
    )
    assert (copies.min(0) >= np.floor(mean * 0.999)).all()
    assert (copies.max(0) <= np.ceil(mean * 1.001)).all()
    spread = np.sqrt(mean.clip(1e-9) * (np.ceil(mean) - mean + 1e-9) / 400) + 0.02
    assert (np.abs(copies.mean(0) - mean) < 5 * spread).all()


def test_a_draw_depends_only_on_its_random_generator():
    sampler = Sampler(np.linspace(0, 1, 1000, dtype=np.float32))
    first, again, other = (sampler.draw(np.random.default_rng([1, epoch])) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(np.sort(first), np.sort(other))


def test_rare_jets_are_repeated_at_most_ten_times():
    sampler = Sampler(np.full(1000, 0.001, np.float32))
    assert (sampler.copies, sampler.size) == (10, 10)
    with pytest.raises(InputError, match="all weights are 0"):
        Sampler(np.zeros(5, np.float32))
