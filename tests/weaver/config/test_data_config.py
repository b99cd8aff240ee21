"""Data configs: Weaver's grammar read as weaver-core reads it, and everything else refused with
the place and the nearest name.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from common.errors import InputError
from weaver.config.data_config import DataConfig

DATA = Path(__file__).parents[3] / "data"
PFN = yaml.safe_load((DATA / "jec_pfn_open.yaml").read_text())


def config(**changes) -> DataConfig:
    """The PFN's config with top-level sections replaced (None removes one)."""
    return DataConfig.from_options({**copy.deepcopy(PFN), **changes}, "jec.yaml")


def group(*variables, **more) -> dict:
    return {"g": {"length": 5, "vars": list(variables)} | more}


def test_the_pfn_config_has_the_expected_inputs_labels_and_observers():
    ours = DataConfig.load(str(DATA / "jec_pfn_open.yaml"))
    assert ours.treename == "AK4jets/jetTree"
    assert ours.input_names == ("pf_features", "pf_mask", "jet_features")
    assert ours.input_dicts["pf_features"] == [
        "PF_logPt",
        "PF_logRelPt",
        "PF_dEta",
        "PF_dPhi",
        "PF_dTheta",
        "PF_dR",
    ]
    assert ours.input_shapes == {
        "pf_features": (-1, 6, 100),
        "pf_mask": (-1, 1, 100),
        "jet_features": (-1, 8),
    }
    assert (ours.label_type, ours.label_names, ours.label_value) == (
        "custom",
        ("target",),
        {"target": "np.log(genJetPt / jetPt)"},
    )
    assert ours.observer_names == ("jetPt", "genJetPt", "genJetEta", "partonFlav", "hadronFlav")
    assert (ours.monitor_variables, ours.weight_name, ours.missing_preprocess_params) == (
        (),
        None,
        (),
    )
    assert "PF_logPt" not in ours.branches
    assert {"PF_pT", "jetPt", "genJetPt", "QG_mult", "hadronFlav"} < set(ours.branches)


def test_the_particle_net_config_adds_points_in_front():
    ours = DataConfig.load(str(DATA / "jec_particle_net_open.yaml"))
    pfn = DataConfig.load(str(DATA / "jec_pfn_open.yaml"))
    assert ours.input_names == ("pf_points", *pfn.input_names)
    assert ours.input_dicts["pf_points"] == ["PF_dEta", "PF_dPhi"]
    assert ours.branches == pfn.branches


@pytest.mark.parametrize(
    ("entry", "expected"),
    {
        "name": ("v", {"center": None, "scale": 1, "min": -5, "max": 5, "pad_value": 0}),
        "name in a list": (
            ["v"],
            {"center": None, "scale": 1, "min": -5, "max": 5, "pad_value": 0},
        ),
        "null": (["v", None], {"center": None, "scale": 1, "min": -5, "max": 5, "pad_value": 0}),
        "center": (["v", 1.7], {"center": 1.7, "scale": 1, "min": -5, "max": 5, "pad_value": 0}),
        "everything": (
            ["v", 1, 2, -3, 4, 9],
            {"center": 1, "scale": 2, "min": -3, "max": 4, "pad_value": 9},
        ),
        "number that YAML takes for text": (
            ["v", 0, "1e-3"],
            {"center": 0, "scale": 1e-3, "min": -5, "max": 5, "pad_value": 0},
        ),
    }.values(),
    ids=str,
)
def test_each_form_of_a_variable_gives_its_standardisation(entry, expected):
    assert (
        config(inputs=group(entry)).preprocess_params["v"]
        == {
            "length": 5,
            "pad_mode": "constant",
        }
        | expected
    )


def test_auto_derives_only_variables_without_a_center():
    ours = config(
        preprocess={"method": "auto", "data_fraction": 0.5},
        inputs=group("a", ["b", None], ["c", 2]),
    )
    assert ours.missing_preprocess_params == ("a",)
    derived = {name: {**params, "center": 7.0} for name, params in ours.preprocess_params.items()}
    complete = ours.with_preprocess_params(derived)
    assert (complete.missing_preprocess_params, complete.preprocess_params["a"]["center"]) == (
        (),
        7.0,
    )
    assert complete.digest() == ours.digest()
    with pytest.raises(InputError, match="another data config"):
        ours.with_preprocess_params({"a": derived["a"]})


