"""Batches: each jet once, the same again for a seed, shared out to ranks, and no thread left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from common.errors import InputError
from weaver.data_config import DataConfig
from weaver.dataset import Dataset
from weaver.loader import Loader


@pytest.fixture(scope="module")
def jets(prepared) -> Dataset:
    return Dataset.open(str(prepared.train), DataConfig.load(str(prepared.data_config)))


def targets(batches) -> np.ndarray:
    """The targets of the batches' real jets, in order: they tell the jets apart."""
    return np.concatenate([batch.labels["target"][batch.weights > 0].numpy() for batch in batches])


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_sees_each_jet_once(jets, shuffle):
    loader = Loader(jets, 64, shuffle=shuffle, seed=1)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader) == -(-len(jets) // 64)
    seen = targets(batches)
    assert np.array_equal(np.sort(seen), np.sort(jets.label("target")))
    assert np.array_equal(seen, jets.label("target")) is not shuffle


def test_the_order_depends_on_seed_and_epoch_alone(jets):
    def order(seed: int, epoch: int) -> np.ndarray:
        return targets(Loader(jets, 50, shuffle=True, seed=seed).epoch(epoch))

    assert np.array_equal(order(1, 3), order(1, 3))
    assert not np.array_equal(order(1, 3), order(1, 4))
    assert not np.array_equal(order(1, 3), order(2, 3))


def test_an_epoch_can_be_resumed_in_the_middle(jets):
    loader = Loader(jets, 50, shuffle=True, seed=1)
    assert np.array_equal(targets(loader.epoch(2, start_batch=4)), targets(list(loader.epoch(2))[4:]))
    assert list(loader.epoch(2, start_batch=len(loader))) == []


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_batches_of_one_rank_with_the_larger_batch(jets, world_size):
    ranks = [list(Loader(jets, 10, shuffle=True, seed=5, rank=rank, world_size=world_size).epoch(1)) for rank in range(world_size)]
    whole = list(Loader(jets, 10 * world_size, shuffle=True, seed=5).epoch(1))
    assert {len(batches) for batches in ranks} == {len(whole)}
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert np.array_equal(targets(parts), batch.labels["target"].numpy())
        assert len({len(part) for part in parts}) == 1, "every rank has batches of the same size"


def test_a_rank_without_real_jets_still_has_a_batch(jets):
    """Three ranks and one jet in the last global batch: two of them get a jet of weight 0."""
    count = len(jets) // 3 * 3 - 2
    given = {"shuffle": False, "seed": 0, "fraction": count / len(jets), "world_size": 3}
    last = [list(Loader(jets, (count - 1) // 3, rank=rank, **given).epoch(0))[-1] for rank in range(3)]
    assert [batch.weights.tolist() for batch in last] == [[1.0], [0.0], [0.0]]


def test_a_fraction_is_the_same_jets_for_each_seed(jets):
    first, second = (Loader(jets, 20, shuffle=True, seed=seed, fraction=0.25) for seed in (1, 2))
    assert first.num_jets == round(0.25 * len(jets))
    assert set(targets(first.epoch(0))) == set(targets(second.epoch(7)))


def test_drop_last_leaves_out_what_does_not_fill_a_batch(jets):
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
    monkeypatch.setattr(jets, "batch", lambda index: (_ for _ in ()).throw(OSError("disk gone")))
    with pytest.raises(OSError, match="disk gone"):
        list(loader.epoch(0))


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"fraction": 0.0}, {"fraction": 1.5}, {"rank": 2, "world_size": 2}])
def test_impossible_choices_are_refused(jets, given):
    with pytest.raises(InputError):
        Loader(jets, **{"batch_size": 10, "shuffle": True, "seed": 1} | given)


def test_waiting_is_measured(jets):
    loader = Loader(jets, 10, shuffle=True, seed=1)
    list(loader.epoch(0))
    assert loader.wait_seconds > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_device(jets):
    on_gpu, on_cpu = (next(iter(Loader(jets, 10, shuffle=True, seed=1, device=device).epoch(0))) for device in ("cuda", "cpu"))
    assert on_gpu.weights.is_cuda
    assert all(torch.equal(on_gpu.inputs[name].cpu(), on_cpu.inputs[name]) for name in on_cpu.inputs)
