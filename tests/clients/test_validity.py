"""The client's reasons for invalid jets, by the range alone: no model, no server."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from common.project import ROOT
from jec_client import validity
from jec_client.validity import ModelRange, count_invalid, invalid_reasons, model_range

LIMITS = ModelRange(
    min_pt=15.0,
    max_pt=1000.0,
    max_abs_eta=2.5,
    jets="training",
    pt="jetPt",
    eta="jetEta",
    counters={"nPF": ["PF_pT", "PF_id"]},
)


def jets(num_jets: int = 4) -> dict[str, np.ndarray]:
    """Valid jets of three particles with places for five."""
    particles = np.full((num_jets, 5), np.nan, np.float32)
    particles[:, :3] = 10
    return {
        "jetPt": np.full((num_jets, 1), 100, np.float32),
        "jetEta": np.full((num_jets, 1), -2.5, np.float64),
        "PF_pT": particles,
        "PF_id": np.full((num_jets, 5), 211, np.int32),
        "nPF": np.full((num_jets, 1), 3, np.int32),
    }


def test_valid_jets_have_no_reason():
    assert invalid_reasons(jets(), LIMITS).tolist() == ["", "", "", ""]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"jetPt": np.nan}, validity.NOT_FINITE),
        ({"jetEta": 1e39}, validity.NOT_FINITE),  # infinite in single precision
        ({"nPF": 4}, validity.NOT_FINITE),  # counts a place that holds NaN
        ({"PF_pT": 2e38}, validity.NOT_FINITE),  # the model's sum over three particles overflows
        ({"PF_pT": 2e38, "nPF": 1}, ""),
        ({"nPF": 6, "PF_pT": 1}, validity.COUNTER),
        ({"nPF": -1}, validity.COUNTER),
        ({"nPF": 0}, validity.NO_PARTICLES),
        ({"jetPt": -100}, validity.NEGATIVE_PT),
        ({"jetPt": 14.999}, validity.PT_RANGE),
        ({"jetPt": 1000.1}, validity.PT_RANGE),
        ({"jetEta": 2.501}, validity.ETA_RANGE),
        ({"jetPt": -5, "nPF": 0}, validity.NO_PARTICLES),
        ({"jetPt": 5, "jetEta": 4.5}, validity.PT_RANGE),
    ],
)
def test_each_reason(changes, reason):
    columns = jets()
    for name, value in changes.items():
        columns[name][2] = value
    assert invalid_reasons(columns, LIMITS).tolist() == ["", "", reason, ""]


def test_single_values_may_have_one_axis():
    columns = {name: x[:, 0] if x.shape[1] == 1 else x for name, x in jets().items()}
    columns["jetPt"][1] = 5
    assert invalid_reasons(columns, LIMITS).tolist() == ["", validity.PT_RANGE, "", ""]


def test_a_computed_pt_comes_from_the_answer():
    limits = ModelRange(min_pt=15, max_pt=1000)
    columns = {"jetPt": np.array([20.0, 20, 20]), "rawFactor": np.array([1.0, 0.5, -1])}
    assert invalid_reasons(columns, limits).tolist() == ["", "", ""]
    reasons = invalid_reasons(columns, limits, columns["jetPt"] * columns["rawFactor"])
    assert reasons.tolist() == ["", validity.PT_RANGE, validity.NEGATIVE_PT]


def test_a_jet_with_particles_of_one_kind_has_particles():
    limits = ModelRange(min_pt=0, max_pt=9, counters={"nMu": ["mu"], "nPF": ["pf"]})
    columns = {"mu": np.ones((2, 1)), "pf": np.ones((2, 3)), "nMu": np.array([0, 0])}
    columns["nPF"] = np.array([2, 0])
    assert invalid_reasons(columns, limits).tolist() == ["", validity.NO_PARTICLES]


def test_only_jets_that_the_model_calls_invalid_are_counted():
    columns = jets(6)
    columns["jetPt"][:3] = 5
    columns["nPF"][3] = 0
    valid = np.array([[True], [False], [False], [False], [False], [True]])
    counts = count_invalid(columns, LIMITS, valid=valid)
    assert counts == {validity.PT_RANGE: 2, validity.NO_PARTICLES: 1, validity.OTHER: 1}
    assert sum(counts.values()) == (~valid).sum()
    assert count_invalid(columns, LIMITS, valid=np.ones(6, bool)) == {}


def test_the_range_is_read_from_the_models_text():
    content = {"min_pt": 15, "max_pt": 1000, "max_abs_eta": None, "jets": "validation"}
    limits = model_range(json.dumps({**content, "a later key": 1}))
    assert (limits.max_abs_eta, limits.pt, limits.counters) == (None, None, {})
    config = {"parameters": {"valid_range": {"string_value": json.dumps(content)}}}
    assert validity.range_of_config(config) == limits
    assert validity.range_of_config({"name": "old"}) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        '{"min_pt": 3}',
        '{"min_pt": "3", "max_pt": 9}',
        '{"min_pt": 3, "max_pt": null}',
        '{"min_pt": 3, "max_pt": 9, "max_abs_eta": true}',
        '{"min_pt": 3, "max_pt": 9, "pt": 5}',
        '{"min_pt": 3, "max_pt": 9, "counters": ["nPF"]}',
        '{"min_pt": 3, "max_pt": 9, "counters": {"nPF": "PF_pT"}}',
        '{"min_pt": 3, "max_pt": 9, "counters": {"nPF": []}}',
    ],
)
def test_a_malformed_range_is_refused(text):
    with pytest.raises(ValueError, match="valid_range"):
        model_range(text)


def test_the_module_imports_only_numpy():
    code = (
        "import sys; import jec_client.validity;"
        "ours = {'common', 'serving', 'weaver', 'torch', 'awkward', 'yaml'};"
        "sys.exit(bool(ours & set(sys.modules)))"
    )
    place = ROOT / "clients" / "python"
    assert subprocess.run([sys.executable, "-c", code], cwd=place, timeout=60).returncode == 0


def test_serving_imports_the_clients_module_from_the_checkout():
    code = "from serving import validity; print(validity.KEY)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert process.stdout == "valid_range\n"
