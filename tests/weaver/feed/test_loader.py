"""Batches: each jet once, reproducible for a seed, distributed over ranks, and no thread outlives
its loop.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from common.errors import InputError
from tests.weaver.conftest import DATA, synthetic_jets, write_jets
from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.feed.loader import Loader
from weaver.feed.resident import free_bytes, padded_bytes
from weaver.prepared.prepare import prepare
from weaver.read.ahead import ahead

LONE_GROUP = {
    "inputs": {
        "pf_features": {
            "length": 100,
            "vars": ["PF_logPt", "PF_logRelPt", "PF_dEta", "PF_dPhi", "PF_dTheta", "PF_dR"],
        }
    },
    "observers": None,
}


@pytest.fixture(scope="module")
def jets(prepared) -> Dataset:
    return Dataset.open(str(prepared.train), DataConfig.load(str(prepared.data_config)))


def targets(batches) -> np.ndarray:
    """The targets of the batches' real jets, in order, which identify the jets."""
    return np.concatenate([batch.labels["target"][batch.weights > 0].numpy() for batch in batches])


@pytest.mark.parametrize(
    ("batches", "depth"),
    [
        pytest.param(None, 3, id="no limit"),
        pytest.param(100, 3, id="room for all"),
        pytest.param(12, 2, id="room for two"),
        pytest.param(1, 1, id="room for none"),
    ],
)
def test_fewer_batches_are_prefetched_where_memory_is_short(jets, monkeypatch, batches, depth):
    """batches: so many fit in the memory below the limit; a fifth of it is for prefetched
    batches."""
    room = None if batches is None else int(batches * 64 * padded_bytes(jets) / len(jets))
    monkeypatch.setattr("weaver.feed.loader.memory_room", lambda: room)
    depths = []

    def recording(items, number, name):
        depths.append(number)
        return ahead(items, number, name)

    monkeypatch.setattr("weaver.feed.loader.ahead", recording)
    loader = Loader(jets, 64, shuffle=False, seed=1)
    assert np.array_equal(targets(loader.epoch(0)), jets.label("target"))
    assert depths == [depth]


