"""The gate on 20,000 test jets: a good model passes, a harmful one is refused for its harm."""

from __future__ import annotations

import functools

import pytest

from common.measurements import GateSettings
from physics import uncertainty
from physics.gate import judge
from physics.metrics import Record, sample_of
from tests.physics.gate_models import (
    HARMS,
    MORE_HARMS,
    NAMES,
    Harm,
    Model,
    all_jets,
    good_model,
    interval_times,
)

NUM_JETS, COPIES, MIN_CORRECT = 20_000, 20, 19


@functools.cache
def copy_of_good(number: int) -> Model:
    """Bootstrap copy `number` of the test jets and the good model's answers."""
    return good(NUM_JETS).copy(number)


@functools.cache
def good(num_jets: int) -> Model:
    return good_model(num_jets, seed=1)


def verdict(model: Model, replicates: int = 60, **settings) -> tuple[Record, list[str]]:
    """The gate's record and its reasons to refuse the model; `settings` replace the defaults."""
    values_of_settings = {"min_improvement": 0.0, "max_closure": 0.01, "seed": 1} | settings
    sample = sample_of(model.jets, model.answers[:, 0], replicates=replicates, seed=1)
    widths = uncertainty.measure(model.jets, model.answers, NAMES, replicates=2)
    return judge(sample, GateSettings(**values_of_settings), widths or {})


def failed_quantities(gate: Record) -> set[str]:
    return {check["quantity"] for check in gate["checks"] if not check["passed"]}


def is_refused_for_its_harm(model: Model, harm: Harm) -> bool:
    """Whether the harm is refused, with one of its quantities among the reasons."""
    gate, reasons = verdict(harm.apply(model), gate=harm.gate)
    names = [name for name in harm.reasons if name in failed_quantities(gate)]
    if not reasons or not names:
        return False
    # Each sentence names its quantity.
    text = " ".join(reasons)
    return any(name in text for name in names)


def test_the_good_model_gains_as_much_as_a_network():
    gate, reasons = verdict(good(NUM_JETS))
    assert reasons == []
    gain = gate["checks"][0]
    assert gain["quantity"] == "gain"
    assert 10 < gain["value"] < 15
    assert gate["num_tests"] == len(gate["checks"]) - 1
    assert gate["level"] == pytest.approx(1 - 0.05 / gate["num_tests"])


@pytest.mark.slow
def test_the_good_model_passes_in_bootstrap_copies():
    passes = [not verdict(copy_of_good(number))[1] for number in range(COPIES)]
    assert sum(passes) >= MIN_CORRECT


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_good_model_passes(number):
    assert verdict(copy_of_good(number))[1] == []


@pytest.mark.parametrize("harm", [*HARMS.values(), *MORE_HARMS.values()], ids=[*HARMS, *MORE_HARMS])
def test_a_harmful_model_is_refused_for_its_harm(harm):
    assert is_refused_for_its_harm(copy_of_good(0), harm)


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_harmful_model_is_refused_in_bootstrap_copies(harm):
    refusals = [is_refused_for_its_harm(copy_of_good(number), harm) for number in range(COPIES)]
    assert sum(refusals) >= MIN_CORRECT


@pytest.mark.slow
@pytest.mark.parametrize("harm", MORE_HARMS.values(), ids=MORE_HARMS)
def test_other_harmful_models_are_refused_in_bootstrap_copies(harm):
    assert all(is_refused_for_its_harm(copy_of_good(number), harm) for number in range(1, 5))


def test_the_standard_jec_itself_passes_the_default_gate():
    unchanged = HARMS["does nothing"].apply(copy_of_good(0))
    assert verdict(unchanged)[1] == []


@pytest.mark.parametrize("num_jets", [800, 2000, 5000])
def test_a_small_test_set_makes_the_gate_milder(num_jets):
    for seed in range(3):
        gate, reasons = verdict(good_model(num_jets, seed))
        assert reasons == []
        assert gate["unmeasured"]


def test_the_strict_gate_refuses_limits_that_few_jets_cannot_prove():
    """20,000 jets do not show that each bin closes within 1 %; wide limits are met."""
    gate, reasons = verdict(copy_of_good(0), gate="strict")
    assert "closure" in failed_quantities(gate)
    assert "gain" not in failed_quantities(gate)
    assert sum("could be worse" in reason for reason in reasons) >= 4
    wide = {
        "max_closure": 0.1,
        "max_resolution_ratio": 1.5,
        "max_tail_ratio": 3.0,
        "max_flavour_ratio": 5.0,
        "max_coverage_points": 25.0,
    }
    assert verdict(copy_of_good(0), gate="strict", **wide)[1] == []


def test_each_limit_can_be_set():
    """A limit that no model meets fails its own quantity."""
    model = copy_of_good(0)
    for name, value, quantity in (
        ("max_closure", 0.0, "closure"),
        ("max_resolution_ratio", 0.5, "resolution"),
        ("max_tail_ratio", 0.1, "tail beyond 30 %"),
        ("max_flavour_ratio", 0.0, "flavour spread"),
        ("min_improvement", 50.0, "gain"),
    ):
        gate, reasons = verdict(model.scaled(1.05, all_jets(model)), **{name: value})
        assert quantity in failed_quantities(gate), name
        assert any(quantity in reason for reason in reasons)
    half = interval_times(model, 0.5, all_jets(model))
    assert "coverage" not in failed_quantities(verdict(half, max_coverage_points=40.0)[0])


def test_margins_are_limits_minus_values():
    gate, _ = verdict(copy_of_good(0))
    for check in gate["checks"][1:]:
        if check["quantity"] != "flavour spread":
            margin = check["limit"] - abs(check["value"])
            assert check["margin"]["value"] == pytest.approx(margin, abs=1e-9)
        assert check["margin"]["low"] <= check["margin"]["value"] <= check["margin"]["high"]
        assert check["num_jets"] >= 50
