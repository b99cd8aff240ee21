import json
import time

import numpy as np
import pytest

from physics.gate import gate
from physics.groups import MIN_JETS
from physics.interval import interval_text, percent
from physics.metrics import measure
from tests.physics.jets import make_jets, target_of


def no_nan(value) -> bool:
    return bool(json.dumps(value, allow_nan=False))


def test_a_good_model_passes_and_its_gain_is_the_one_built_in(good_metrics):
    assert gate(good_metrics) == (True, [])
    assert good_metrics["gain"]["value"] == pytest.approx(10, abs=1)
    assert good_metrics["gain"]["low"] > 8
    assert no_nan(good_metrics)


def test_a_perfect_model_passes(jets):
    metrics = measure(jets, target_of(jets), replicates=50)
    assert gate(metrics) == (True, [])
    assert metrics["gain"]["value"] == pytest.approx(100)
    assert metrics["num_far"]["model"] == 0
    assert metrics["flavour"]["regions"]["barrel"]["reduction"]["value"] == pytest.approx(
        100, abs=0.01
    )


def test_doing_nothing_passes_at_0_and_fails_when_more_is_asked(jets):
    metrics = measure(jets, np.zeros(len(jets["jetPt"])), replicates=50)
    assert metrics["gain"] == {"value": 0, "low": 0, "high": 0}
    assert gate(metrics) == (True, [])
    passed, reasons = gate(metrics, min_improvement=1)
    assert not passed
    assert "+1 %" in reasons[0]


def test_a_model_scaled_by_5_per_cent_fails_closure_and_nothing_else(jets, good_output):
    metrics = measure(jets, good_output + np.log(1.05), replicates=100)
    passed, reasons = gate(metrics)
    assert not passed
    assert all("closure fails" in reason for reason in reasons)
    assert metrics["gain"]["value"] == pytest.approx(10, abs=1)


def test_shuffled_answers_fail_the_gain(jets, good_output):
    shuffled = np.random.default_rng(1).permutation(5 * good_output)
    passed, reasons = gate(measure(jets, shuffled, replicates=100))
    assert not passed
    assert "resolution gain" in reasons[0]


def test_a_trend_that_cancels_over_all_jets_fails_closure_in_its_bins():
    jets = make_jets(40_000)
    tilt = 0.05 * np.sign(np.log(jets["genJetPt"] / 150))
    passed, reasons = gate(measure(jets, 0.1 * target_of(jets) + tilt, replicates=50))
    assert not passed
    assert any("barrel jets at 80-110 GeV" in reason for reason in reasons)


def test_jets_without_an_answer_are_named_and_left_out(jets, good_output):
    output = good_output.copy()
    output[:3] = [np.nan, np.inf, 1e4]
    metrics = measure(jets, output, replicates=50)
    passed, reasons = gate(metrics)
    assert not passed
    assert reasons == ["3 of 6,000 jets got no finite answer from the model"]
    assert metrics["num_measured"] == 5997
    assert no_nan(metrics)


@pytest.mark.parametrize("number", [0, 1, MIN_JETS - 1], ids=["none", "one", "one too few"])
def test_too_few_jets_measure_nothing_and_do_not_pass(number):
    jets = make_jets(number)
    metrics = measure(jets, np.zeros(number), replicates=20)
    passed, reasons = gate(metrics)
    assert not passed
    assert any("cannot be measured" in reason for reason in reasons)
    assert metrics["bins"] == []
    assert no_nan(metrics)


def test_bins_with_few_jets_are_left_out(jets):
    few = {name: column[:300] for name, column in jets.items()}
    metrics = measure(few, np.zeros(300), replicates=20)
    assert metrics["bins"]
    assert min(record["num_jets"] for record in metrics["bins"] + metrics["curves"]) >= MIN_JETS


def test_without_flavours_the_rest_is_measured(jets, good_output):
    columns = {name: jets[name] for name in ("jetPt", "genJetPt", "genJetEta")}
    metrics = measure(columns, good_output, replicates=20)
    assert metrics["flavour"]["regions"] == {}
    assert gate(metrics)[0]


def test_the_flavour_gap_is_the_one_built_in():
    jets = make_jets(60_000)
    entry = measure(jets, np.zeros(60_000), replicates=50)["flavour"]["regions"]["barrel"]
    gap = entry["uds_minus_g"]["standard"]
    assert gap["low"] < 0.02 < gap["high"]
    assert gap["value"] == pytest.approx(0.02, abs=0.005)
    assert entry["spread"]["standard"]["value"] == pytest.approx(abs(gap["value"]))


def test_uncorrected_is_compared_where_the_column_is_there(jets, good_output):
    metrics = measure(jets | {"jetRawPt": 0.9 * jets["jetPt"]}, good_output, replicates=20)
    record = metrics["bins"][-1]
    assert record["uncorrected"]["median"]["value"] == pytest.approx(
        0.9 * record["standard"]["median"]["value"]
    )


def test_the_same_seed_gives_the_same_numbers(jets, good_output, good_metrics):
    assert measure(jets, good_output, replicates=100, seed=1) == good_metrics


def test_a_hundred_thousand_jets_take_seconds():
    jets = make_jets(100_000)
    started = time.monotonic()
    measure(jets, 0.1 * target_of(jets), replicates=50)
    # about 0.5 s on an idle core; 500 draws are ten times that
    assert time.monotonic() - started < 10


def test_percent():
    assert percent({"value": 4.12, "low": 3.21, "high": 5.02}) == "+4.1 % [3.2, 5.0]"
    assert (
        percent({"value": -0.0141, "low": -0.02, "high": -0.01}, 100, 2) == "-1.41 % [-2.00, -1.00]"
    )


def test_an_interval_without_unit_or_plus():
    pull = {"value": 0.9812, "low": 0.95, "high": 1.02}
    assert interval_text(pull, digits=3, sign="") == "0.981 [0.950, 1.020]"
    assert interval_text(pull, unit="GeV", digits=0) == "+1 GeV [1, 1]"
