"""A network that is too large is refused, and looking at its size does not change its training."""

from __future__ import annotations

import pytest
import torch

from common.errors import InputError
from weaver.network import construction_limit
from weaver.network.construction_limit import check_size, limit_construction
from weaver.network.network_file import load_network

MODULE_TENSORS = """
import functools
import torch

SCALE = torch.tensor([1.0, 2.0])

@functools.cache
def pairs(n):
    return torch.triu_indices(n, n)

def get_model(data_config, sizes=(4,), **kwargs):
    sizes.append(1)
    data_config.append("more")
    model = torch.nn.Linear(2, sizes[0])
    model.register_buffer("scale", SCALE)
    model.register_buffer("pairs", pairs(2))
    return model, {"input_names": ["x"], "output_names": ["y"]}

def get_loss(data_config, **kwargs):
    return torch.nn.L1Loss()
"""
LAYERS = """
import torch

def get_model(data_config, layers=1, width=4, lazy=False, **kwargs):
    first = torch.nn.LazyLinear(3) if lazy else torch.nn.Linear(2, width)
    model = torch.nn.Sequential(first, *(torch.nn.Linear(1, 1) for _ in range(layers)))
    return model, {"input_names": ["x"], "output_names": ["y"]}

def get_loss(data_config, **kwargs):
    return torch.nn.L1Loss()
"""


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    monkeypatch.setattr(construction_limit, "MOST_PARTS", 100)


def network_of(tmp_path, text: str):
    path = tmp_path / "network.py"
    path.write_text(text)
    return load_network(str(path))


def test_the_build_after_the_check_has_its_own_tensors_and_options(tmp_path):
    network = network_of(tmp_path, MODULE_TENSORS)
    options, data_config = {"sizes": [4]}, []
    random_numbers = torch.get_rng_state()
    assert check_size(network, data_config, options) == 2 * 4 + 4
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert (options, data_config) == ({"sizes": [4]}, [])

    model, _ = network.build(data_config, options)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert model(torch.ones(1, 2)).shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": 100}, "layers"),
        ({"layers": 10**11}, "layers"),
        ({"width": 10**10}, "parameters"),
    ],
)
def test_a_network_that_is_too_large_is_refused(tmp_path, options, words):
    with pytest.raises(InputError, match=rf"network\.py.*{words}"):
        check_size(network_of(tmp_path, LAYERS), [], options)


def test_the_size_of_lazy_layers_is_unknown(tmp_path):
    assert check_size(network_of(tmp_path, LAYERS), [], {"lazy": True}) == 0


def test_a_training_limits_the_number_of_layers_and_not_the_memory(tmp_path):
    network = network_of(tmp_path, LAYERS)
    with (
        pytest.raises(InputError, match=r"network\.py.*layers"),
        limit_construction(network.uri, limits_memory=False) as limit,
    ):
        network.build([], {"layers": 10**11})
    assert "layers" in limit.excess
