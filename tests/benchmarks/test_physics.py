"""Each variant of the ablation is the full data config less exactly what its name says."""

from __future__ import annotations

import pytest

from benchmarks.physics import GLOBALS, NETWORKS, TREES, TYPES, VARIANTS, data_config_text
from evaluating import jet_columns
from weaver.config.data_config import DataConfig

LEFT_OUT = {
    "without type and charge": set(TYPES),
    "without the globals": set(GLOBALS),
    "without PF_fromPV": {"PF_fromPV"},
    "without PF_fromAK4Jet": {"PF_fromAK4Jet"},
}


def load_config(network: str, variant: str, folder) -> DataConfig:
    path = folder / f"{network}.yaml"
    path.write_text(data_config_text(NETWORKS[network], VARIANTS[variant]))
    return DataConfig.load(str(path))


def variables(config: DataConfig) -> set[str]:
    return {name for names in config.input_dicts.values() for name in names}


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize(
    "variant", [name for name, variant in VARIANTS.items() if not variant.is_open]
)
def test_a_variant_lacks_only_what_its_name_says(network, variant, tmp_path):
    full, config = load_config(network, "full", tmp_path), load_config(network, variant, tmp_path)
    assert variables(full) - variables(config) == LEFT_OUT.get(variant, set())
    assert config.selection == full.selection
    assert bool(config.order_by) == (variant != "in the file's order")
    standardised = {
        tuple(config.preprocess_params[name][key] for key in ("center", "scale"))
        for name in variables(config)
    }
    assert (standardised <= {(None, 1), (None, 1.0)}) == (variant == "not standardised")


def test_trees_use_existing_columns_and_those_of_the_report_use_all():
    columns_of_project = (*jet_columns.JET, *jet_columns.FRACTIONS)
    for columns in TREES.values():
        assert set(columns) <= set(columns_of_project)
        assert set(columns) >= set(jet_columns.REQUIRED)
    assert TREES["trees, all columns"] == columns_of_project
