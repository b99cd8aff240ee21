"""The search space: what is accepted, what is refused and with which words, and its form in an
Experiment.
"""

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


def one(**entry):
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


def test_it_survives_the_way_through_a_pipeline_parameter():
    space = load(str(ROOT / "training" / "search_space.yaml"))
    line = to_json(space)
    assert "\n" not in line
    assert load(line) == space


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"name": "a", "type": "integer", "min": 1, "max": 2}, "did you mean 'int'"),
        ({"name": "a", "type": "int", "min": 2, "max": 2}, "min 2 is not below max 2"),
        ({"name": "a", "type": "int", "min": 1}, "needs min and max"),
        ({"name": "a", "type": "int", "min": 0.5, "max": 2}, "whole numbers"),
        (
            {"name": "a", "type": "double", "min": 0, "max": 1, "distribution": "logUniform"},
            "min above 0",
        ),
        (
            {"name": "a", "type": "double", "min": 0, "max": 1, "distribution": "loguniform"},
            "'logUniform'",
        ),
        ({"name": "a", "type": "double", "min": "low", "max": 1}, "'low' is no number"),
        ({"name": "a", "type": "double", "min": 0, "max": float("inf")}, "not finite"),
        ({"name": "a", "type": "categorical", "list": []}, "needs a list"),
        ({"name": "a", "type": "discrete", "list": [1, 1]}, "different values"),
        ({"name": "a", "type": "discrete", "list": ["many"]}, "no number"),
        ({"name": "a b", "type": "int", "min": 1, "max": 2}, "a name is"),
        ({"name": "a", "type": "int", "min": 1, "max": 2, "steps": 1}, "did you mean 'step'"),
    ],
)
def test_what_makes_no_sense_is_refused(entry, wanted):
    with pytest.raises(InputError, match=wanted):
        one(**entry)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("parameters: [", "neither YAML nor JSON"),
        ("other: 1\nmore: 2", "no list of parameters"),
        ("parameters:\n  - {name: a}", "is no parameter"),
        (
            (
                "parameters:\n  - {name: a, type: int, min: 1, max: 2}\n  - {name: a, type: int,"
                " min: 1, max: 2}"
            ),
            "is there twice",
        ),
    ],
)
def test_files_that_do_not_parse_are_refused(content, wanted):
    with pytest.raises(InputError, match=wanted):
        parse(content)


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
    assert one(name="a-b", **entry).as_katib() == {
        "name": "a-b",
        "parameterType": entry["type"],
        "feasibleSpace": space,
    }


def test_names_inside_a_trial_are_camel_case():
    assert one(name="num-conv-layers", type="int", min=1, max=2).trial_name == "numConvLayers"


@pytest.mark.parametrize(
    ("number", "wanted"),
    [(5.0, "5"), (5e-5, "0.00005"), (0.1, "0.1"), (-3, "-3"), (1e6, "1000000")],
)
def test_numbers_are_plain(number, wanted):
    assert text(number) == wanted


def test_a_space_without_anything_for_the_network_is_refused():
    with pytest.raises(InputError, match="no parameter for the network"):
        for_network(
            parse(
                '[{"name": "k", "type": "int", "min": 1, "max": 2, "only_for": "particle_net*"}]'
            ),
            "networks/pfn.py",
        )


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (
            "def get_model(data_config, *, fc_dim=1): ...\ndef get_loss(c): ...",
            "did you mean 'fc-dim'",
        ),
        ("def get_model(data_config): ...", "defines no get_loss"),
        ("def get_model(:", "line 1"),
    ],
)
def test_a_parameter_that_the_network_does_not_take_is_refused(source, wanted):
    from training.network_options import check_options

    with pytest.raises(InputError, match=wanted):
        check_options(
            parse('[{"name": "fc-dims", "type": "int", "min": 1, "max": 2}]'), "net.py", source
        )


def test_a_network_that_takes_any_keyword_takes_any_parameter():
    from training.network_options import check_options

    source = "def get_model(data_config, **options): ...\nfrom losses import get_loss"
    check_options(
        parse('[{"name": "whatever", "type": "int", "min": 1, "max": 2}]'), "net.py", source
    )


@pytest.mark.parametrize(
    ("space", "algorithm", "wanted"),
    [
        ([{"name": "a", "type": "double", "min": 0, "max": 1}], "grid", "needs a step"),
        ([{"name": "a", "type": "double", "min": 0, "max": 1}], "cmaes", r"needs 2 .*has 1"),
        (
            [{"name": "a", "type": "int", "min": 1, "max": 64, "distribution": "logUniform"}],
            "sobol",
            "whole numbers uniformly",
        ),
    ],
)
def test_an_algorithm_that_cannot_search_the_space_is_refused(space, algorithm, wanted):
    with pytest.raises(InputError, match=wanted):
        check_algorithm(parse(json.dumps(space)), algorithm)


