"""Batches are what padding jet by jet would give, and only data that was prepared for this config
is opened.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import torch
import yaml

from common import storage
from common.errors import InputError
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.prepared.columns import DESCRIPTION
from weaver.prepared.prepare import main, prepare

PFN = yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text())
FORMS = {
    "long": {"length": 30, "vars": ["PF_dEta", ["PF_dPhi", 0.1, 2.0, -0.4, 0.3, 7.5]]},
    "wrapped": {
        "length": 30,
        "pad_mode": "wrap",
        "vars": ["PF_dTheta", ["PF_pT", 5, 0.5, -1, 1, 99]],
    },
    "short": {"length": 4, "vars": ["PF_dR"]},
    "pf_mask": {"length": 30, "vars": [["PF_mask", None, 1, 0, 1, -2]]},
    "jet": {"length": None, "vars": ["jetPt", ["jetEta", 1, 0.5, -0.5, 0.5]]},
    "lonely": {"length": None, "vars": ["jetMass"]},
    "listed": {"length": 3, "vars": [["jetPhi", None, 1, -5, 5, 4.5]]},
}


def open_jets(path, tmp_path, for_training: bool = True, **changes) -> Dataset:
    config = DataConfig.from_options({**PFN, **changes}, "jec.yaml")
    ref = prepare(
        str(path), config, str(tmp_path), for_training=for_training, report=lambda line: None
    )
    return Dataset.open(ref.uri, config)


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> tuple[Dataset, dict]:
    """All forms of input groups, and the columns that they were made from."""
    folder = tmp_path_factory.mktemp("forms")
    columns = synthetic_jets(40, seed=21)
    dataset = open_jets(
        write_jets(folder / "a.root", columns),
        folder,
        selection="jetPt > 0",
        inputs=FORMS,
        labels={"type": "custom", "value": {"target": "jetPt"}},
    )
    return dataset, columns


def padded(values, length: int, pad: float) -> np.ndarray:
    row = np.full(length, pad, np.float32)
    row[: len(values)] = values[:length]
    return row


def wrapped(values, length: int) -> np.ndarray:
    return (
        np.resize(values[:length], length).astype(np.float32)
        if len(values)
        else np.zeros(length, np.float32)
    )


def test_sequences_are_padded_wrapped_and_clipped_jet_by_jet(forms):
    dataset, columns = forms
    index = np.random.default_rng(0).permutation(40)[:25]
    inputs = dataset.batch(index).inputs
    for row, jet in enumerate(index):
        eta, phi, theta, pt, dr = (
            np.asarray(columns["PF"][name][jet]) for name in ("dEta", "dPhi", "dTheta", "pT", "dR")
        )
        clipped = np.clip(
            (phi - np.float32(0.1)) * np.float32(2), np.float32(-0.4), np.float32(0.3)
        )
        assert np.array_equal(inputs["long"][row], [padded(eta, 30, 0), padded(clipped, 30, 7.5)])
        clipped = np.clip((pt - np.float32(5)) * np.float32(0.5), -1, 1)
        assert np.array_equal(inputs["wrapped"][row], [wrapped(theta, 30), wrapped(clipped, 30)])
        assert np.array_equal(inputs["short"][row], [padded(dr, 4, 0)])
        assert np.array_equal(inputs["pf_mask"][row], [padded(np.ones(len(eta)), 30, -2)])
        assert np.array_equal(inputs["listed"][row], [[columns["jetPhi"][jet], 4.5, 4.5]])
        eta = np.clip((columns["jetEta"][jet] - 1) * 0.5, -0.5, 0.5)
        assert np.array_equal(inputs["jet"][row], np.float32([columns["jetPt"][jet], eta]))
        assert inputs["lonely"][row] == columns["jetMass"][jet]


def test_shapes_and_types_are_those_of_the_data_config(forms):
    dataset, _ = forms
    batch = dataset.batch(np.arange(7))
    assert list(batch.inputs) == list(dataset.data_config.input_names)
    for name, shape in dataset.data_config.input_shapes.items():
        assert batch.inputs[name].shape == (7, *shape[1:])
        assert batch.inputs[name].dtype == torch.float32
        assert batch.inputs[name].is_contiguous()
    assert (len(batch), batch.weights.tolist()) == (7, [1.0] * 7)
    assert batch.labels["target"].dtype == torch.float32


def test_a_batch_takes_any_order_repeats_and_no_jets(forms):
    dataset, _ = forms
    one = dataset.batch(np.array([5])).inputs["long"]
    again = dataset.batch(np.array([9, 5, 5, 39])).inputs["long"]
    assert torch.equal(again[1], one[0])
    assert torch.equal(again[2], one[0])
    assert dataset.batch(np.array([], np.int64)).inputs["long"].shape == (0, 2, 30)
    for outside in (40, -1):
        with pytest.raises(IndexError, match="numbered 0 to 39"):
            dataset.batch(np.array([3, outside]))


def test_a_batch_can_be_changed_without_changing_the_data(forms):
    dataset, _ = forms
    batch = dataset.batch(np.arange(40))
    before = {name: tensor.clone() for name, tensor in batch.inputs.items()}
    for tensor in (*batch.inputs.values(), *batch.labels.values(), batch.weights):
        tensor.zero_()
    assert all(
        torch.equal(tensor, before[name])
        for name, tensor in dataset.batch(np.arange(40)).inputs.items()
    )


def test_whole_columns_of_a_data_set_can_be_read(forms):
    dataset, columns = forms
    assert np.array_equal(dataset.observers()["genJetPt"], columns["genJetPt"])
    assert np.array_equal(
        dataset.batch(np.array([3, 1])).observers["genJetPt"], columns["genJetPt"][[3, 1]]
    )
    assert np.array_equal(dataset.label("target"), columns["jetPt"])
    counts = ak.to_numpy(ak.num(columns["PF"]["pT"]))
    assert np.array_equal(dataset.multiplicity(), np.minimum(counts, 30))
    assert np.array_equal(dataset.multiplicity("short"), np.minimum(counts, 4))
    assert 0 in dataset.multiplicity()
    with pytest.raises(InputError, match="no label 'targt'; there are: target"):
        dataset.label("targt")


def test_jets_without_any_particle_in_the_whole_sample(tmp_path):
    columns = synthetic_jets(6, seed=1)
    columns["PF"] = columns["PF"][:, :0]
    dataset = open_jets(
        write_jets(tmp_path / "a.root", columns), tmp_path, selection=None, inputs=FORMS
    )
    inputs = dataset.batch(np.arange(6)).inputs
    assert np.unique(inputs["long"][:, 1]).tolist() == [7.5]
    assert np.unique(inputs["wrapped"]).tolist() == [0]
    assert np.unique(inputs["pf_mask"]).tolist() == [-2]


def test_classes_and_weights(tmp_path):
    columns = synthetic_jets(30, seed=4)
    columns["w"] = np.linspace(0, 2, 30, dtype=np.float32)
    path = write_jets(tmp_path / "a.root", columns)
    changes = {
        "selection": None,
        "labels": {
            "type": "simple",
            "value": ["partonFlav < 2", "partonFlav == 2", "partonFlav > 2"],
        },
        "weights": {"use_precomputed_weights": True, "weight_branches": ["w", "jetPt"]},
    }
    batch = open_jets(path, tmp_path, **changes).batch(np.arange(30))
    assert torch.equal(
        batch.labels["_label_"], torch.from_numpy(np.digitize(columns["partonFlav"], [2, 3]))
    )
    assert batch.labels["_label_"].dtype == torch.int64
    assert np.array_equal(batch.weights, columns["w"] * columns["jetPt"])
    assert (
        open_jets(path, tmp_path, for_training=False, **changes)
        .batch(np.arange(30))
        .weights.tolist()
        == [1.0] * 30
    )


def test_monitor_variables_are_standardised_like_inputs(tmp_path):
    columns = synthetic_jets(20, seed=4)
    dataset = open_jets(
        write_jets(tmp_path / "a.root", columns),
        tmp_path,
        selection=None,
        observers=None,
        monitor_variables=["jetEta", "genJetPt"],
        inputs={"jet": FORMS["jet"]},
    )
    observers = dataset.observers()
    assert np.array_equal(observers["jetEta"], np.clip((columns["jetEta"] - 1) * 0.5, -0.5, 0.5))
    assert np.array_equal(observers["genJetPt"], columns["genJetPt"])


def test_a_reference_raw_files_and_a_folder_give_the_same(prepared, jet_files, tmp_path):
    config = DataConfig.load(str(prepared.data_config))
    folder = json.loads(prepared.train.read_text())["dataset"]
    datasets = [Dataset.open(str(prepared.train), config), Dataset.open(folder, config)]
    datasets.append(Dataset.open(f"{jet_files}/train/*.root", config, cache_dir=str(tmp_path)))
    first, *others = (
        dataset.batch(np.arange(len(dataset))).inputs["pf_features"] for dataset in datasets
    )
    assert all(torch.equal(first, other) for other in others)


def test_missing_data_and_data_of_another_config_are_refused(prepared, tmp_path):
    config = DataConfig.load(str(prepared.data_config))
    other = DataConfig.from_options({**PFN, "selection": "jetPt > 50"}, "other.yaml")
    with pytest.raises(InputError, match=r"was prepared with another data config than other\.yaml"):
        Dataset.open(str(prepared.train), other)
    with pytest.raises(InputError, match="there is no file"):
        Dataset.open(str(tmp_path / "none.json"), config)
    reference = tmp_path / "reference.json"
    reference.write_text('{"dataset": "nowhere"}')
    with pytest.raises(InputError, match="refers to nowhere, where there is no prepared data"):
        Dataset.open(str(reference), config)
    reference.write_text("[]")
    with pytest.raises(InputError, match="refers to no data"):
        Dataset.open(str(reference), config)


@pytest.mark.parametrize("damage", ["missing", "short", "other", "form"])
def test_a_damaged_folder_is_refused(prepared, tmp_path, damage):
    folder = shutil.copytree(json.loads(prepared.val.read_text())["dataset"], tmp_path / "copy")
    column = folder / "pf_features.npy"
    if damage == "missing":
        column.unlink()
    elif damage == "short":
        column.write_bytes(column.read_bytes()[:-100])
    elif damage == "other":
        np.save(column, np.zeros((3, 6), np.float32))
    else:
        description = json.loads((folder / DESCRIPTION).read_text())
        (folder / DESCRIPTION).write_text(json.dumps({**description, "format": 0}))
    with pytest.raises(InputError, match="prepare it again"):
        Dataset.open(str(folder), DataConfig.load(str(prepared.data_config)))


def test_two_processes_that_prepare_the_same_data_make_one_folder(jet_files, tmp_path):
    """Two ranks with raw files: both prepare, and one folder results."""
    arguments = [
        "--data-config",
        str(DATA / "jec_pfn_open.yaml"),
        "--data",
        f"{jet_files}/train/*.root",
        "--output",
        str(tmp_path),
    ]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=main, args=(arguments,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(Dataset.open(str(folder), DataConfig.from_options(PFN))) > 400


def test_concurrent_trials_copy_the_data_to_a_node_once(prepared, tmp_path, monkeypatch):
    """Three trials on one node open the data at the same moment; an incomplete earlier copy is not
    used.
    """
    uris, download = [], storage.download

    def slowly(uri, folder):
        uris.append(uri)
        time.sleep(0.3)
        return download(uri, folder)

    monkeypatch.setattr(storage, "download", slowly)
    config, source = (
        DataConfig.load(str(prepared.data_config)),
        json.loads(prepared.train.read_text())["dataset"],
    )
    (tmp_path / ".partial-of-a-killed-process").mkdir()
    with ThreadPoolExecutor(3) as pool:
        datasets = list(
            pool.map(
                lambda _: Dataset.open(source, config, cache_dir=str(tmp_path), copy=True), range(3)
            )
        )
    assert uris == [source]
    assert {dataset.folder for dataset in datasets} == {tmp_path / storage.name(source)}
    original = Dataset.open(source, config)
    assert original.folder != datasets[0].folder
    assert torch.equal(
        datasets[2].batch(np.arange(50)).inputs["pf_features"],
        original.batch(np.arange(50)).inputs["pf_features"],
    )


def test_the_last_jets_are_read_completely(forms):
    """Runs that begin near the end of the data would reach beyond it."""
    dataset, columns = forms
    last = len(dataset) - 1
    alone, among = dataset.batch(np.array([last])), dataset.batch(np.arange(len(dataset)))
    values = columns["PF"]["dEta"][last]
    assert np.array_equal(alone.inputs["long"][0, 0], padded(np.asarray(values), 30, 0))
    assert torch.equal(alone.inputs["long"][0], among.inputs["long"][last])


def random_access(path) -> bool:
    """Whether this process has advised the system that it reads a mapped file at random."""
    flags = []
    is_of_file = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_of_file = line.endswith(str(path))
        elif is_of_file and line.startswith("VmFlags"):
            flags.append("rr" in line.split())
    assert flags
    return all(flags)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no Linux")
@pytest.mark.faults
def test_a_block_shuffle_reads_nothing_beside_its_blocks(tmp_path):
    """A jet of 2 kB must not bring the disk's whole read-ahead, 8 MiB on some, into a small cache.

    Until blocks are asked for, the system reads ahead as it likes, which suits small data sets.
    """
    dataset = open_jets(write_jets(tmp_path / "a.root", synthetic_jets(60, seed=3)), tmp_path)
    columns = sorted(dataset.folder.glob("*.npy"))
    everything = np.arange(len(dataset))
    before = dataset.batch(everything)
    assert not any(random_access(path) for path in columns if path.stat().st_size > 128)
    dataset.read_ahead(0, 20)
    dataset.read_ahead(40, len(dataset))
    used_columns = [path for path in columns if "observer" not in path.name]
    assert all(random_access(path) for path in used_columns)
    after = dataset.batch(everything)
    for name, values in before.inputs.items():
        assert torch.equal(values, after.inputs[name])
