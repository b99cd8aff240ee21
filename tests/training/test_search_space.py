"""The search space: what is accepted, what is refused and with which words, and its form in an Experiment."""

from pathlib import Path

import pytest

from common.errors import InputError
from training.search_space import for_network, load, parse, text, to_json

ROOT = Path(__file__).resolve().parents[2]


def one(**entry):
    import json

    return parse(json.dumps({"parameters": [entry]}))[0]


@pytest.mark.parametrize("name", ["search_space.yaml", "search_space_small.yaml"])
@pytest.mark.parametrize("network", ["networks/pfn_regressor_open.py", "networks/particle_net_regressor_open.py"])
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
        ({"name": "a", "type": "double", "min": 0, "max": 1, "distribution": "logUniform"}, "min above 0"),
        ({"name": "a", "type": "double", "min": 0, "max": 1, "distribution": "loguniform"}, "'logUniform'"),
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
        ("parameters:\n  - {name: a, type: int, min: 1, max: 2}\n  - {name: a, type: int, min: 1, max: 2}", "is there twice"),
    ],
)
def test_files_that_do_not_parse_are_refused(content, wanted):
    with pytest.raises(InputError, match=wanted):
        parse(content)


@pytest.mark.parametrize(
    ("entry", "space"),
    [
        ({"type": "int", "min": 1, "max": 5}, {"min": "1", "max": "5"}),
        ({"type": "double", "min": 5e-5, "max": 0.01, "distribution": "logUniform"},
         {"min": "0.00005", "max": "0.01", "distribution": "logUniform"}),
        ({"type": "discrete", "list": [50, 0.5]}, {"list": ["50", "0.5"]}),
        ({"type": "double", "min": 0, "max": 0.2, "step": 0.05}, {"min": "0", "max": "0.2", "step": "0.05"}),
    ],
)  # fmt: skip
def test_numbers_are_strings_in_an_experiment(entry, space):
    assert one(name="a-b", **entry).as_katib() == {"name": "a-b", "parameterType": entry["type"], "feasibleSpace": space}


def test_names_inside_a_trial_are_camel_case():
    assert one(name="num-conv-layers", type="int", min=1, max=2).trial_name == "numConvLayers"


@pytest.mark.parametrize(("number", "wanted"), [(5.0, "5"), (5e-5, "0.00005"), (0.1, "0.1"), (-3, "-3"), (1e6, "1000000")])
def test_numbers_are_plain(number, wanted):
    assert text(number) == wanted


def test_a_space_without_anything_for_the_network_is_refused():
    with pytest.raises(InputError, match="no parameter for the network"):
        for_network(parse('[{"name": "k", "type": "int", "min": 1, "max": 2, "only_for": "particle_net*"}]'), "networks/pfn.py")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("def get_model(data_config, *, fc_dim=1): ...\ndef get_loss(c): ...", "did you mean 'fc-dim'"),
        ("def get_model(data_config): ...", "defines no get_loss"),
        ("def get_model(:", "line 1"),
    ],
)
def test_a_parameter_that_the_network_does_not_take_is_refused(source, wanted):
    from training.network_options import check_options

    with pytest.raises(InputError, match=wanted):
        check_options(parse('[{"name": "fc-dims", "type": "int", "min": 1, "max": 2}]'), "net.py", source)


def test_a_network_that_takes_any_keyword_takes_any_parameter():
    from training.network_options import check_options

    source = "def get_model(data_config, **options): ...\nfrom losses import get_loss"
    check_options(parse('[{"name": "whatever", "type": "int", "min": 1, "max": 2}]'), "net.py", source)
