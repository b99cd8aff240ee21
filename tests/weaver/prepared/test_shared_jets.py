"""Jets that are in two sets are detected before the training, whatever their files are called."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common import storage
from common.errors import InputError
from components.prepare import check_shared
from tests.weaver.conftest import synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.prepared.prepare import prepare
from weaver.prepared.shared_jets import among, shared_jets

CONFIG = """
treename: AK4jets/jetTree
selection: genJetPt > 20
new_variables: {jetLogPt: np.log(jetPt)}
preprocess: {method: manual}
inputs: {jet_features: {length: null, vars: [jetLogPt, jetEta]}}
labels: {type: custom, value: {target: np.log(genJetPt / jetPt)}}
observers: [jetPt, genJetPt, genJetEta]
"""


def prepared_set(folder, name: str, columns, *, for_training: bool, text: str = CONFIG) -> str:
    """The folder of these jets, decoded."""
    config = folder / f"{name}.yaml"
    config.write_text(text)
    path = write_jets(folder / f"{name}.root", columns)
    return prepare(
        str(path),
        DataConfig.load(str(config)),
        str(folder),
        for_training=for_training,
        report=lambda line: None,
    ).uri


def join_sets(first, second):
    import awkward as ak

    return {
        name: (
            ak.concatenate([first[name], second[name]])
            if name == "PF"
            else np.r_[first[name], second[name]]
        )
        for name in first
    }


def test_a_part_of_the_training_jets_in_another_order_is_refused(tmp_path):
    train, test = synthetic_jets(300, 1), synthetic_jets(200, 2)
    leaked = {name: values[100:120][::-1] for name, values in train.items()}
    sets = {
        "train": prepared_set(tmp_path, "train", train, for_training=True),
        "test": prepared_set(tmp_path, "test", join_sets(test, leaked), for_training=False),
    }
    ((one, other, number, jets),) = shared_jets(sets)
    assert (one, other) == ("train", "test")
    assert number == np.count_nonzero(leaked["genJetPt"] > 20)
    assert jets > 150
    with pytest.raises(
        InputError,
        match=(
            rf"^{number} of the {jets} jets of --data-test are in --data-train as"
            r" well.*data\.validate"
        ),
    ):
        check_shared(sets)


def test_sets_without_common_jets_pass(tmp_path, prepared):
    sets = {
        name: json.loads(storage.read_text(str(getattr(prepared, name))))["dataset"]
        for name in ("train", "val", "test")
    }
    assert check_shared(sets) == {"train and val": 0, "train and test": 0, "val and test": 0}


def test_without_the_observers_of_a_jet_s_identity_nothing_is_compared(tmp_path):
    text = CONFIG.replace("observers: [jetPt, genJetPt, genJetEta]", "")
    jets = synthetic_jets(50, 3)
    uri = prepared_set(tmp_path, "plain", jets, for_training=True, text=text)
    assert check_shared({"train": uri, "test": uri}) == {}


def test_a_shared_jet_agrees_in_all_three_observers():
    jets = np.random.default_rng(1).random((100, 3), dtype=np.float32)
    others = jets[::-1].copy()
    others[:10, 2] += np.float32(0.5)  # the last ten jets of `jets`, elsewhere in eta
    assert np.flatnonzero(~among(jets, others)).tolist() == list(range(90, 100))
    assert among(jets[:0], others).shape == (0,)
