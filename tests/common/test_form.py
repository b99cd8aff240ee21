"""Kubeflow's form: names, order and types of the pipeline's parameters, and the way back."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from common import form
from common.config import RunConfig
from common.errors import InputError

SPACE = {"parameters": [{"name": "start-lr", "type": "double", "min": 0.001, "max": 0.01}]}
PREFIXES = ("data", "gate", "kubeflow", "pods", "report", "search", "serve", "storage", "tracking")


def test_every_field_but_experiment_name_is_in_the_form():
    fields = [entry.field for entry in form.ENTRIES]
    missing = {field.name for field in dataclasses.fields(RunConfig)} - set(fields)
    assert missing == {"experiment_name"}
    names = [entry.name for entry in form.ENTRIES]
    assert len(set(fields)) == len(fields)
    assert len({*names, form.SETTINGS}) == len(names) + 1
    for name in names:
        assert name.split("_")[0] in PREFIXES or name == "network_config", name


def test_the_most_used_parameters_are_at_the_top():
    """The form sorts by name."""
    order = sorted(form.TYPES)
    top, below = order[: order.index(form.SETTINGS)], order[order.index(form.SETTINGS) + 1 :]
    assert len(top) <= 10
    assert {"data_train", "data_val", "data_test", "search_space", "pods_num_gpus"} <= set(top)
    assert all(name.startswith("storage_") for name in below)


def test_names_include_the_unit_and_the_owner_of_the_account():
    names = {entry.field: entry.name for entry in form.ENTRIES}
    assert names["min_improvement"].endswith("_percent")
    assert names["max_closure"].endswith("_fraction")
    assert names["service_account"] == "serve_account"


def test_no_name_of_the_form_is_the_name_of_another_field():
    """Earlier versions used the names of the fields as names of parameters."""
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    for entry in form.ENTRIES:
        assert entry.name == entry.field or entry.name not in fields


def test_every_parameter_and_every_setting_is_described():
    assert set(form.DESCRIPTIONS) == set(form.TYPES)
    assert all(len(text) > 10 for text in form.DESCRIPTIONS.values())
    for entry in form.IN_SETTINGS:
        assert f"{entry.name}: {entry.description}" in form.DESCRIPTIONS[form.SETTINGS]


def test_parameters_restore_their_configuration():
    config = RunConfig(
        s3_bucket="s3://bucket/jec",
        search_space=json.dumps(SPACE),
        num_gpus=2,
        memory="24Gi",
        min_improvement=1.5,
        seed="7",
        skip_bad_files=True,
    )
    parameters = form.parameters(config, SPACE)
    assert {name: type(value) for name, value in parameters.items()} == form.TYPES
    assert RunConfig.from_dict(form.fields(parameters)) == config


def test_parameters_with_names_of_fields_are_accepted():
    earlier = {**RunConfig(num_gpus=2).parameters(), "search_space": json.dumps(SPACE)}
    assert form.fields(earlier) == earlier


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("pods_num_cpus", 3, "num_cpus", 3),
        ("pods_num_cpus", 3.0, "num_cpus", 3),
        ("pods_num_cpus", "3", "num_cpus", 3),
        ("search_seed", 7, "seed", "7"),
        ("search_seed", 7.0, "seed", "7"),
        ("serve_cpus", 0.5, "serving_cpus", "0.5"),
        ("gate_max_closure_fraction", 1, "max_closure", 1.0),
        ("gate_max_closure_fraction", 0.01, "max_closure", 0.01),
        ("data_skip_bad_files", True, "skip_bad_files", True),
        ("data_skip_bad_files", "false", "skip_bad_files", False),
        ("pods_memory", "24Gi", "memory", "24Gi"),
    ],
)
def test_a_setting_gets_the_type_of_its_field(name, value, field, expected):
    values = form.fields_of_settings(json.dumps({name: value}))
    assert values == {field: expected}
    assert type(values[field]) is type(expected)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("{", ["settings"]),
        ("[1]", ["settings", r"\[1\]", "object"]),
        ('{"pods_memori": "2Gi"}', ["pods_memori", "pods_memory"]),
        ('{"memory": "2Gi"}', ["memory", "pods_memory"]),
        ('{"data_train": "x"}', ["data_train", "of its own"]),
        ('{"pods_num_cpus": 2.5}', ["pods_num_cpus", r"2\.5", "whole number"]),
        ('{"pods_num_cpus": true}', ["pods_num_cpus", "true"]),
        ('{"pods_num_cpus": null}', ["pods_num_cpus", "null"]),
        ('{"pods_num_cpus": 1e999}', ["pods_num_cpus"]),
        ('{"search_seed": NaN}', ["search_seed"]),
        ('{"pods_memory": {"a": 1}}', ["pods_memory"]),
        ('{"data_skip_bad_files": "perhaps"}', ["data_skip_bad_files", "true or false"]),
        ('{"gate_max_closure_fraction": "small"}', ["gate_max_closure_fraction", "small"]),
    ],
)
def test_an_invalid_setting_is_refused_by_name(text, facts):
    with pytest.raises(InputError) as refusal:
        form.fields_of_settings(text)
    for fact in facts:
        assert re.search(fact, str(refusal.value)), fact
