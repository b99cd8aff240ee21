"""The search space: accepted and refused content, and its form in an Experiment."""

import json
from pathlib import Path

import pytest

from common.errors import InputError
from training.search_space import (
    cautions,
    check_algorithm,
    for_network,
    grid_size,
    load,
    parse,
    text,
    to_json,
)

ROOT = Path(__file__).resolve().parents[2]


def error_of(check, *args):
    """The message of the InputError that the call raises."""
    with pytest.raises(InputError) as error:
        check(*args)
    return str(error.value)


def parameter(**entry):
    return parse(json.dumps({"parameters": [entry]}))[0]


@pytest.mark.parametrize("name", ["search_space.yaml", "search_space_small.yaml"])
@pytest.mark.parametrize(
    "network", ["networks/pfn_regressor_open.py", "networks/particle_net_regressor_open.py"]
)
def test_our_own_spaces_fit_our_own_networks(name, network):
    from training.network_options import check_options

    space = for_network(load(str(ROOT / "training" / name)), network)
    check_options(space, network, (ROOT / network).read_text())
    assert ("k" in [p.name for p in space]) == ("particle_net" in network)


def test_a_space_survives_a_pipeline_parameter():
    space = load(str(ROOT / "training" / "search_space.yaml"))
    line = to_json(space)
    assert "\n" not in line
    assert load(line) == space


@pytest.mark.parametrize(
    ("kind", "space", "own"),
    [
        ("int", {"min": "50", "max": "400"}, {"min": 50, "max": 400}),
        (
            "double",
            {"min": "1e-5", "max": "0.1", "distribution": "logUniform"},
            {"min": 1e-5, "max": 0.1, "distribution": "logUniform"},
        ),
        ("discrete", {"list": ["64", "0.5"]}, {"list": [64, 0.5]}),
        ("categorical", {"list": ["adam", "1"]}, {"list": ["adam", "1"]}),
    ],
)
def test_the_error_for_katibs_form_shows_the_parameter_in_our_form(kind, space, own):
    entry = {"name": "fc-dim", "parameterType": kind, "feasibleSpace": space}
    message = error_of(parse, json.dumps({"parameters": [entry]}))
    line = message[message.index("{") :]
    assert json.loads(line) == {"name": "fc-dim", "type": kind, **own}
    assert parameter(**json.loads(line)).type == kind


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ({"name": "a", "type": "integer", "min": 1, "max": 2}, ["'integer'", "'int'"]),
        ({"name": "a", "type": "int", "min": 2, "max": 2}, ["min 2", "max 2"]),
        ({"name": "a", "type": "int", "min": 1}, ["min and max"]),
        # Katib takes a range for a double, and a list for discrete and categorical
        ({"name": "a", "type": "double", "min": 1, "max": 2, "list": [1]}, ["'a'", "list"]),
        ({"name": "a", "type": "int", "min": 1, "max": 2, "list": [1, 2]}, ["'a'", "list"]),
        ({"name": "a", "type": "discrete", "list": [1, 2], "max": 2}, ["'a'", "list", "max"]),
        ({"name": "a", "type": "categorical", "list": ["x"], "step": 1}, ["'a'", "step"]),
        ({"name": "a", "type": "int", "min": 0.5, "max": 2}, ["int", "whole numbers"]),
        (
            {"name": "a", "type": "double", "min": 0, "max": 1, "distribution": "logUniform"},
            ["logUniform", "min above 0"],
        ),
        (
            {"name": "a", "type": "double", "min": 0, "max": 1, "distribution": "loguniform"},
            ["'loguniform'", "'logUniform'"],
        ),
        (
            {
                "name": "a",
                "type": "int",
                "min": 1,
                "max": 9,
                "step": 2,
                "distribution": "logUniform",
            },
            ["step", "logUniform"],
        ),
        ({"name": "a", "type": "int", "min": 1, "max": 9, "step": 0}, ["step", "above 0"]),
        ({"name": "a", "type": "double", "min": "low", "max": 1}, ["min", "'low'"]),
        ({"name": "a", "type": "double", "min": 0, "max": float("inf")}, ["max", "not finite"]),
        ({"name": "a", "type": "categorical", "list": []}, ["categorical", "list"]),
        ({"name": "a", "type": "discrete", "list": 5}, ["list"]),
        ({"name": "a", "type": "discrete", "list": [1, 1]}, ["list", "different"]),
        ({"name": "a", "type": "discrete", "list": ["many"]}, ["list", "'many'"]),
        ({"name": "a b", "type": "int", "min": 1, "max": 2}, ["letters, digits"]),
        ({"name": "a", "type": "int", "min": 1, "max": 2, "steps": 1}, ["'steps'", "'step'"]),
    ],
)
def test_an_invalid_space_is_refused(entry, facts):
    message = error_of(parse, json.dumps({"parameters": [entry]}))
    for fact in ["search space", f"parameter '{entry['name']}'", *facts]:
        assert fact in message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("it's", "'"),
        ('("a", "b")', '"'),
        ("a\\b", "\\"),
        ("two\nlines", "\n"),
        ("$$", "$$"),
        ("$(RANK)", "$("),
        ("${trialParameters.b}", "${"),
    ],
)
def test_a_value_that_katib_would_change_is_refused(value, text):
    """Seen with Katib 0.19.0, except for `${`: see UNUSABLE in training.search_space."""
    space = {"parameters": [{"name": "a", "type": "categorical", "list": ["plain", value]}]}
    message = error_of(parse, json.dumps(space))
    assert "search space, parameter 'a'" in message
    assert repr(value) in message
    assert repr(text) in message


