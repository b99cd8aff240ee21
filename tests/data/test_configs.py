"""The data configs of this folder fit the JetNtuple schema and the networks they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.jetntuple import BY_NAME
from networks import particle_net_regressor_open, pfn_regressor_open
from weaver.config.data_config import DataConfig

DATA = Path(__file__).resolve().parents[2] / "data"
NETWORKS = {
    "jec_pfn_open": pfn_regressor_open,
    "jec_pfn_full": pfn_regressor_open,
    "jec_particle_net_open": particle_net_regressor_open,
    "jec_particle_net_full": particle_net_regressor_open,
}


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_config_has_branches_of_the_schema_and_the_inputs_of_its_network(path):
    config = DataConfig.load(str(path))
    assert set(config.branches) <= set(BY_NAME)
    model, info = NETWORKS[path.stem].get_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 1000
    assert set(info["input_names"]) == set(config.input_names)


@pytest.mark.parametrize("path", sorted(DATA.glob("*.yaml")), ids=lambda path: path.stem)
def test_generator_truth_is_not_an_input(path):
    config = DataConfig.load(str(path))
    inputs = {name for variables in config.input_dicts.values() for name in variables}
    assert not {
        name
        for name in inputs
        if name.startswith(("gen", "parton", "hadron", "phys", "is", "pthat"))
    }