def test_params_in_the_config_are_used_unchanged():
    params = {
        "v": {
            "length": 5,
            "pad_mode": "constant",
            "center": 3.0,
            "scale": 2.0,
            "min": -1,
            "max": 1,
            "pad_value": 0,
        }
    }
    assert (
        config(preprocess={"method": "auto", "params": params}, inputs=group("v")).preprocess_params
        == params
    )
    with pytest.raises(InputError, match="for the input 'w'"):
        config(preprocess={"method": "auto", "params": params}, inputs=group("w"))


def test_simple_labels_become_the_class_number():
    ours = config(labels={"type": "simple", "value": ["isQ", "1 - isQ"]})
    assert (ours.label_type, ours.label_names, ours.label_value) == (
        "simple",
        ("_label_",),
        ["isQ", "1 - isQ"],
    )
    assert "isQ" in ours.branches
    assert "_labelcheck_" in dict(ours.plan(True).functions)
    assert "_labelcheck_" not in dict(ours.plan(False).functions)


def test_groups_without_length_have_no_particle_axis():
    assert config(inputs=group("a", "b", length=None)).input_shapes == {"g": (-1, 2)}
    assert config(inputs=group("a", length=None)).input_shapes == {"g": (-1,)}


def test_new_variables_are_computed_after_those_they_need():
    ours = config(
        new_variables={
            "a": "b + PF_pT",
            "b": "c * 2",
            "c": "jetPt",
            "jetPt": "jetPt",
            "unused": "nothing",
        },
        inputs=group("a"),
    )
    plan = ours.plan(True)
    assert [name for name, _ in plan.functions] == ["c", "b", "a", "target"]
    assert {"PF_pT", "jetPt"} <= set(plan.branches)
    assert "nothing" not in ours.branches


def test_branches_of_the_selection_alone_are_dropped_after_it():
    plan = config(
        selection="(n > 2) & (jetTightID > 0)",
        new_variables={"n": "ak.num(PF_pT)"},
        inputs=group("n", length=None),
    ).plan(True)
    assert [name for name, _ in plan.selection_functions] == ["n"]
    assert "jetTightID" in plan.branches
    assert "jetTightID" not in plan.columns_after_selection
    assert "n" in plan.columns_after_selection


def test_the_test_set_has_its_own_selection():
    ours = config(test_time_selection="jetPt > 100")
    assert (ours.plan(True).selection.text, ours.plan(False).selection.text) == (
        PFN["selection"],
        "jetPt > 100",
    )
    assert config().plan(False).selection.text == PFN["selection"]
    assert config(selection=None).plan(True).selection is None


def test_order_by_is_parsed_and_part_of_the_digest():
    order = ["-(PF_fromPV > 0)", "-PF_pT", "PF_dR - PF_pT"]
    ours = config(
        inputs={**group("PF_dR", order_by=order), "flat": {"length": None, "vars": ["a"]}}
    )
    keys = ours.order_by["g"]
    assert set(ours.order_by) == {"g"}
    assert [(key.expression.text, key.falling) for key in keys] == [
        ("PF_fromPV > 0", True),
        ("PF_pT", True),
        ("PF_dR - PF_pT", False),
    ]
    assert {"PF_fromPV", "PF_pT", "PF_dR"} <= set(ours.branches)
    assert config(inputs=group("PF_dR", order_by="-PF_pT")).order_by["g"][0].falling
    digests = {
        config(inputs=group("PF_dR", order_by=order)).digest()
        for order in (None, ["-PF_pT"], ["PF_pT"])
    }
    assert len(digests) == 3


def test_weights_apply_to_training_only():
    ours = config(weights={"use_precomputed_weights": True, "weight_branches": ["w1", "w2"]})
    assert (ours.weight_name, ours.plan(True).weight, ours.plan(False).weight) == (
        "_weight_",
        "_weight_",
        None,
    )
    assert {"w1", "w2"} <= set(ours.plan(True).branches)
    assert not {"w1", "w2"} & set(ours.plan(False).branches)


REWEIGHTING = {
    "use_precomputed_weights": False,
    "reweight_method": "flat",
    "reweight_vars": {"jetPt": [30, 100, 300], "jetEta": [-2.5, 0, 2.5]},
    "reweight_classes": ["isQ", "isG"],
}