@pytest.mark.parametrize("value", ["(0.16, 0.5, 0.84)", "a b", "a&b;c|d>e", "$HOME", "*", "`id`"])
def test_a_value_that_only_a_shell_would_change_is_taken(value):
    assert parameter(name="a", type="categorical", list=["plain", value]).list == ("plain", value)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("parameters: [", ["neither YAML nor JSON"]),
        ("other: 1\nmore: 2", ["parameters"]),
        ("parameters:\n  - {name: a}", ["{'name': 'a'}", "type"]),
        (
            (
                "parameters:\n  - {name: a, type: int, min: 1, max: 2}\n  - {name: a, type: int,"
                " min: 1, max: 2}"
            ),
            ["parameter 'a'", "twice"],
        ),
    ],
)
def test_files_that_do_not_parse_are_refused(content, facts):
    message = error_of(parse, content)
    for fact in facts:
        assert fact in message


@pytest.mark.parametrize(
    ("entry", "space"),
    [
        ({"type": "int", "min": 1, "max": 5}, {"min": "1", "max": "5"}),
        (
            {"type": "double", "min": 5e-5, "max": 0.01, "distribution": "logUniform"},
            {"min": "0.00005", "max": "0.01", "distribution": "logUniform"},
        ),
        ({"type": "discrete", "list": [50, 0.5]}, {"list": ["50", "0.5"]}),
        (
            {"type": "double", "min": 0, "max": 0.2, "step": 0.05},
            {"min": "0", "max": "0.2", "step": "0.05"},
        ),
    ],
)
def test_numbers_are_strings_in_an_experiment(entry, space):
    assert parameter(name="a-b", **entry).as_katib() == {
        "name": "a-b",
        "parameterType": entry["type"],
        "feasibleSpace": space,
    }


def test_names_inside_a_trial_are_camel_case():
    assert parameter(name="num-conv-layers", type="int", min=1, max=2).trial_name == "numConvLayers"


@pytest.mark.parametrize(
    ("number", "plain"),
    [(5.0, "5"), (5e-5, "0.00005"), (0.1, "0.1"), (-3, "-3"), (1e6, "1000000")],
)
def test_numbers_have_no_exponent(number, plain):
    assert text(number) == plain


