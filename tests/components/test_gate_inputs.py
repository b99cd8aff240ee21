"""Warnings before any training: the gate will refuse, or the standard correction is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.config import RunConfig
from common.errors import InputError
from components import gate_inputs
from components.inputs import Inputs, check_data_config, check_gate
from physics.gate import judge
from physics.metrics import sample_of
from tests.physics.jets import make_jets, target_of

FULL = Path("data/jec_pfn_full.yaml")
LABEL = "np.log(genJetPt / jetPt)"


def check_of(tmp_path, old: str, new: str, **config):
    """The check of the full data config with a part of its text replaced."""
    text = FULL.read_text()
    assert old in text
    path = tmp_path / "data.yaml"
    path.write_text(text.replace(old, new))
    inputs = Inputs(RunConfig(data_config=str(path), **config))
    check_data_config(inputs)
    return check_gate(inputs)


@pytest.mark.parametrize("name", sorted(Path("data").glob("jec_*.yaml")), ids=lambda p: p.stem)
def test_the_projects_data_configs_pass_the_check(name):
    inputs = Inputs(RunConfig(data_config=str(name), gate="strict"))
    check_data_config(inputs)
    assert check_gate(inputs).warning == ""


@pytest.mark.parametrize(
    ("label", "is_refused", "corrected"),
    [
        ("np.log(genJetPt / (jetPt * 1.0))", False, True),
        ("np.log(genJetPt) - np.log(jetPt)", False, False),
        ("np.log(genJetPt / jetRawPt)", True, True),
        ("genJetPt / jetPt", True, False),
        # of particles nothing can be said without the jets
        ("np.log(genJetPt / (jetPt + 0 * ak.sum(PF_pT, axis=1)))", False, False),
    ],
)
def test_a_label_that_the_gate_will_refuse_is_named(tmp_path, label, is_refused, corrected):
    warning = check_of(tmp_path, LABEL, label).warning
    assert (f"the gate will refuse the model: the label is {label}," in warning) is is_refused
    assert ("no residual correction" in warning) is not corrected


@pytest.mark.parametrize("observer", ["jetPt", "genJetPt", "genJetEta"])
def test_a_missing_observer_is_refused_before_any_training(tmp_path, observer):
    with pytest.raises(InputError, match=f"needs the observer {observer}"):
        check_of(tmp_path, f"  - {observer}\n", "")


@pytest.mark.parametrize("gate", ["default", "strict"])
def test_the_strict_gate_needs_flavours(tmp_path, gate):
    warning = check_of(tmp_path, "  - partonFlav\n", "", gate=gate).warning
    assert ("partonFlav" in warning) is (gate == "strict")


def without_endcap(jets):
    return np.abs(jets["genJetEta"]) < 1.3


BAD_JETS = {
    "good": lambda jets: jets["genJetPt"] > 0,
    "one region": without_endcap,
    "none above 30 GeV": lambda jets: jets["genJetPt"] < 30,
    "none above 60 GeV": lambda jets: jets["genJetPt"] < 60,
    "no jets": lambda jets: jets["genJetPt"] < 0,
    "one flavour": lambda jets: jets["partonFlav"] == 21,
}


@pytest.mark.parametrize("gate", ["default", "strict"])
@pytest.mark.parametrize("name", BAD_JETS)
def test_prepare_predicts_the_verdict_of_the_gate_on_the_test_jets(name, gate):
    jets = make_jets(4000)
    jets = {column: values[BAD_JETS[name](jets)] for column, values in jets.items()}
    settings = gate_inputs.settings_of(RunConfig(gate=gate))
    early = gate_inputs.reasons_of_jets(jets, settings)
    _, late = judge(sample_of(jets, 0.1 * target_of(jets), replicates=20), settings)
    assert set(early) <= set(late)
    cannot = [reason for reason in late if "cannot be measured" in reason]
    assert sorted(early) == sorted(cannot)
    always = ("one region", "none above 30 GeV", "no jets")
    assert bool(early) is (name in always or (gate == "strict" and name != "good"))


def test_the_jets_are_those_of_the_prepared_test_set(tmp_path):
    jets = make_jets(500)
    jets_without_endcap = without_endcap(jets)
    for column, values in jets.items():
        np.save(tmp_path / f"observer.{column}.npy", values[jets_without_endcap].astype(np.float32))
    (reason,) = gate_inputs.refusals_on_test_set(str(tmp_path), RunConfig())
    assert "endcap" in reason
    assert gate_inputs.refusals_on_test_set(str(tmp_path), RunConfig(gate_regions="barrel")) == []
    # without momenta there is nothing to say
    (tmp_path / "observer.jetPt.npy").unlink()
    assert gate_inputs.refusals_on_test_set(str(tmp_path), RunConfig()) == []
