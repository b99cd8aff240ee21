import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physics import bootstrap
from physics import response as r
from physics.bootstrap import (
    bootstrap_quantiles,
    counted_quantiles,
    draw,
    interval,
    one_group,
)


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(0, 4)), min_size=1, max_size=40))
def test_counted_quantiles_equal_those_of_a_sample_with_repeats(pairs):
    values, counts = (np.array(column) for column in zip(*sorted(pairs), strict=True))
    sample = np.repeat(values, counts)
    quantiles = counted_quantiles(one_group(values), counts)[0]
    if len(sample):
        assert quantiles == pytest.approx(np.quantile(sample, r.QUANTILES), abs=1e-9)
    else:
        assert np.isnan(quantiles).all()


def test_a_draw_has_as_many_jets_as_the_sample():
    counts = draw(np.random.default_rng(0), 1000)
    assert counts.sum() == 1000
    assert np.mean(counts == 0) == pytest.approx(np.exp(-1), abs=0.05)


def test_row_0_is_the_sample_and_the_seed_determines_the_others():
    values = {"model": np.random.default_rng(0).normal(1, 0.1, 300)}
    groups = {"some": np.arange(300) % 3 > 0}
    first, again, other = (
        bootstrap_quantiles(values, groups, replicates=5, seed=seed)["model"]["some"]
        for seed in (1, 1, 2)
    )
    assert first[0] == pytest.approx(np.quantile(values["model"][groups["some"]], r.QUANTILES))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[1:], other[1:])


def two_calibrations(seed: int, number: int = 400) -> dict[str, np.ndarray]:
    """A standard response of sigma 0.1, and a model that keeps most of the same fluctuations: sigma
    0.0894, gain 10.56 %.
    """
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=(2, number))
    return {"standard": 1 + 0.1 * shared, "model": 1 + 0.1 * (0.8 * shared + 0.4 * own)}


def gain_interval(values: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    quantiles = bootstrap_quantiles(
        values, {"all": np.ones(len(values["model"]), bool)}, replicates=150, seed=seed
    )
    return interval(r.gain(quantiles["model"]["all"], quantiles["standard"]["all"]))


def test_intervals_cover_the_truth_as_often_as_their_level():
    gains, medians = 0, 0
    for seed in range(200):
        values = two_calibrations(seed)
        quantiles = bootstrap_quantiles(
            values, {"all": np.ones(400, bool)}, replicates=150, seed=seed
        )
        gain = interval(r.gain(quantiles["model"]["all"], quantiles["standard"]["all"]))
        median = interval(r.median(quantiles["model"]["all"]))
        gains += gain["low"] <= 100 * (1 - np.sqrt(0.8)) <= gain["high"]
        medians += median["low"] <= 1 <= median["high"]
    # 95 % of 200 is 190 +- 3; the percentile interval of quantiles is a little off at 400 jets.
    assert 180 <= gains <= 199
    assert 180 <= medians <= 199


def test_pairing_narrows_the_interval_of_the_gain():
    values = two_calibrations(1, 2000)
    whole = {"all": np.ones(2000, bool)}
    paired = gain_interval(values, 1)
    seeds = {"model": 1, "standard": 2}
    draws = {
        name: bootstrap_quantiles(values, whole, replicates=150, seed=seed)[name]["all"]
        for name, seed in seeds.items()
    }
    unpaired = interval(r.gain(draws["model"], draws["standard"]))
    assert paired["high"] - paired["low"] < 0.85 * (unpaired["high"] - unpaired["low"])
    assert paired["value"] == unpaired["value"]


def test_overlapping_groups_give_the_quantiles_of_single_groups():
    """Disjoint groups are computed in one sum, which does not change the draws."""
    rng = np.random.default_rng(3)
    values = {"model": rng.normal(1, 0.1, 500)}
    groups = {f"part {number}": np.arange(500) % 4 == number for number in range(4)}
    groups |= {"all": np.ones(500, bool), "first": np.arange(500) < 200, "one": np.arange(500) == 7}
    together = bootstrap_quantiles(values, groups, replicates=20, seed=5)["model"]
    weights = rng.exponential(size=500)
    weighted = bootstrap_quantiles(values, groups, replicates=20, seed=5, weights=weights)["model"]
    for name, mask in groups.items():
        alone = bootstrap_quantiles(values, {name: mask}, replicates=20, seed=5)["model"][name]
        assert np.array_equal(together[name], alone, equal_nan=True)
        alone = bootstrap_quantiles(values, {name: mask}, replicates=20, seed=5, weights=weights)[
            "model"
        ][name]
        assert np.array_equal(weighted[name], alone, equal_nan=True)
    # A jet that a draw leaves out has no quantile there.
    assert np.isnan(together["one"]).any()
    assert together["one"][0] == pytest.approx(values["model"][7])


def test_only_the_sorted_jets_of_one_calibration_are_in_memory():
    number = 100_000
    rng = np.random.default_rng(0)
    values = {name: rng.normal(1, 0.1, number) for name in ("standard", "model", "trees", "old")}
    # five families: each mask overlaps with the others
    groups = {f"group {place}": rng.random(number) < 0.9 for place in range(5)}
    calls = []
    tracemalloc.start()
    bootstrap_quantiles(values, groups, replicates=3, advance=lambda: calls.append(1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / number < 80  # bytes a jet; all families of all calibrations would take 80 alone
    assert len(calls) == 4


@pytest.mark.parametrize("weights", [None, np.random.default_rng(1).exponential(size=3000)])
def test_families_that_are_sorted_in_parts_give_the_same_numbers(monkeypatch, weights):
    rng = np.random.default_rng(4)
    values = {name: rng.normal(1, 0.1, 3000) for name in ("model", "standard")}
    groups = {f"group {place}": rng.random(3000) < 0.8 for place in range(5)}
    options = {"replicates": 6, "seed": 2, "weights": weights}
    whole = bootstrap_quantiles(values, groups, **options)
    calls = []
    # two families have up to 2 * 3000 jets of 4 bytes; the third part has one family
    monkeypatch.setattr(bootstrap, "FAMILIES_BYTES", 2 * 3000 * 4)
    parts = bootstrap_quantiles(values, groups, advance=lambda: calls.append(1), **options)
    for name in values:
        for group in groups:
            assert np.array_equal(parts[name][group], whole[name][group])
    assert len(calls) == 7


def test_only_one_part_of_the_families_is_in_memory(monkeypatch):
    number = 100_000
    rng = np.random.default_rng(0)
    values = {"model": rng.normal(1, 0.1, number)}
    groups = {f"group {place}": rng.random(number) < 0.9 for place in range(20)}

    def peak() -> int:
        tracemalloc.start()
        bootstrap_quantiles(values, groups, replicates=1)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    all_families = peak()
    monkeypatch.setattr(bootstrap, "FAMILIES_BYTES", 10 * number)  # two families and a half
    # 20 families have 72 bytes a jet, two of them 7.
    assert peak() < all_families - 60 * number
