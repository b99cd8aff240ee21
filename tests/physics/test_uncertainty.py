"""Per-jet uncertainties of jets made of formulas, where the truth is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from physics import uncertainty

NAMES = ["median", "q16", "q84"]
Z = 0.994458  # of a normal distribution at 84 %


def known_widths(
    number: int, seed: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Jets whose log(pT_gen / pT) is normal about `shift` with a `sigma` of its own:

    (columns, shift, sigma).
    """
    rng = np.random.default_rng(seed)
    pt = 30 * np.exp(rng.exponential(1.0, number))
    sigma = 0.2 * (pt / 30) ** -0.3 * rng.uniform(0.5, 1.5, number)
    shift = rng.normal(0, 0.05, number)
    columns = {
        "jetPt": pt,
        "genJetPt": pt * np.exp(rng.normal(shift, sigma)),
        "genJetEta": rng.uniform(-2.4, 2.4, number),
    }
    return columns, shift, sigma


def answers(shift: np.ndarray, half: np.ndarray) -> np.ndarray:
    """A network's columns NAMES with this half-width: (N, 3)."""
    return np.stack([shift, shift - half, shift + half], axis=1)


@pytest.fixture(scope="module")
def right() -> dict:
    columns, shift, sigma = known_widths(20_000)
    return uncertainty.measure(columns, answers(shift, Z * sigma), NAMES, replicates=40)


def test_correct_quantiles_have_their_nominal_coverage(right):
    (band,) = right["bands"]
    assert band["nominal"] == 0.68
    assert band["coverage"]["low"] < 0.68 < band["coverage"]["high"]
    assert [entry["level"] for entry in right["below"]] == [0.5, 0.16, 0.84]
    assert all(
        entry["share"]["low"] < entry["level"] < entry["share"]["high"] for entry in right["below"]
    )
    # 95 % intervals of two dozen bins: one or two may miss.
    assert (
        sum(
            not entry["coverage"]["low"] < 0.68 < entry["coverage"]["high"] for entry in right["pt"]
        )
        <= 4
    )
    assert {entry["region"] for entry in right["pt"]} == {"barrel", "endcap"}
    assert json.dumps(right, allow_nan=False)


def test_correct_widths_are_measured_as_predicted(right):
    assert len(right["widths"]) == uncertainty.SLICES
    assert right["widths"][-1]["predicted"] > 3 * right["widths"][0]["predicted"]
    for entry in right["widths"]:
        assert entry["measured"]["value"] == pytest.approx(entry["predicted"], rel=0.08)
    assert right["pull"]["half_width"]["value"] == pytest.approx(1, abs=0.03)
    assert right["pull"]["median"]["value"] == pytest.approx(0, abs=0.03)
    assert right["same_pt"]["ratio"]["value"] == pytest.approx(
        right["same_pt"]["predicted_ratio"], rel=0.08
    )


def test_half_as_large_widths_cover_too_few_jets():
    columns, shift, sigma = known_widths(5000)
    record = uncertainty.measure(columns, answers(shift, Z * sigma / 2), NAMES, replicates=20)
    assert record["bands"][0]["coverage"]["high"] < 0.45  # 38 % of a normal distribution
    assert record["pull"]["half_width"]["low"] > 1.8


def test_a_width_of_pt_alone_does_not_separate_jets_of_the_same_pt():
    columns, shift, _ = known_widths(10_000)
    record = uncertainty.measure(
        columns, answers(shift, 0.2 * (columns["jetPt"] / 30) ** -0.3), NAMES, replicates=40
    )
    assert (
        record["widths"][-1]["measured"]["value"] > 1.5 * record["widths"][0]["measured"]["value"]
    )
    ratio = record["same_pt"]["ratio"]
    assert ratio["low"] < 1.05
    assert ratio["value"] == pytest.approx(1, abs=0.1)


def test_the_wider_and_narrower_halves_have_the_same_spectrum():
    columns, _, sigma = known_widths(20_000)
    half = uncertainty.wider_half(sigma, columns)
    assert np.median(columns["jetPt"][half > 0]) == pytest.approx(
        np.median(columns["jetPt"][half < 0]), rel=0.03
    )
    assert np.median(sigma[half > 0]) > 1.5 * np.median(sigma[half < 0])
    assert np.count_nonzero(half > 0) == np.count_nonzero(half < 0)


@pytest.mark.parametrize(
    ("names", "bands"),
    [
        (["output"], []),
        ([], []),
        (["q16", "q84"], []),
        (["median", "q16", "q90"], []),
        (NAMES, [("q16", "q84", 0.68)]),
        (
            ["median", "q2.5", "q16", "q84", "q97.5"],
            [("q16", "q84", 0.68), ("q2.5", "q97.5", 0.95)],
        ),
    ],
    ids=["one answer", "nothing said", "no median", "not opposite", "one band", "two bands"],
)
def test_bands_follow_from_the_names_of_the_columns(names, bands):
    assert [(band.low, band.high, band.nominal) for band in uncertainty.bands(names)] == bands


def test_levels_follow_from_the_column_names_of_our_networks():
    """The names are those that the project's networks give."""
    from networks.losses import output_columns, quantile_levels

    levels = (0.025, 0.16, 0.84, 0.975)
    assert [
        uncertainty.level_of(name) for name in output_columns("quantile", levels)
    ] == pytest.approx(quantile_levels(levels))
    assert [uncertainty.level_of(name) for name in output_columns("l1", levels)] == [None]


def test_without_quantiles_or_jets_there_is_no_record():
    columns, shift, sigma = known_widths(500)
    assert uncertainty.measure(columns, shift[:, None], ["output"]) is None
    few = {name: values[:40] for name, values in columns.items()}
    assert uncertainty.measure(few, answers(shift, sigma)[:40], NAMES) is None


def test_invalid_answers_are_counted_and_left_out():
    columns, shift, sigma = known_widths(500)
    outputs = answers(shift, sigma)
    outputs[:3, 1] = [np.nan, np.inf, -np.inf]
    outputs[3:5] = outputs[3:5][:, [0, 2, 1]]
    columns["genJetPt"][5] = 0
    record = uncertainty.measure(columns, outputs, NAMES, replicates=20)
    assert (record["num_without_answer"], record["num_jets"]) == (3, 496)
    assert record["bands"][0]["num_crossed"] == 2
    assert json.dumps(record, allow_nan=False)


@given(st.integers(1, 60), st.integers(0, 60))
def test_a_share_lies_in_its_interval_within_0_and_1(number, hits):
    share = uncertainty.share(np.arange(number) < hits)
    assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1


def test_the_interval_of_a_share_equals_a_published_example():
    """Wilson's interval of 81 in 263, the worked example of R.

    G. Newcombe, Stat. Med. 17 (1998) 857.
    """
    share = uncertainty.share(np.arange(263) < 81)
    assert (share["low"], share["high"]) == pytest.approx((0.2553, 0.3662), abs=1e-4)