def test_the_size_of_a_grid():
    space = [
        {"name": "a", "type": "int", "min": 1, "max": 6, "step": 2},
        {"name": "b", "type": "double", "min": 0, "max": 0.2, "step": 0.1},
        {"name": "c", "type": "categorical", "list": ["x", "y"]},
    ]
    assert grid_size(parse(json.dumps(space))) == 3 * 3 * 2


def test_a_cluster_that_draws_otherwise_is_told_of():
    space = load(str(ROOT / "training" / "search_space.yaml"))
    assert cautions(space, "random") == []
    assert "start-lr" in cautions(space, "sobol")[0]


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (
            {"name": "optimizer", "type": "categorical", "list": ["adam", "adamm"]},
            "value adamm: unknown optimizer",
        ),
        (
            {"name": "data-fraction", "type": "double", "min": 0.5, "max": 2},
            "value 2: must be a number",
        ),
    ],
)
def test_a_value_that_the_training_does_not_take_is_refused(entry, wanted):
    from training.network_options import check_options

    with pytest.raises(InputError, match=wanted):
        check_options(
            parse(json.dumps([entry])), "net.py", "def get_model(c): ...\ndef get_loss(c): ..."
        )


NETWORK = """
import torch
def get_model(data_config, *, width: int = 8, depth: int = 2, kind: str = "plain"):
    if kind == "strange" and depth > 3:
        raise ValueError("strange networks are shallow")
    layer = torch.nn.Linear(width, width)
    if kind == "numbers":
        layer.weight.sum().item()  # cannot be had on the meta device
    return layer, {}
def get_loss(data_config, **options):
    return torch.nn.L1Loss()
"""


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({"name": "width", "type": "int", "min": 8, "max": 16}, ""),
        ({"name": "kind", "type": "categorical", "list": ["plain", "numbers"]}, ""),
        (
            {"name": "width", "type": "int", "min": -1, "max": 16},
            "cannot be built with width -1, depth 2, kind plain",
        ),
        (
            {"name": "kind", "type": "categorical", "list": ["plain", "strange"]},
            "depth 4, kind strange: .*strange networks are shallow",
        ),
    ],
)
def test_the_network_is_built_with_the_extremes_of_the_space(entry, wanted):
    from training.network_options import check_builds
    from weaver.network.network_file import NetworkFile

    given = {"width": {"min": 8, "max": 9}, "depth": {"min": 2, "max": 4}}
    space = [
        {"name": name, "type": "int", **ends}
        for name, ends in given.items()
        if name != entry["name"]
    ]
    space += (
        [{"name": "kind", "type": "categorical", "list": ["plain"]}]
        if entry["name"] != "kind"
        else []
    )
    parameters = sorted(
        parse(json.dumps([entry, *space])),
        key=lambda one: ["width", "depth", "kind"].index(one.name),
    )
    network = NetworkFile(uri="net.py", source=NETWORK)
    if not wanted:
        assert check_builds(parameters, network, None)
        return
    with pytest.raises(InputError, match=wanted):
        check_builds(parameters, network, None)


def test_a_parameter_may_have_one_range_for_some_networks_and_another_for_the_others():
    space = parse(
        "parameters:\n"
        "  - {name: conv-dim, type: discrete, list: [50, 200], only_for: '!particle_net*'}\n"
        "  - {name: conv-dim, type: discrete, list: [50], only_for: 'particle_net*'}\n"
    )
    assert [one.list for one in for_network(space, "networks/pfn.py")] == [("50", "200")]
    assert [one.list for one in for_network(space, "networks/particle_net_mine.py")] == [("50",)]


def test_a_parameter_that_is_there_twice_for_a_network_is_refused():
    space = parse(
        "parameters:\n  - {name: a, type: int, min: 1, max: 2}\n  - {name: a, type: int, min: 1,"
        " max: 3, only_for: 'p*'}"
    )
    assert len(for_network(space, "q.py")) == 1
    with pytest.raises(InputError, match="'a' twice for the network 'pfn'"):
        for_network(space, "pfn.py")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "dropout", "type": "double", "min": 0.0, "max": 1.5}, "'dropout', value 1.5"),
        ({"name": "fc-dim", "type": "int", "min": 0, "max": 64}, "'fc-dim', value 0"),
        (
            {"name": "norm", "type": "categorical", "list": ["layer", "group"]},
            "batch, layer or none, not 'group'",
        ),
    ],
)
def test_a_value_that_the_network_file_rules_out_is_refused_without_building_it(entry, message):
    """The file's OPTIONS are read, not run: the steps' image has no torch."""
    from training.network_options import check_options

    path = Path("networks/pfn_regressor_open.py")
    with pytest.raises(InputError, match=message):
        check_options(parse(json.dumps([entry])), str(path), path.read_text())
