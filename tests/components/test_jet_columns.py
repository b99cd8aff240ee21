"""prepare keeps jet-level columns, and evaluate trains boosted trees on them."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest

from common.config import RunConfig
from common.errors import InputError
from common.records import DataSet, RunRecord
from common.run import Run
from components import inputs, prepare
from evaluating import jet_columns, trees
from evaluating.jet_columns import FRACTIONS, GROUP
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset

SIZES = {"train": 900, "val": 200, "test": 300}
KINDS = [211, -211, 130, 22, 11, -13]


def with_kinds(columns: dict, seed: int) -> dict:
    """Jets whose candidates have a kind, and belong to the jet or not."""
    rng = np.random.default_rng(seed)
    particles = columns["PF"]
    counts = ak.num(particles)
    fields = {name: particles[name] for name in ak.fields(particles)}
    fields["id"] = ak.unflatten(rng.choice(np.int32(KINDS), int(ak.sum(counts))), counts)
    fields["fromAK4Jet"] = ak.unflatten(rng.integers(0, 2, int(ak.sum(counts)), "i4"), counts)
    return {**columns, "PF": ak.zip(fields)}


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Make a run as prepare leaves it, of files with or without kinds of candidates."""

    def make(kinds: bool, config: str = "data/jec_pfn_open.yaml", **sizes: int) -> Run:
        folder = tmp_path_factory.mktemp("run")
        values = {"s3_bucket": str(folder), "run_id": "pfn-00000000", "data_config": config}
        for seed, (split, number) in enumerate((SIZES | sizes).items()):
            jets = synthetic_jets(number, seed)
            jets = with_kinds(jets, seed) if kinds else jets
            write_jets(folder / split / "a.root", jets, basket=number)
            values[f"data_{split}"] = str(folder / split / "*.root")
        run = Run(config=RunConfig(**values))
        run_inputs = inputs.Inputs(run.config)
        inputs.check_data_config(run_inputs)
        for split in SIZES:
            inputs.check_files(run_inputs, split)
        sets = prepare.decode_sets(run, run_inputs)
        places, reason = prepare.decode_jet_columns(run, run_inputs)
        record = RunRecord(data=sets, jet_columns=places, no_jet_columns=reason)
        return Run(config=run.config, record=record)

    return make


@pytest.fixture(scope="module")
def whole(make_run):
    return make_run(kinds=True)


def dataset_of(run: Run, split: str) -> Dataset:
    config = DataConfig.load(run.config.data_config)
    return Dataset.open(run.record.data[split].dataset, config)


def columns_of(run: Run, split: str) -> Dataset:
    return trees._open(run.record.jet_columns[split], trees._data_config(run))


def test_pt_fractions_count_only_the_jets_own_candidates(whole):
    columns = columns_of(whole, "test")
    jets = with_kinds(synthetic_jets(SIZES["test"], 2), 2)
    particles = jets["PF"][(jets["genJetPt"] > 20) & (np.abs(jets["genJetEta"]) < 2.5)]
    own = particles[particles["fromAK4Jet"] == 1]
    photons = ak.sum(own["pT"][own["id"] == 22], axis=1)
    with np.errstate(invalid="ignore"):
        share = ak.to_numpy(photons) / ak.to_numpy(ak.sum(own["pT"], axis=1))
    names = columns.data_config.input_dicts[GROUP]
    values = columns.batch(np.arange(len(columns))).inputs[GROUP].numpy()
    # A jet without candidates of its own has no shares.
    assert values[:, names.index("fractionPhoton")] == pytest.approx(np.nan_to_num(share), abs=1e-6)
    assert values[:, names.index("fractionMuon")].max() > 0.1


@pytest.mark.parametrize("split", SIZES)
def test_the_columns_have_the_networks_jets_and_its_tensors_do_not_change(whole, split):
    columns, of_network = columns_of(whole, split), dataset_of(whole, split)
    assert len(columns) == len(of_network) == whole.record.data[split].jets
    assert np.array_equal(columns.label("target"), of_network.label("target"))
    assert columns.folder != of_network.folder
    assert not any(name.startswith("fraction") for name in of_network.observers())


def test_trees_learn_from_the_columns_and_are_kept_for_the_next_run(whole, monkeypatch):
    observers = dataset_of(whole, "test").observers()
    comparison = trees.compare(whole, observers, seed=1)
    assert comparison.record.reason == ""
    assert {"jetPt", "QG_mult", *FRACTIONS} <= set(comparison.record.columns)
    assert "jetGirth" in comparison.record.missing
    target = np.log(observers["genJetPt"] / observers["jetPt"])
    # The true pT depends on eta and on the multiplicity, which the columns have.
    assert np.corrcoef(comparison.predictions, target)[0, 1] > 0.4
    monkeypatch.setattr(trees, "fit_and_predict", lambda *_, **__: pytest.fail("trained again"))
    again = trees.compare(whole, observers, seed=1)
    assert again.record == comparison.record
    assert np.array_equal(again.predictions, comparison.predictions)