def test_reweighting_is_parsed_and_applies_to_training_only():
    ours = config(
        weights={**REWEIGHTING, "reweight_basewgt": "eventWeight * 2", "class_weights": [1, 2.5]}
    )
    reweighting = ours.reweighting
    assert (ours.weight_name, ours.weight_use, ours.missing_reweight_hists) == (
        "_weight_",
        "sampling",
        True,
    )
    assert (reweighting.variables, reweighting.bins) == (
        ("jetPt", "jetEta"),
        ((30, 100, 300), (-2.5, 0, 2.5)),
    )
    assert (
        reweighting.classes,
        reweighting.class_weights,
        reweighting.threshold,
        reweighting.discard,
    ) == (
        ("isQ", "isG"),
        (1, 2.5),
        10,
        True,
    )
    assert set(ours.plan(True).reweight) == {"jetPt", "jetEta", "isQ", "isG", "_basewgt_"}
    assert {"isQ", "isG", "eventWeight"} <= set(ours.plan(True).branches)
    assert not {"isQ", "eventWeight"} & set(ours.plan(False).branches)


def test_derived_numbers_are_stored_and_do_not_change_the_digest():
    ours = config(weights=REWEIGHTING, preprocess={"method": "auto"}, inputs=group("a"))
    table = [[0.5, 0.25], [1, 0]]
    params = {"a": {**ours.preprocess_params["a"], "center": 2.0}}
    derived = {
        "preprocess_params": params,
        "reweight_hists": {"isQ": table, "isG": table},
        "non_finite_policy": "drop",
    }
    complete = ours.with_derived_parameters(json.loads(json.dumps(derived)))
    assert (complete.derived_parameters, complete.digest()) == (derived, ours.digest())
    assert (complete.missing_reweight_hists, complete.missing_preprocess_params) == (False, ())
    copy_from_yaml = DataConfig.from_options(yaml.safe_load(complete.auto_yaml()))
    assert copy_from_yaml.derived_parameters == {**derived, "non_finite_policy": "weaver"}
    with pytest.raises(InputError, match=r"'isG' has \(1, 2\) bins, reweight_vars \(2, 2\)"):
        ours.with_derived_parameters(
            {**derived, "reweight_hists": {"isQ": table, "isG": table[:1]}}
        )


def test_bucketing_is_ignored_with_a_warning():
    ours = config(bucketing={"var": "nPF", "bins": 3})
    assert ours.digest() == config().digest()
    assert [line for line in ours.warnings if "bucketing" in line]


def test_an_extra_selection_applies_to_one_role_and_not_to_derived_numbers():
    """weaver-core 0.5.3: `(selection) & (extra)`, which its AutoStandardizer does not see."""
    ours = config(selection="jetPt > 20")
    more = ours.with_extra_selection("jetEta < 2", "--extra-selection-train", for_training=True)
    assert more.plan(True).selection.text == "(jetPt > 20) & (jetEta < 2)"
    assert more.plan(False).selection.text == "jetPt > 20"
    assert more.plan_to_derive(["jetPt"]).selection.text == "jetPt > 20"
    assert more.digest() != ours.digest()
    for_tests = ours.with_extra_selection(
        "jetEta < 2", "--extra-selection-test", for_training=False
    )
    assert for_tests.plan(True).selection.text == "jetPt > 20"
    assert for_tests.plan(False).selection.text == "(jetPt > 20) & (jetEta < 2)"
    alone = config(selection=None).with_extra_selection("x > 1", "--flag", for_training=True)
    assert alone.plan(True).selection.text == "x > 1"
    assert alone.plan_to_derive(["jetPt"]).selection is None
    with pytest.raises(InputError, match="--flag"):
        ours.with_extra_selection("x >", "--flag", for_training=True)


def test_branch_magic_renames_the_branches_to_read():
    ours = config(branch_magic={"PF_": "JetPF_"}, inputs=group("PF_dR"))
    assert ours.plan(True).branches["PF_dR"] == "JetPF_dR"