def test_a_space_without_anything_for_the_network_is_refused():
    space = parse('[{"name": "k", "type": "int", "min": 1, "max": 2, "only_for": "particle_net*"}]')
    message = error_of(for_network, space, "networks/pfn.py")
    assert "'pfn'" in message
    assert "only_for" in message


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        (
            "def get_model(data_config, *, fc_dim=1): ...\ndef get_loss(c): ...",
            ["'fc-dims'", "'fc-dim'"],
        ),
        ("def get_model(data_config): ...", ["get_loss"]),
        ("def get_model(:", ["line 1"]),
    ],
)
def test_a_parameter_that_the_network_does_not_take_is_refused(source, facts):
    from training.network_options import check_options

    space = parse('[{"name": "fc-dims", "type": "int", "min": 1, "max": 2}]')
    message = error_of(check_options, space, "net.py", source)
    for fact in ["net.py", *facts]:
        assert fact in message


def test_a_network_that_takes_any_keyword_takes_any_parameter():
    from training.network_options import check_options

    source = "def get_model(data_config, **options): ...\nfrom losses import get_loss"
    check_options(
        parse('[{"name": "whatever", "type": "int", "min": 1, "max": 2}]'), "net.py", source
    )


@pytest.mark.parametrize(
    ("entry", "algorithm", "facts"),
    [
        ({"type": "double", "min": 0, "max": 1}, "grid", ["'a'", "step"]),
        ({"type": "double", "min": 0, "max": 1}, "cmaes", ["needs 2", "has 1"]),
        (
            {"type": "int", "min": 1, "max": 64, "distribution": "logUniform"},
            "sobol",
            ["'a'", "whole numbers uniformly"],
        ),
    ],
)
def test_an_algorithm_that_cannot_search_the_space_is_refused(entry, algorithm, facts):
    message = error_of(check_algorithm, [parameter(name="a", **entry)], algorithm)
    for fact in [f"algorithm {algorithm}", *facts]:
        assert fact in message


def test_a_grid_has_the_product_of_its_lists():
    space = [
        {"name": "a", "type": "int", "min": 1, "max": 6, "step": 2},
        {"name": "b", "type": "double", "min": 0, "max": 0.2, "step": 0.1},
        {"name": "c", "type": "categorical", "list": ["x", "y"]},
    ]
    assert grid_size(parse(json.dumps(space))) == 3 * 3 * 2


def test_a_cluster_that_draws_other_points_is_reported():
    space = load(str(ROOT / "training" / "search_space.yaml"))
    assert "start-lr" in cautions(space, "sobol")[0]
    [old] = [caution for caution in cautions(space, "random") if "0.17" in caution]
    assert "start-lr" in old
    entries = [
        {"name": "whole", "type": "int", "min": 1, "max": 5},
        {"name": "stepped", "type": "double", "min": 0, "max": 1, "step": 0.25},
        {"name": "free", "type": "double", "min": 0, "max": 1},
        {"name": "listed", "type": "discrete", "list": [1, 2]},
    ]
    for name in ("random", "tpe"):
        [ends] = cautions(parse(json.dumps(entries)), name)
        assert "whole, stepped by hyperopt's quniform" in ends
    for name in ("cmaes", "sobol"):
        assert cautions(parse(json.dumps(entries)), name) == []


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ({"name": "optimizer", "type": "categorical", "list": ["adam", "adamm"]}, "adamm"),
        ({"name": "data-fraction", "type": "double", "min": 0.5, "max": 2}, "2"),
    ],
)
def test_a_value_that_the_training_does_not_take_is_refused(entry, value):
    from training.network_options import check_options

    source = "def get_model(c): ...\ndef get_loss(c): ..."
    message = error_of(check_options, [parameter(**entry)], "net.py", source)
    assert f"parameter '{entry['name']}', value {value}" in message


