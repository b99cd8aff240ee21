"""Any jets give numbers that JSON can represent; without them the gate does not pass."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.measurements import GateSettings
from common.records import MetricsRecord, plain
from physics import uncertainty
from physics.gate import judge
from physics.metrics import record_of, sample_of
from physics.residual_effect import residual_effect
from reporting.headline import headline
from reporting.report import Documents, figures_of, render
from tests.physics.jets import make_jets, measure_and_judge, quantiles_of, target_of
from tests.records import metrics_record

BAD_NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-300, 1e30, 1e300)

OBSERVERS = (
    "jetPt",
    "genJetPt",
    "genJetEta",
    "partonFlav",
    "hadronFlav",
    "jetRawPt",
    "rhoAll",
    "PV_npvsGood",
    "eventWeight",
)

RESPONSES = ("as made", "all the same", "two values", "of ten jets", "perfect")
WEIGHTS = ("none", "equal", "falling", "one heavy", "zero", "negative", "tiny")


def any_jets(number: int, seed: int, responses: str, weights: str, region: str) -> dict:
    """Jets with every observer; their responses may have ties, and their weights may be
    unusable.
    """
    rng = np.random.default_rng(seed)
    jets = make_jets(number, seed)
    response = jets["jetPt"] / jets["genJetPt"]
    jets["jetPt"] = (
        jets["genJetPt"]
        * {
            "as made": response,
            "all the same": np.full(number, 1.1),
            "two values": rng.choice([0.9, 1.1], number),
            "of ten jets": np.resize(response[:10], number),
            "perfect": np.ones(number),
        }[responses]
    )
    low, high = {"both": (0, 2.5), "barrel": (0, 1.3), "endcap": (1.3, 2.5)}[region]
    jets["genJetEta"] = rng.uniform(low, high, number) * rng.choice([-1, 1], number)
    jets["jetRawPt"] = 0.9 * jets["jetPt"]
    jets["rhoAll"] = rng.uniform(5, 35, number)
    jets["PV_npvsGood"] = rng.integers(1, 40, number)
    heavy = np.full(number, 1e-12)
    heavy[:1] = 1.0
    values = {
        "equal": np.ones(number),
        "falling": jets["genJetPt"] ** -5.0,
        "one heavy": heavy,
        "zero": np.zeros(number),
        "negative": -rng.random(number),
        "tiny": np.exp(rng.uniform(-740, 700, number)),
    }
    if weights in values:
        jets["eventWeight"] = values[weights]
    return jets


def metrics_of(jets: dict, answers: np.ndarray, **changes) -> tuple[MetricsRecord, list[str]]:
    """metrics.json of a quantile network's answers (N, 3), and why the gate refuses the model."""
    names = ["median", "q16", "q84"]
    values_of_settings = {"min_improvement": 0.0, "max_closure": 0.01, "seed": 1} | changes
    sample = sample_of(jets, answers[:, 0], replicates=20, seed=1)
    widths = uncertainty.measure(jets, answers, names, replicates=20) or {}
    gate, reasons = judge(sample, GateSettings(**values_of_settings), widths)
    content = {
        **plain(metrics_record()),
        **record_of(sample),
        "gate": gate,
        "uncertainty": widths or None,
        "residual": residual_effect(sample, answers[:, 0] - 0.01),
        "passed": not reasons,
        "reasons": reasons,
    }
    json.dumps(content, allow_nan=False)
    return MetricsRecord.from_json(content), reasons


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_jets_give_finite_numbers_or_a_reason(data):
    number = data.draw(st.sampled_from([0, 1, 2, 49, 60, 150, 400, 1500]))
    jets = any_jets(
        number,
        data.draw(st.integers(0, 5)),
        data.draw(st.sampled_from(RESPONSES)),
        data.draw(st.sampled_from(WEIGHTS)),
        data.draw(st.sampled_from(["both", "barrel", "endcap"])),
    )
    share = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    answers = quantiles_of(jets, data.draw(st.sampled_from([0.0, 0.1, 1.0])) * target_of(jets))
    rng = np.random.default_rng(data.draw(st.integers(0, 3)))
    # A share of the values of one observer or of the answers is bad.
    column_with_bad_values = data.draw(
        st.sampled_from(["none", "answers", "quantiles", *OBSERVERS])
    )
    bad = data.draw(st.sampled_from(BAD_NUMBERS))
    hit = rng.random(number) < share
    if column_with_bad_values == "answers":
        answers[hit] = bad
    elif column_with_bad_values == "quantiles":
        answers[hit, 1:] = bad
    elif column_with_bad_values in jets:
        jets[column_with_bad_values] = np.where(
            hit, bad, np.asarray(jets[column_with_bad_values], dtype=np.float64)
        )
    if data.draw(st.booleans()):
        del jets["partonFlav"]

    gate = data.draw(st.sampled_from(["default", "strict"]))
    metrics, reasons = metrics_of(jets, answers, gate=gate)
    assert render(Documents(metrics=metrics), [])
    assert all(np.isfinite(value) for value in headline(metrics).values())
    num_accounted = metrics.num_measured + sum(metrics.left_out.values())
    assert num_accounted == number == metrics.num_jets
    # The gate passes only with measured quantities.
    if not reasons:
        assert metrics.gain is not None
        assert metrics.gate.checks[0].quantity == "gain"
        assert {"closure", "resolution"} <= {check.quantity for check in metrics.gate.checks}
        assert metrics.num_without_answer == 0


