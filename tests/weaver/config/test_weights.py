"""Weights: an epoch's draw follows them, histograms do what their method says, and bad sections are
told of. (Equality: test_peer.py.)
"""

from __future__ import annotations

import numpy as np
import pytest

from common.errors import InputError
from weaver.config import weights
from weaver.config.weights import HistogramMaker, Reweighting, Sampler, jet_weights, make_histograms

BINS = ((0, 1, 2, 4), (0, 10))
CHOSEN = Reweighting(
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
    hists, used, total = make_histograms([columns], CHOSEN)
    result = jet_weights(columns, CHOSEN, hists)
    assert (used, total) == (np.count_nonzero(columns["x"] <= 4), 4000)
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
    chosen = Reweighting(
        **{**vars(CHOSEN), "method": "ref", "threshold": 0, "class_weights": (1, 2)}
    )
    result = jet_weights(columns, chosen, make_histograms([columns], chosen)[0])
    a, b = (
        np.histogram(columns["x"][columns[c] == 1], [0, 1, 2, 4], weights=result[columns[c] == 1])[
            0
        ]
        for c in "ab"
    )
    assert np.allclose(b, 2 * a, rtol=1e-4)


def test_chunks_of_jets_do_not_show():
    columns = jets()
    chosen = Reweighting(**{**vars(CHOSEN), "base": "w", "discard": False})
    chunks = [
        {name: values[start : start + 7] for name, values in columns.items()}
        for start in range(0, 4000, 7)
    ]
    whole, split = make_histograms([columns], chosen)[0], make_histograms(chunks, chosen)[0]
    assert all(np.array_equal(whole[label], split[label]) for label in "ab")
    result = jet_weights(columns, chosen, whole)
    assert np.percentile(result, 90) == pytest.approx(1, rel=1e-6)


def test_an_empty_class_is_refused():
    columns = jets() | {"a": np.zeros(4000)}
    with pytest.raises(InputError, match="no selected training jet of class a lies in the bins"):
        make_histograms([columns], CHOSEN)
    assert HistogramMaker(CHOSEN).contents["a"].shape == (15,)


def test_a_draw_gives_each_jet_its_copies(monkeypatch):
    """n = floor(1 / mean weight) copies for weight 1, as weaver-core; each jet's copies are its
    average rounded up or down.
    """
    monkeypatch.setattr(weights, "BLOCK", 97)
    given = np.array([0, 0.1, 0.25, 0.5, 1, 3, np.nan, -1] * 50, np.float32)
    sampler = Sampler(given)
    mean = np.array([0, 0.1, 0.25, 0.5, 1, 1, 0, 0] * 50) * sampler.copies
    assert (sampler.copies, sampler.size) == (2, round(mean.sum()))
    sample = [sampler.draw(np.random.default_rng([seed, 0])) for seed in range(400)]
    assert {len(positions) for positions in sample} == {sampler.size}
    copies = np.array([np.bincount(positions, minlength=len(given)) for positions in sample])
    assert (copies.min(0) >= np.floor(mean * 0.999)).all()
    assert (copies.max(0) <= np.ceil(mean * 1.001)).all()
    spread = np.sqrt(mean.clip(1e-9) * (np.ceil(mean) - mean + 1e-9) / 400) + 0.02
    assert (np.abs(copies.mean(0) - mean) < 5 * spread).all()


def test_a_draw_is_that_of_its_generator():
    sampler = Sampler(np.linspace(0, 1, 1000, dtype=np.float32))
    first, again, other = (sampler.draw(np.random.default_rng([1, epoch])) for epoch in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(np.sort(first), np.sort(other))


def test_rare_jets_are_repeated_at_most_ten_times():
    sampler = Sampler(np.full(1000, 0.001, np.float32))
    assert (sampler.copies, sampler.size) == (10, 10)
    with pytest.raises(InputError, match="all weights are 0"):
        Sampler(np.zeros(5, np.float32))