def test_trees_train_on_the_same_fraction_of_jets_as_the_network(whole):
    training = columns_of(whole, "train")
    of_trees = trees._jets(training, 0.8)
    number = round(0.8 * len(training))
    assert len(of_trees.weights) == number
    index = np.arange(number) * len(training) // number
    assert np.array_equal(of_trees.target, training.label("target")[index])
    observers = dataset_of(whole, "test").observers()
    assert "500" in trees.compare(whole, observers, fraction=0.5, seed=1).record.reason


def test_trees_read_only_the_jets_that_they_learn_from(whole, monkeypatch):
    training = columns_of(whole, "train")
    all_features = training.batch(np.arange(len(training))).inputs[GROUP].numpy()
    sizes = []

    class Counted:
        """Prepared jets that count the jets of each batch."""

        def __getattr__(self, name):
            return getattr(training, name)

        def __len__(self):
            return len(training)

        def batch(self, index):
            sizes.append(len(index))
            return training.batch(index)

        def label(self, name):
            values = np.array(training.label(name))
            values[:10] = np.nan
            return values

    monkeypatch.setattr(trees, "MOST_JETS", 100)
    monkeypatch.setattr(trees, "JETS_AT_A_TIME", 30)
    jets = trees._jets(Counted())
    finite = np.arange(10, len(training))
    chosen = finite[np.arange(100) * len(finite) // 100]
    assert np.array_equal(jets.features, all_features[chosen])
    assert np.array_equal(jets.target, training.label("target")[chosen])
    assert np.array_equal(jets.weights, training.weights()[chosen])
    assert sizes == [30, 30, 30, 10]


def test_trees_without_kinds_of_candidates_use_the_other_columns(make_run):
    run = make_run(kinds=False)
    comparison = trees.compare(run, dataset_of(run, "test").observers(), seed=1)
    assert set(FRACTIONS) <= set(comparison.record.missing)
    assert "jetPt" in comparison.record.columns
    assert len(comparison.predictions) == run.record.data["test"].jets


def test_too_few_training_jets_make_no_trees(make_run):
    run = make_run(kinds=False, train=500)
    comparison = trees.compare(run, dataset_of(run, "test").observers(), seed=1)
    assert comparison.predictions is None
    number = run.record.data["train"].jets
    assert number < 500
    assert f"{number} training jets" in comparison.record.reason


def test_columns_of_other_jets_are_not_compared(whole):
    observers = dict(dataset_of(whole, "test").observers())
    observers["jetPt"] = observers["jetPt"][::-1]
    comparison = trees.compare(whole, observers, seed=1)
    assert comparison.predictions is None
    assert "jetPt" in comparison.record.reason


def test_a_run_of_an_earlier_version_says_why_it_has_no_trees(whole):
    run = Run(config=whole.config, record=RunRecord(data={"train": _dataset()}))
    assert trees.compare(run, {}, seed=1).record.reason == trees.NO_COLUMNS


def _dataset() -> DataSet:
    return DataSet(dataset="", jets=1, read=1, files=1, fingerprint="")


def options(**changes) -> dict:
    config = DataConfig.load("data/jec_pfn_open.yaml")
    return {**config.options, **changes}


BRANCHES = ["jetPt", "jetEta", "genJetPt", "genJetEta", "rhoAll"]


def test_a_new_variable_replaces_the_column_of_its_name():
    config = DataConfig.from_options(options(new_variables={"jetMass": "jetPt * 0.1"}) | _flat())
    jet_level = jet_columns.of_files(config, BRANCHES)
    assert jet_level.options["inputs"][GROUP]["vars"] == ["jetPt", "jetEta", "jetMass", "rhoAll"]
    assert jet_level.options["observers"] == ["jetPt", "genJetPt", "rhoAll"]


def test_files_without_the_pt_have_no_columns():
    config = DataConfig.from_options(options(new_variables={}) | _flat())
    jet_level = jet_columns.of_files(config, ["genJetPt", "genJetEta", "jetEta"])
    assert jet_level.options == {}
    assert "jetPt" in jet_level.reason


def test_a_classification_has_no_columns():
    labels = {"type": "simple", "value": ["isB", "isC"]}
    config = DataConfig.from_options(options(new_variables={}, labels=labels) | _flat())
    assert "label" in jet_columns.of_files(config, BRANCHES).reason


def _flat() -> dict:
    return {"inputs": {"jet": {"length": None, "vars": ["jetPt"]}}, "observers": ["jetPt"]}


def test_columns_that_cannot_be_decoded_do_not_refuse_the_run(whole, monkeypatch):
    run_inputs = inputs.Inputs(whole.config)
    inputs.check_data_config(run_inputs)
    for split in SIZES:
        inputs.check_files(run_inputs, split)

    def refuse(*_, **__):
        raise InputError("jets.root: 'jetArea' is a list")

    monkeypatch.setattr("weaver.prepared.prepare.prepare", refuse)
    assert prepare.decode_jet_columns(whole, run_inputs) == ({}, "jets.root: 'jetArea' is a list")