@pytest.fixture(scope="module")
def some_jets() -> dict:
    return any_jets(1500, 1, "as made", "falling", "both")


def test_without_jets_above_30_gev_the_gate_refuses(some_jets):
    jets = some_jets | {"genJetPt": np.full(1500, 25.0)}
    _, reasons = metrics_of(jets, quantiles_of(jets, 0.1 * target_of(jets)))
    assert any("gain cannot be measured" in reason for reason in reasons)
    assert any("closure cannot be measured" in reason for reason in reasons)


@pytest.mark.parametrize("region", ["barrel", "endcap"])
def test_an_empty_region_is_refused_unless_gate_regions_excludes_it(region):
    jets = any_jets(3000, 2, "as made", "none", region)
    answers = quantiles_of(jets, 0.1 * target_of(jets))
    empty = {"barrel": "endcap", "endcap": "barrel"}[region]
    _, reasons = metrics_of(jets, answers, max_coverage_points=100.0)
    (reason,) = reasons
    assert f"{empty} jets above 30 GeV: 0 test jets" in reason
    assert "--gate-regions" in reason
    _, reasons = metrics_of(jets, answers, max_coverage_points=100.0, gate_regions=region)
    assert reasons == []


@pytest.mark.parametrize("bad", [0.0, np.nan, -1.0])
def test_jets_without_a_momentum_do_not_count_as_missing_answers(bad):
    jets = make_jets(3000)
    answers = quantiles_of(jets, 0.1 * target_of(jets))
    jets["jetPt"] = np.where(np.arange(3000) < 7, bad, jets["jetPt"])
    metrics, reasons = metrics_of(jets, answers)
    assert not any("no finite" in reason for reason in reasons)
    assert metrics.left_out == {"jetPt is not finite and positive": 7}
    assert metrics.uncertainty.num_without_answer == 0


def test_a_sample_of_one_flavour_has_no_flavour_spread(some_jets):
    jets = some_jets | {"partonFlav": np.full(1500, 21)}
    metrics, _ = measure_and_judge(jets, 0.1 * target_of(jets), replicates=20)
    assert metrics["flavour"]["regions"] == {}
    left_out = [entry for entry in metrics["unmeasured"] if entry["quantity"] == "flavour spread"]
    assert any("b is left out: 0 jets" in entry["reason"] for entry in left_out)
    assert any(entry["quantity"] == "flavour spread" for entry in metrics["gate"]["unmeasured"])


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (np.zeros(1500), "1,500 values that are zero or negative"),
        (-np.ones(1500), "1,500 values that are zero or negative"),
        (np.where(np.arange(1500) < 3, np.nan, 1.0), "3 values that are not finite"),
        (np.ones(1500), "equal"),
        (np.where(np.arange(1500) < 9, 1.0, 1e-9), "effective jets, fewer than 50"),
    ],
    ids=["zero", "negative", "NaN", "equal", "of nine jets"],
)
def test_unusable_weights_are_reported_with_a_reason(some_jets, weights, reason):
    jets = some_jets | {"eventWeight": weights}
    metrics, _ = measure_and_judge(jets, 0.1 * target_of(jets), replicates=20)
    assert metrics["weighted"] is None or metrics["weighted"]["gain"] is None
    whole = [
        entry
        for entry in metrics["unmeasured"]
        if (entry["quantity"], entry["where"]) == ("weighted gain", "jets above 30 GeV")
    ]
    assert [reason in entry["reason"] for entry in whole] == [True]


