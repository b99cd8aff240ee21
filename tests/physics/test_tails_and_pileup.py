"""Tails, pile-up, fine bins of eta, and the gain over trees, on jets made of formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from common.records import MetricsRecord
from physics import groups
from physics.metrics import record_of, sample_of
from physics.pileup import against_pileup
from physics.tails import mean_difference, tails
from tests.physics.jets import make_jets, target_of
from tests.records import metrics_record

TREES = 0.05


@pytest.fixture(scope="module")
def sample():
    """A model that knows a tenth of each jet's error, trees that know half of that, and pile-up
    that makes the response rise.
    """
    jets = make_jets(12_000)
    pileup = np.random.default_rng(3).integers(10, 40, 12_000)
    output = 0.1 * target_of(jets) + 0.001 * (pileup - 25)
    return sample_of(
        jets, output, trees=TREES * target_of(jets), pileup=pileup, replicates=60, seed=1
    )


def test_the_gain_over_trees_is_paired(sample):
    record = record_of(sample)
    over = record["gain_over_trees"]
    assert over["value"] == pytest.approx(100 * (1 - 0.9 / (1 - TREES)), abs=1.5)
    # On the same jets the difference is known better than either gain.
    assert over["high"] - over["low"] < record["gain"]["high"] - record["gain"]["low"] + 1
    whole = MetricsRecord.from_json({**metrics_record().as_json(), **record}).bins[-1]
    assert whole.gain_over_trees.value == over["value"]
    assert list(whole.by_calibration()) == ["model", "standard", "trees"]


def test_the_response_rises_with_pileup(sample):
    slices = against_pileup(sample)
    high = [entry for entry in slices if entry["pt_low"] == 110]
    assert len(high) == groups.PILEUP_SLICES
    assert sum(entry["num_jets"] for entry in high) == np.count_nonzero(
        sample.columns["genJetPt"] >= 110
    )
    middles = [entry["middle"] for entry in high]
    assert middles == sorted(middles)
    for low, up in itertools.pairwise(high):
        assert low["model"]["median"]["value"] < up["model"]["median"]["value"]
    first, last = high[0], high[-1]
    rise = last["model"]["median"]["value"] - first["model"]["median"]["value"]
    assert rise == pytest.approx(0.001 * (last["middle"] - first["middle"]), rel=0.5)


def test_without_pileup_there_are_no_slices():
    jets = make_jets(300)
    assert against_pileup(sample_of(jets, target_of(jets), replicates=20)) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pileup_that_is_not_finite_has_no_slices(bad):
    jets = make_jets(300)
    pileup = np.full(300, 20.0)
    pileup[7] = bad
    assert against_pileup(sample_of(jets, target_of(jets), pileup=pileup, replicates=20)) == []


def test_tails_are_counted_by_bin(sample):
    whole = {entry["tail"]: entry for entry in tails(sample) if entry["region"] == "all"}
    far = np.abs(sample.responses["standard"] - 1) > 0.3
    above = sample.columns["genJetPt"] >= 30
    assert whole["tail beyond 30 %"]["standard"]["value"] == pytest.approx(np.mean(far[above]))
    assert whole["tail beyond 30 %"]["difference"]["high"] < 0
    assert set(whole) == {"tail beyond 30 %", "tail beyond a factor 1.5"}


def test_the_difference_of_shares_is_paired():
    first = np.array([True] * 30 + [False] * 970)
    second = np.array([True] * 40 + [False] * 960)
    difference = mean_difference(first, second)
    assert difference["value"] == pytest.approx(-0.01)
    # Ten jets of a thousand differ, all one way: 0.01 ± 1.96 sqrt(0.01 * 0.99 / 1000).
    assert difference["high"] - difference["value"] == pytest.approx(0.00617, abs=1e-4)


def test_the_fine_bins_of_eta_are_contiguous_calorimeter_bins():
    slices = groups.JERC_ETA_SLICES
    assert (len(slices), slices[0][0], slices[-1][1]) == (52, -2.5, 2.5)
    assert all(lower[1] == upper[0] for lower, upper in itertools.pairwise(slices))
    assert (0.0, 0.087) in slices
    assert (-0.087, 0.0) in slices


def test_closure_is_measured_in_fine_bins_of_eta(sample):
    record = record_of(sample)
    by_edges = {(entry["eta_low"], entry["eta_high"]): entry for entry in record["fine_eta"]}
    inside = (sample.columns["genJetEta"] >= 1.93) & (sample.columns["genJetEta"] < 2.043)
    inside &= sample.columns["genJetPt"] >= 60
    assert by_edges[1.93, 2.043]["num_jets"] == np.count_nonzero(inside)
    median = np.median(sample.responses["model"][inside])
    assert by_edges[1.93, 2.043]["model"]["value"] == pytest.approx(median - 1)
