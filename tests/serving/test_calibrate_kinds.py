"""serving.calibration.kinds: what jets are, by the words of CMS and of a model card."""

from __future__ import annotations

import pytest

from serving.calibration import kinds
from serving.calibration.kinds import JetKind


@pytest.mark.parametrize(
    ("title", "radius", "pileup"),
    [
        ("slimmedJets, i.e. ak4 PFJets CHS with JECs applied, after basic selection", "4", "CHS"),
        ("slimmedJetsPuppi, i.e. ak4 PFJets Puppi with JECs applied, after", "4", "PUPPI"),
        ("slimmedJetsAK8, i.e. ak8 fat jets for boosted analysis", "8", ""),
        ("AK4PFchs", "4", "CHS"),
        ("AK4jets/jetTree;1", "4", ""),
        ("anti-kT R = 0.4, PUPPI", "4", "PUPPI"),
        ("weak4", "", ""),
        ("jets", "", ""),
    ],
)
def test_jet_kinds_in_titles(title, radius, pileup):
    assert kinds.of_title(title) == JetKind(radius=radius, pileup=pileup)


@pytest.mark.parametrize(
    ("path", "years"),
    [
        ("/store/mc/RunIISummer20UL18NanoAODv9/QCD/x.root", {2018}),
        ("/store/mc/RunIISummer20UL16NanoAODAPVv9/QCD/x.root", {2016}),
        ("/store/mc/RunIIAutumn18NanoAODv7/x.root", {2018}),
        ("/store/mc/Run3Summer22EENanoAODv12/x.root", {2022}),
        ("/store/mc/RunIII2024Summer24NanoAODv15/x.root", {2024}),
        ("/store/data/Run2016H/JetHT/NANOAOD/UL2016_MiniAODv2_NanoAODv9-v1/x.root", {2016}),
        ("/store/data/Run2022C/JetMET/x.root", {2022}),
        ("/data/2021/Summer/x.root", set()),
        ("/home/physicist/Run2018/mc/x.root", set()),
        ("/home/ULrich/2018/x.root", set()),
    ],
)
def test_campaigns_in_paths(path, years):
    assert kinds.of_path(path).years == years


@pytest.mark.parametrize(
    ("run", "years"),
    [(1, set()), (0, set()), (279766, {2016}), (316110, {2018}), (362760, {2022})],
)
def test_runs_of_collisions(run, years):
    assert kinds.of_run(run).years == years


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("2018", {2018}),
        ("2016-2018", {2016, 2017, 2018}),
        ("2016, 2018", {2016, 2018}),
        ("UL18", {2018}),
        ("RunIISummer20UL18", {2018}),
        ("Run 2", {2015, 2016, 2017, 2018}),
        ("Run3Summer23BPix", {2023}),
        ("the usual", set()),
    ],
)
def test_years_of_a_model_card(text, years):
    assert kinds.years_of(text) == years


def test_the_jet_kind_of_a_model_card():
    facts = {"Era": "2018", "campaign": "UL", "Jet type": "AK4 PFCHS", "JEC version": "UL17_V5"}
    assert kinds.kind_of_training(facts, None) == JetKind(
        radius="4", pileup="CHS", years=frozenset({2018}), era="2018"
    )
    assert kinds.kind_of_training({}, "AK8jets/jetTree") == JetKind(radius="8")


@pytest.mark.parametrize(
    ("jets", "count"),
    [
        (JetKind(), 0),
        (JetKind(radius="4", pileup="CHS", years=frozenset({2017, 2018})), 0),
        (JetKind(radius="8"), 1),
        (JetKind(pileup="PUPPI"), 1),
        (JetKind(years=frozenset({2016})), 1),
        (JetKind(radius="8", pileup="PUPPI", years=frozenset({2022})), 3),
    ],
)
def test_jet_kinds_differ_by_radius_pileup_and_year(jets, count):
    training = JetKind(radius="4", pileup="CHS", years=frozenset({2018}))
    assert len(kinds.differences(training, jets)) == count


def test_earlier_descriptions_of_jets_take_precedence():
    views = [JetKind(radius="4"), JetKind(radius="8", pileup="PUPPI", years=frozenset({2016}))]
    assert kinds.combined(views) == JetKind(radius="4", pileup="PUPPI", years=frozenset({2016}))