def test_a_weighted_gain_that_is_too_uncertain_is_left_out():
    jets = make_jets(3000) | {"eventWeight": make_jets(3000)["genJetPt"] ** -2.0}
    output = 0.1 * target_of(jets) + np.random.default_rng(1).normal(0, 0.1, 3000)
    metrics, _ = measure_and_judge(jets, output)
    weighted = metrics["weighted"]
    for entry in weighted["bins"]:
        low, high = entry["gain"]["low"], entry["gain"]["high"]
        assert high - low <= 10 or low > 0 or high < 0
    assert weighted["gain"] is None
    places = [
        entry["where"] for entry in metrics["unmeasured"] if "too uncertain" in entry["reason"]
    ]
    assert "jets above 30 GeV" in places


def test_effective_jets_are_counted_in_each_bin():
    """A weight of 3 and of 1 in equal parts: 80 % of the jets; below 100 GeV all weigh the same."""
    jets = make_jets(6000)
    heavy = (np.arange(6000) % 2 == 0) & (jets["genJetPt"] >= 100)
    jets["eventWeight"] = np.where(heavy, 3.0, 1.0)
    metrics, _ = measure_and_judge(jets, 0.1 * target_of(jets))
    of_bin = {(entry["region"], entry["pt_range"]): entry for entry in metrics["weighted"]["bins"]}
    low, high = of_bin["barrel", "30-100"], of_bin["barrel", "100-300"]
    assert low["effective_jets"] == pytest.approx(low["num_jets"])
    assert high["effective_jets"] == pytest.approx(0.8 * high["num_jets"], rel=0.02)
    assert metrics["weighted"]["effective_jets"] == of_bin["all", ">30"]["effective_jets"]


@pytest.mark.parametrize("name", ["genJetPt", "genJetEta", "jetPt"])
def test_nan_in_an_observer_is_counted_with_its_name(some_jets, name):
    jets = some_jets | {name: np.where(np.arange(1500) < 7, np.nan, some_jets[name])}
    metrics, _ = measure_and_judge(jets, np.zeros(1500), replicates=20)
    ((cause, number),) = metrics["left_out"].items()
    assert name in cause
    assert number == 7
    assert metrics["num_without_answer"] == 0


def test_nan_in_a_column_of_the_report_drops_no_jet(some_jets):
    with_nan = np.where(np.arange(1500) < 7, np.nan, 1.0)
    jets = some_jets | {"jetRawPt": with_nan, "rhoAll": with_nan}
    metrics, _ = measure_and_judge(jets, np.zeros(1500), replicates=20)
    assert metrics["num_measured"] == 1500
    assert "uncorrected" not in metrics["num_far"]
    assert {"PV_npvsGood"} == set(metrics["residuals"])
    reasons = [entry["reason"] for entry in metrics["unmeasured"]]
    assert any("jetRawPt" in reason for reason in reasons)
    assert any(entry["where"] == "slices of rhoAll" for entry in metrics["unmeasured"])


def test_nan_quantiles_do_not_pass(some_jets):
    answers = quantiles_of(some_jets, 0.1 * target_of(some_jets))
    answers[:, 1:] = np.nan
    _, reasons = metrics_of(some_jets, answers)
    assert any("coverage cannot be measured" in reason for reason in reasons)
    answers = quantiles_of(some_jets, 0.1 * target_of(some_jets))
    answers[:5, 2] = np.nan
    _, reasons = metrics_of(some_jets, answers)
    assert any("5 of 1,500 jets got no finite uncertainty" in reason for reason in reasons)


@pytest.mark.slow
@pytest.mark.parametrize("responses", RESPONSES)
def test_figures_can_be_drawn_for_any_responses(responses):
    jets = any_jets(400, 1, responses, "one heavy", "both")
    answers = quantiles_of(jets, target_of(jets))
    answers[:200, 1:] = answers[:200, :1]
    metrics, _ = metrics_of(jets, answers)
    documents = Documents(metrics=metrics)
    assert render(documents, list(figures_of(documents)))
