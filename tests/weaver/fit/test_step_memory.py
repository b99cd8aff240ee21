"""The memory of a training step, estimated from a few jets."""

from __future__ import annotations

import pytest
import torch

from weaver.config.data_config import DataConfig
from weaver.feed.dataset import Dataset
from weaver.fit import step_memory
from weaver.network.precision import Precision

FLOAT32 = Precision("float32")


class Wide(torch.nn.Module):
    """Keeps one (N, 1000) tensor for tanh's backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1000)
        self.norm = torch.nn.BatchNorm1d(8)

    def forward(self, features, mask, jet):
        return torch.tanh(self.layer(self.norm(jet)))


@pytest.fixture(scope="module")
def jets(prepared) -> Dataset:
    return Dataset.open(str(prepared.train), DataConfig.load(str(prepared.data_config)))


def test_memory_for_the_backward_pass_grows_with_the_jets():
    model = Wide()
    two, twenty = (
        step_memory.autograd_bytes(model, (None, None, torch.rand(count, 8)), FLOAT32)
        for count in (2, 20)
    )
    assert 2 * 4000 <= two < 2 * 4000 + 1000
    assert twenty - two == pytest.approx(18 * 4000, rel=0.1)


def test_measuring_changes_neither_the_model_nor_the_random_state(jets):
    model = Wide()
    before, random = (
        {name: value.clone() for name, value in model.state_dict().items()},
        torch.get_rng_state(),
    )
    step_memory.warning(model, jets, 500, FLOAT32, torch.device("cpu"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_step_that_does_not_fit_is_reported_with_a_batch_size_that_fits(jets, monkeypatch):
    monkeypatch.setattr(step_memory, "free_bytes", lambda device: 2**20)
    line = step_memory.warning(Wide(), jets, 500, FLOAT32, torch.device("cpu"))
    fits = int(line.partition("about ")[2].partition("; about ")[2].split()[0])
    assert 100 < fits < 200, line
    assert step_memory.warning(Wide(), jets, fits, FLOAT32, torch.device("cpu")) is None