def test_free_memory_is_bounded_by_the_limit_of_the_container(monkeypatch):
    monkeypatch.setattr("weaver.feed.resident.memory_room", lambda: 5000)
    assert free_bytes(torch.device("cpu")) == 5000


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_sees_each_jet_once(jets, shuffle):
    loader = Loader(jets, 64, shuffle=shuffle, seed=1)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == -(-len(jets) // 64)
    jet_targets = targets(batches)
    assert np.array_equal(np.sort(jet_targets), np.sort(jets.label("target")))
    assert np.array_equal(jet_targets, jets.label("target")) is not shuffle


def test_the_order_depends_on_seed_and_epoch_alone(jets):
    def order(seed: int, epoch: int) -> np.ndarray:
        return targets(Loader(jets, 50, shuffle=True, seed=seed).epoch(epoch))

    assert np.array_equal(order(1, 3), order(1, 3))
    assert not np.array_equal(order(1, 3), order(1, 4))
    assert not np.array_equal(order(1, 3), order(2, 3))


def test_an_epoch_can_be_resumed_in_the_middle(jets):
    loader = Loader(jets, 50, shuffle=True, seed=1)
    assert np.array_equal(
        targets(loader.epoch(2, start_batch=4)), targets(list(loader.epoch(2))[4:])
    )
    assert list(loader.epoch(2, start_batch=len(loader))) == []


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_batches_of_one_rank_with_the_larger_batch(jets, world_size):
    ranks = [
        list(Loader(jets, 10, shuffle=True, seed=5, rank=rank, world_size=world_size).epoch(1))
        for rank in range(world_size)
    ]
    whole = list(Loader(jets, 10 * world_size, shuffle=True, seed=5).epoch(1))
    assert {len(batches) for batches in ranks} == {len(whole)}
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert np.array_equal(targets(parts), batch.labels["target"].numpy())
        assert len({len(part) for part in parts}) == 1, "every rank has batches of the same size"


def test_a_rank_without_real_jets_still_has_a_batch(jets):
    """Three ranks and one jet in the last global batch: two of them get a jet of weight 0."""
    count = len(jets) // 3 * 3 - 2
    options = {"shuffle": False, "seed": 0, "fraction": count / len(jets), "world_size": 3}
    last = [
        list(Loader(jets, (count - 1) // 3, rank=rank, **options).epoch(0))[-1] for rank in range(3)
    ]
    assert [batch.weights.tolist() for batch in last] == [[1.0], [0.0], [0.0]]


def test_a_fraction_takes_the_same_jets_for_each_seed(jets):
    first, second = (Loader(jets, 20, shuffle=True, seed=seed, fraction=0.25) for seed in (1, 2))
    assert first.num_jets == round(0.25 * len(jets))
    assert set(targets(first.epoch(0))) == set(targets(second.epoch(7)))


def test_drop_last_leaves_out_the_incomplete_batch(jets):
    loader = Loader(jets, 64, shuffle=True, seed=1, drop_last=True)
    assert [len(batch) for batch in loader.epoch(0)] == [64] * (len(jets) // 64)
    with pytest.raises(InputError, match="do not fill one batch"):
        Loader(jets, len(jets) + 1, shuffle=True, seed=1, drop_last=True)


def test_a_loop_that_ends_early_leaves_no_thread(jets):
    before = threading.active_count()
    for _ in Loader(jets, 10, shuffle=True, seed=1).epoch(0):
        break
    assert threading.active_count() == before


def test_an_error_in_the_thread_reaches_the_loop(jets, monkeypatch):
    loader = Loader(jets, 10, shuffle=True, seed=1)
    monkeypatch.setattr(jets, "gather", lambda index: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        list(loader.epoch(0))


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"fraction": 0.0}, {"fraction": 1.5}, {"rank": 2, "world_size": 2}],
)
def test_invalid_options_are_refused(jets, options):
    with pytest.raises(InputError):
        Loader(jets, **{"batch_size": 10, "shuffle": True, "seed": 1} | options)


def test_the_loader_measures_its_waiting_time(jets):
    loader = Loader(jets, 10, shuffle=True, seed=1)
    list(loader.epoch(0))
    assert loader.wait_seconds > 0


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_jets_in_memory_give_the_same_batches(jets, fraction):
    options = {"shuffle": True, "seed": 3, "fraction": fraction, "rank": 1, "world_size": 3}
    mapped, resident = (
        list(Loader(jets, 10, in_memory=choice, **options).epoch(1)) for choice in (False, True)
    )
    assert len(mapped) == len(resident) > 5
    for a, b in zip(mapped, resident, strict=True):
        assert all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        assert torch.equal(a.labels["target"], b.labels["target"])
        assert torch.equal(a.weights, b.weights)
        assert all(np.array_equal(a.observers[name], b.observers[name]) for name in a.observers)


def test_jets_that_do_not_fit_the_memory_are_refused(jets, monkeypatch):
    monkeypatch.setattr("weaver.feed.resident.free_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"padded jets need .* leave out --in-memory"):
        Loader(jets, 10, shuffle=True, seed=1, in_memory=True)


def test_an_epoch_of_blocks_sees_each_jet_once_and_can_be_resumed(jets):
    loader = Loader(jets, 50, shuffle=True, seed=1, block=7)
    jet_targets = targets(loader.epoch(0))
    assert np.array_equal(np.sort(jet_targets), np.sort(jets.label("target")))
    assert np.array_equal(targets(loader.epoch(0, start_batch=4)), jet_targets[200:])
    assert not np.array_equal(targets(loader.epoch(1)), jet_targets)


def test_jets_are_drawn_by_their_weights(tmp_path):
    """A jet of weight 0 never comes, one of half the weight half as often; each counts 1, and only
    in training.
    """
    columns = synthetic_jets(600, seed=3)
    columns["w"] = np.float32(np.arange(600) % 3) / 2
    options = yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text()) | {
        "selection": "jetPt > 0",
        "observers": ["jetPt"],
    }
    options["labels"] = {"type": "custom", "value": {"target": "w"}}
    config = DataConfig.from_options(
        {**options, "weights": {"use_precomputed_weights": True, "weight_branches": ["w"]}},
        "jec.yaml",
    )
    ref = prepare(
        str(write_jets(tmp_path / "a.root", columns)),
        config,
        str(tmp_path),
        for_training=True,
        report=lambda line: None,
    )
    dataset = Dataset.open(ref.uri, config)
    loader = Loader(dataset, 64, shuffle=True, seed=1)
    sample = [targets(loader.epoch(number)) for number in range(20)]
    assert {len(epoch) for epoch in sample} == {loader.num_jets}
    times = [np.mean([(epoch == weight).sum() for epoch in sample]) / 200 for weight in (0, 0.5, 1)]
    assert times[0] == 0
    assert times[1] == pytest.approx(times[2] / 2, rel=0.05)
    assert {weight for batch in loader.epoch(0) for weight in batch.weights.tolist()} == {1.0}
    validation = Loader(dataset, 64, shuffle=False, seed=1)
    assert validation.num_jets == 600
    assert np.array_equal(
        np.concatenate([batch.weights for batch in validation.epoch(0)]), columns["w"]
    )


def test_memory_stays_bounded_however_large_the_data_set(tmp_path, monkeypatch):
    """2.5 million jets of 6 GB (a file with holes): no list of all jets is made, and nothing is
    kept of the batches.
    """
    monkeypatch.setattr("weaver.feed.order.ROUND", 16)  # less to read ahead
    count, length, variables = 2_500_000, 100, 6
    config = DataConfig.from_options(
        yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text()) | LONE_GROUP
    )
    result = {"values": _sparse(tmp_path / "a.npy", np.float32, (count * length, variables))}
    result["offsets"] = _sparse(tmp_path / "o.npy", np.int64, (count + 1,))
    np.load(tmp_path / "o.npy", mmap_mode="r+")[:] = np.arange(count + 1) * length
    target = _sparse(tmp_path / "t.npy", np.float32, (count,))
    description = {
        "num_jets": count,
        "sequences": {"pf_features": result},
        "columns": {"label.target": target},
    }
    dataset = Dataset(
        tmp_path, description | {"preprocess_params": config.preprocess_params}, config
    )
    loader = Loader(dataset, 500, shuffle=True, seed=1)
    before = anonymous_bytes()
    for number, batch in enumerate(loader.epoch(0)):
        assert batch.inputs["pf_features"].shape == (500, variables, length)
        if number == 20:
            break
    assert anonymous_bytes() - before < 16 * 2**20, "less than the positions of all jets would take"
    assert loader.block > 0


def _sparse(path: Path, dtype: type, shape: tuple[int, ...]) -> dict:
    """A .npy file of zeros that takes no room on the disk, and its entry of dataset.json."""
    np.lib.format.open_memmap(path, "w+", dtype, shape)
    return {"file": path.name, "dtype": np.dtype(dtype).str, "shape": list(shape)}


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs /proc")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status.read_text())[1]) * 1024


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_device(jets):
    on_gpu, on_cpu = (
        next(iter(Loader(jets, 10, shuffle=True, seed=1, device=device).epoch(0)))
        for device in ("cuda", "cpu")
    )
    assert on_gpu.weights.is_cuda
    assert all(
        torch.equal(on_gpu.inputs[name].cpu(), on_cpu.inputs[name]) for name in on_cpu.inputs
    )
