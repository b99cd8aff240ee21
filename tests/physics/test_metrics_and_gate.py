import json
import time

import numpy as np
import pytest

from physics.groups import MIN_JETS
from physics.interval import interval_text, percent
from physics.metrics import measure
from tests.physics.jets import make_jets, measure_and_judge, target_of


def no_nan(value) -> bool:
    return bool(json.dumps(value, allow_nan=False))


def test_a_good_model_passes_with_its_known_gain(jets, good_output):
    metrics, reasons = measure_and_judge(jets, good_output, replicates=100)
    assert reasons == []
    assert metrics["gain"]["value"] == pytest.approx(10, abs=1)
    assert metrics["gain"]["low"] > 8
    assert no_nan(metrics)


def test_a_perfect_model_passes(jets):
    metrics, reasons = measure_and_judge(jets, target_of(jets))
    assert reasons == []
    assert metrics["gain"]["value"] == pytest.approx(100)
    assert metrics["num_far"]["model"] == 0
    spread = metrics["flavour"]["regions"]["barrel"]["spread"]["model"]
    assert spread["value"] == pytest.approx(0, abs=1e-9)


def test_doing_nothing_passes_with_min_improvement_0_and_fails_above(jets):
    nothing = np.zeros(len(jets["jetPt"]))
    metrics, reasons = measure_and_judge(jets, nothing)
    assert metrics["gain"] == {"value": 0, "low": 0, "high": 0}
    assert reasons == []
    _, (reason,) = measure_and_judge(jets, nothing, min_improvement=1)
    assert "+1 %" in reason
    _, (reason, *_) = measure_and_judge(jets, nothing, gate="strict")
    assert "gain" in reason


def test_a_model_scaled_by_5_percent_fails_only_closure(jets, good_output):
    metrics, reasons = measure_and_judge(jets, good_output + np.log(1.05), replicates=100)
    quantities = {check["quantity"] for check in metrics["gate"]["checks"] if not check["passed"]}
    assert quantities == {"closure"}
    assert reasons
    assert all("closure fails" in reason for reason in reasons)
    assert metrics["gain"]["value"] == pytest.approx(10, abs=1)


def test_shuffled_answers_fail_the_gain(jets, good_output):
    shuffled = np.random.default_rng(1).permutation(5 * good_output)
    _, reasons = measure_and_judge(jets, shuffled)
    assert "resolution gain" in reasons[0]


def test_a_trend_that_cancels_over_all_jets_fails_closure_in_its_bins():
    jets = make_jets(40_000)
    tilt = 0.05 * np.sign(np.log(jets["genJetPt"] / 150))
    metrics, reasons = measure_and_judge(jets, 0.1 * target_of(jets) + tilt)
    assert reasons
    places = {check["where"] for check in metrics["gate"]["checks"] if not check["passed"]}
    assert {"barrel jets at 80-110 GeV", "endcap jets at 200-300 GeV"} <= places


def test_jets_without_an_answer_are_counted_and_left_out(jets, good_output):
    output = good_output.copy()
    # Infinite, beyond the range of a served model's answers, or a momentum of zero.
    output[:5] = [np.nan, np.inf, 1e4, 90.0, -1e4]
    metrics, reasons = measure_and_judge(jets, output)
    assert reasons == ["5 of 6,000 jets got no finite answer from the model"]
    assert metrics["num_measured"] == 5995
    assert metrics["left_out"] == {"the model has no finite answer": 5}
    assert no_nan(metrics)


@pytest.mark.parametrize("number", [0, 1, MIN_JETS - 1], ids=["none", "one", "one too few"])
def test_too_few_jets_give_no_measurement_and_do_not_pass(number):
    jets = make_jets(number)
    metrics, reasons = measure_and_judge(jets, np.zeros(number), replicates=20)
    assert any("gain cannot be measured" in reason for reason in reasons)
    assert any("closure cannot be measured" in reason for reason in reasons)
    assert metrics["bins"] == []
    assert no_nan(metrics)


def test_bins_with_few_jets_are_left_out(jets):
    few = {name: column[:300] for name, column in jets.items()}
    metrics = measure(few, np.zeros(300), replicates=20)
    assert metrics["bins"]
    assert min(record["num_jets"] for record in metrics["bins"] + metrics["curves"]) >= MIN_JETS


def test_without_flavours_the_rest_is_measured(jets, good_output):
    columns = {name: jets[name] for name in ("jetPt", "genJetPt", "genJetEta")}
    metrics, reasons = measure_and_judge(columns, good_output, replicates=20)
    assert metrics["flavour"]["regions"] == {}
    assert reasons == []
    assert "flavour spread" in {entry["quantity"] for entry in metrics["gate"]["unmeasured"]}
    _, reasons = measure_and_judge(columns, good_output, replicates=20, gate="strict")
    assert any("flavour spread cannot be measured" in reason for reason in reasons)


def test_the_flavour_gap_has_its_known_value():
    jets = make_jets(60_000)
    entry = measure(jets, np.zeros(60_000), replicates=50)["flavour"]["regions"]["barrel"]
    gap = entry["uds_minus_g"]["standard"]
    assert gap["low"] < 0.02 < gap["high"]
    assert gap["value"] == pytest.approx(0.02, abs=0.005)
    # The standard deviation of two numbers is their difference over sqrt(2).
    spread = entry["spread"]["standard"]["value"]
    assert spread == pytest.approx(abs(gap["value"]) / np.sqrt(2), rel=0.05)


def test_uncorrected_jets_are_compared_where_their_column_exists(jets, good_output):
    metrics = measure(jets | {"jetRawPt": 0.9 * jets["jetPt"]}, good_output, replicates=20)
    record = metrics["bins"][-1]
    assert record["uncorrected"]["median"]["value"] == pytest.approx(
        0.9 * record["standard"]["median"]["value"]
    )


def test_the_same_seed_gives_the_same_numbers(jets, good_output, good_metrics):
    assert measure_and_judge(jets, good_output, replicates=100)[0] == good_metrics


def test_a_hundred_thousand_jets_are_measured_in_seconds():
    jets = make_jets(100_000)
    start = time.monotonic()
    measure(jets, 0.1 * target_of(jets), replicates=50)
    # about 0.5 s on an idle core; 500 draws are ten times that
    assert time.monotonic() - start < 10


def test_percent_formats_a_value_with_its_interval():
    assert percent({"value": 4.12, "low": 3.21, "high": 5.02}) == "+4.1 % [3.2, 5.0]"
    assert (
        percent({"value": -0.0141, "low": -0.02, "high": -0.01}, 100, 2) == "-1.41 % [-2.00, -1.00]"
    )


def test_interval_text_takes_a_unit_and_a_sign():
    pull = {"value": 0.9812, "low": 0.95, "high": 1.02}
    assert interval_text(pull, digits=3, sign="") == "0.981 [0.950, 1.020]"
    assert interval_text(pull, unit="GeV", digits=0) == "+1 GeV [1, 1]"