NETWORK = """
import torch
def get_model(data_config, *, width: int = 8, depth: int = 2, kind: str = "plain"):
    if kind == "strange" and depth > 3:
        raise ValueError("strange networks are shallow")
    layer = torch.nn.Linear(width, width)
    if kind == "numbers":
        layer.weight.sum().item()  # cannot be had on the meta device
    if kind == "narrow":
        return torch.nn.Sequential(torch.nn.Linear(width - 1, 1)), {}
    if kind == "embedding":  # takes no number but 0
        return Embedding(), {}
    return torch.nn.Sequential(torch.nn.Linear(8, width), layer), {}
class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(1, 4)
    def forward(self, flat):
        return self.table(flat.long()).sum(dim=1)
def get_loss(data_config, **options):
    return torch.nn.L1Loss()
"""


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ({"name": "width", "type": "int", "min": 8, "max": 16}, []),
        ({"name": "kind", "type": "categorical", "list": ["plain", "numbers"]}, []),
        (
            {"name": "width", "type": "int", "min": -1, "max": 16},
            ["width -1, depth 2, kind plain"],
        ),
        (
            {"name": "kind", "type": "categorical", "list": ["plain", "strange"]},
            ["depth 4, kind strange", "strange networks are shallow"],
        ),
        ({"name": "kind", "type": "categorical", "list": ["plain", "embedding"]}, []),
        (
            {"name": "kind", "type": "categorical", "list": ["plain", "narrow"]},
            ["kind narrow", "forward does not take the inputs of jets.yaml", "flat (N, 8)"],
        ),
    ],
)
def test_the_network_is_built_with_the_extremes_of_the_space_and_takes_jets(entry, facts):
    from training.network_options import check_builds
    from weaver.config.data_config import DataConfig
    from weaver.network.network_file import NetworkFile

    entries = {
        "width": {"name": "width", "type": "int", "min": 8, "max": 9},
        "depth": {"name": "depth", "type": "int", "min": 2, "max": 4},
        "kind": {"name": "kind", "type": "categorical", "list": ["plain"]},
    }
    entries[entry["name"]] = entry
    space = [parameter(**values) for values in entries.values()]
    network = NetworkFile(uri="net.py", source=NETWORK)
    jets = {"inputs": {"flat": {"length": None, "vars": [f"x{number}" for number in range(8)]}}}
    labels = {"labels": {"type": "custom", "value": {"t": "y"}}}
    config = DataConfig.from_options({"treename": "jets", **jets, **labels}, "jets.yaml")
    if not facts:
        assert check_builds(space, network, config)
        return
    message = error_of(check_builds, space, network, config)
    for fact in facts:
        assert fact in message


def test_a_parameter_may_have_one_range_for_some_networks_and_another_for_the_others():
    space = parse(
        "parameters:\n"
        "  - {name: conv-dim, type: discrete, list: [50, 200], only_for: '!particle_net*'}\n"
        "  - {name: conv-dim, type: discrete, list: [50], only_for: 'particle_net*'}\n"
    )
    assert [part.list for part in for_network(space, "networks/pfn.py")] == [("50", "200")]
    assert [part.list for part in for_network(space, "networks/particle_net_mine.py")] == [("50",)]


def test_a_parameter_that_is_there_twice_for_a_network_is_refused():
    space = parse(
        "parameters:\n  - {name: a, type: int, min: 1, max: 2}\n  - {name: a, type: int, min: 1,"
        " max: 3, only_for: 'p*'}"
    )
    assert len(for_network(space, "q.py")) == 1
    message = error_of(for_network, space, "pfn.py")
    for fact in ("'a'", "twice", "'pfn'"):
        assert fact in message


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        ({"name": "dropout", "type": "double", "min": 0.0, "max": 1.5}, ["value 1.5"]),
        ({"name": "fc-dim", "type": "int", "min": 0, "max": 64}, ["value 0"]),
        (
            {"name": "norm", "type": "categorical", "list": ["layer", "group"]},
            ["value group", "batch, layer or none"],
        ),
    ],
)
def test_a_value_that_the_network_file_rules_out_is_refused_without_building_it(entry, facts):
    """The file's OPTIONS are read, not run: the steps' image has no torch."""
    from training.network_options import check_options

    path = ROOT / "networks" / "pfn_regressor_open.py"
    message = error_of(check_options, [parameter(**entry)], str(path), path.read_text())
    for fact in [f"parameter '{entry['name']}'", *facts]:
        assert fact in message