@pytest.mark.parametrize(
    ("changes", "reason"),
    {
        "unknown section": ({"selecton": "a"}, "unknown key 'selecton'; did you mean 'selection'"),
        "misspelt key of a group": (
            {"inputs": {"g": {"lenght": 3, "vars": ["a"]}}},
            "'length' is missing (null for one value a jet) (unknown key 'lenght'; did you mean",
        ),
        "unknown key of weights": (
            {"weights": {"use_precomputed_weight": True}},
            "did you mean 'use_precomputed_weights'",
        ),
        "method": (
            {"preprocess": {"method": "atuo"}},
            "unknown method 'atuo'; did you mean 'auto'",
        ),
        "data_fraction": ({"preprocess": {"data_fraction": 0}}, "data_fraction must be above 0"),
        "no inputs": ({"inputs": None}, "no 'inputs'"),
        "group is not a mapping": (
            {"inputs": {"g": ["a"]}},
            "inputs:g: expected length and vars, found a list",
        ),
        "group name": (
            {"inputs": {"../g": {"length": 1, "vars": ["a"]}}},
            "cannot be the name of a group",
        ),
        "length missing": ({"inputs": {"g": {"vars": ["a"]}}}, "inputs:g: 'length' is missing"),
        "length": (
            {"inputs": group("a", length=0)},
            "length must be a positive whole number or null, found 0",
        ),
        "pad_mode": (
            {"inputs": group("a", pad_mode="warp")},
            "unknown pad_mode 'warp'; did you mean 'wrap'",
        ),
        "wrapped mask": (
            {"inputs": {"pf_mask": {"length": 1, "pad_mode": "wrap", "vars": ["a"]}}},
            "a mask needs pad_mode constant",
        ),
        "order without length": (
            {"inputs": group("a", length=None, order_by=["b"])},
            "order_by sorts particles",
        ),
        "order": (
            {"inputs": group("a", order_by=[1])},
            "order_by is a list of expressions, as in [-PF_pT]; found [1]",
        ),
        "order expression": (
            {"inputs": group("a", order_by=["-np.lgo(b)"])},
            "jec.yaml:inputs:g:order_by: expression '-np.lgo(b)'",
        ),
        "no variables": ({"inputs": group()}, "vars must be a list"),
        "too many values": (
            {"inputs": group(["a", 1, 2, 3, 4, 5, 6])},
            "each of vars is a name or [name, subtract_by",
        ),
        "value is not a number": (
            {"inputs": group(["a", "zero"])},
            "inputs:g:a: center: expected a number, found 'zero'",
        ),
        "variable twice, differently": (
            {"inputs": group("a", ["a", 1])},
            "inputs:g: 'a' is listed twice, as",
        ),
        "variable in two forms": (
            {"inputs": {**group("a"), "h": {"length": 7, "vars": ["a"]}}},
            "inputs:h: 'a' is used in another group",
        ),
        "no labels": ({"labels": None}, "type must be simple or custom"),
        "label type": ({"labels": {"type": "smple", "value": []}}, "found 'smple'"),
        "custom label": (
            {"labels": {"type": "custom", "value": ["a"]}},
            "custom label needs value: {name: expression}",
        ),
        "simple label": (
            {"labels": {"type": "simple", "value": {}}},
            "simple label needs value: [branch, ...]",
        ),
        "observers and monitors": (
            {"monitor_variables": ["jetPt"]},
            "cannot be set at the same time",
        ),
        "observers": ({"observers": "jetPt"}, "observers: expected a list of names"),
        "selection": ({"selection": ["a"]}, "selection: expected text, found a list"),
        "expression": (
            {"selection": "jetPt >"},
            "jec.yaml:selection: expression 'jetPt >': it does not parse",
        ),
        "function": (
            {"new_variables": {"x": "np.lgo(a)"}},
            "jec.yaml:new_variables:x: expression 'np.lgo(a)'",
        ),
        "name": ({"new_variables": {"a-b": "c"}}, "cannot be the name of a variable"),
        "circle": (
            {"new_variables": {"PF_logPt": "x", "x": "PF_logPt"}},
            "in a circle: PF_logPt -> x -> PF_logPt",
        ),
        "self": ({"new_variables": {"jetPt": "jetPt * 2"}}, "in a circle: jetPt -> jetPt"),
        "weights": ({"weights": {"use_precomputed_weights": True}}, "needs weight_branches"),
        "use of weights": (
            {"weights": {**REWEIGHTING, "use_as": "los"}},
            "weights: unknown use_as 'los'; did you mean 'loss'",
        ),
        "reweight_method": (
            {"weights": {**REWEIGHTING, "reweight_method": "falt"}},
            "unknown reweight_method 'falt'; did you mean 'flat'",
        ),
        "reweight_classes": (
            {"weights": {**REWEIGHTING, "reweight_classes": "isQ"}},
            "reweight_classes must be a list",
        ),
        "class_weights": (
            {"weights": {**REWEIGHTING, "class_weights": [1]}},
            "one number for each of 2 reweight_classes",
        ),
        "reweight_vars": (
            {"weights": {**REWEIGHTING, "reweight_vars": {"a": [1, 2]}}},
            "must name two variables",
        ),
        "edges": (
            {"weights": {**REWEIGHTING, "reweight_vars": {"a": [1, 2], "b": [2, 2]}}},
            "'b' needs two or more rising edges",
        ),
        "threshold": (
            {"weights": {**REWEIGHTING, "reweight_threshold": 101}},
            "a percentile from 0 to 100",
        ),
        "reweight_hists": (
            {"weights": {**REWEIGHTING, "reweight_hists": {"isQ": [[1]]}}},
            "one histogram for each of isQ, isG",
        ),
        "policy": (
            {"preprocess": {"non_finite": "drp"}},
            "preprocess: unknown non_finite 'drp'; did you mean 'drop'",
        ),
    }.values(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_invalid_config_is_refused_with_the_reason(changes, reason):
    with pytest.raises(InputError) as error:
        config(**changes)
    assert reason in str(error.value)
    assert str(error.value).startswith("jec.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "neither YAML nor JSON"),
        ("- a\n- b", "expected a mapping"),
        ("", "found an empty value"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
    ],
)
def test_a_file_without_a_data_config_is_refused(tmp_path, text, reason):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=reason) as error:
        DataConfig.load(str(path))
    assert str(path) in str(error.value)


def test_a_missing_config_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        DataConfig.load(str(tmp_path / "none.yaml"))


def test_the_digest_depends_on_the_meaning_and_not_on_the_layout():
    base = config().digest()
    assert config(selection="(genJetPt>20)&(np.abs(genJetEta)<2.5)").digest() == base
    assert config(new_variables={**PFN["new_variables"], "unused": "1 + jetPt"}).digest() == base
    different = [
        {"selection": "genJetPt > 21"},
        {"observers": ["jetPt"]},
        {"treename": "other"},
        {"new_variables": {**PFN["new_variables"], "PF_logPt": "np.log10(PF_pT)"}},
        {"inputs": {name: PFN["inputs"][name] for name in reversed(PFN["inputs"])}},
        {"labels": {"type": "custom", "value": {"target": "genJetPt"}}},
    ]
    assert len({base, *(config(**changes).digest() for changes in different)}) == len(different) + 1


def test_a_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().treename = "other"


def test_unknown_keys_are_warnings_with_their_names(tmp_path, capsys):
    """weaver-core 0.5.3 ignores keys of a section that it does not know."""
    changes = {
        "inputs": group("a", lenth=3),
        "preprocess": {"metod": "auto"},
        "labels": {"type": "simple", "value": ["a"], "class_weight": [1, 2]},
        "weights": {
            "use_precomputed_weights": True,
            "weight_branches": ["w"],
            "reweight_load_fraction": 0.3,
        },
        "selecton": None,
    }
    without_unknown = config(inputs=group("a"), labels={"type": "simple", "value": ["a"]})
    ours = config(**changes)
    assert ours.preprocess_params == without_unknown.preprocess_params
    assert ours.preprocess["method"] == "manual"
    path = tmp_path / "keys.yaml"
    path.write_text(yaml.safe_dump(ours.options))
    DataConfig.load(str(path))
    DataConfig.load(str(path))  # once in a process
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for key in ("lenth", "metod", "class_weight", "reweight_load_fraction"):
        assert sum(f"'{key}'" in line and line.startswith("warning: ") for line in lines) == 1


def test_a_variable_may_be_listed_twice_in_a_group():
    """weaver-core 0.5.3 makes two equal rows of it."""
    ours = config(inputs=group("a", "b", "a"))
    assert ours.input_dicts == {"g": ["a", "b", "a"]}
    assert ours.input_shapes["g"][1] == 3
