"""Evaluator, helpers, raw program and torch implement every row of the vocabulary's table."""

from __future__ import annotations

import importlib

import awkward as ak
import numpy as np
import pytest
import torch

from weaver.config import vocabulary
from weaver.config.data_config import DataConfig
from weaver.config.helpers import HELPERS
from weaver.config.vocabulary import (
    COMPONENTS,
    FORMS,
    METHODS,
    NAMESPACES,
    TABLE,
    VECTOR_METHODS,
    VOCABULARY,
    names_in,
)
from weaver.onnx import raw_program
from weaver.onnx.raw_jets import pad_columns, reference_inputs
from weaver.onnx.raw_model import OPERATIONS, Preprocessing, raw_inputs

FUNCTIONS: frozenset[str] = frozenset(
    {f"{module}.{name}" for module, names in VOCABULARY.items() for name in names}
    | {f".{name}" for name in METHODS | VECTOR_METHODS | COMPONENTS}
    | names_in("helper")
    | names_in("python")
)
"""Every name that an expression may call or refer to.

"numpy.log", "awkward.num", "math.exp", ".astype", "len", "_clip".
"""

PREFIXES = {"numpy": "np.", "awkward": "ak.", "helper": ""}
ARGUMENTS = {"_clip": "x, 0.2, 0.5", "where": "x > 0.3, x, y"}
"""Of elementwise functions that are no ufunc and take more than x."""
PARTICLES = {
    "_batch_argsort": "x",
    "_batch_gather": "x, _batch_argsort(y)",
    "argsort": "x",
    "count": "x, axis=1",
    "fill_none": "ak.max(x, axis=1), 0",
    "firsts": "x",
    "full_like": "x, 2",
    "local_index": "x",
    "num": "x",
    "sort": "x",
    "values_astype": "x, np.int32",
}
"""Arguments of the functions that move, count or select particles."""
COUNTS = [3, 0, 5, 1]
PARTICLE = raw_program.Column(dtype=np.dtype("f4"), particles=True, counter="n")
COLUMNS = {
    "x": PARTICLE,
    "y": PARTICLE,
    "jetPt": raw_program.Column(dtype=np.dtype("f4"), particles=False),
}


def test_rows_are_well_formed_and_unique():
    assert len({function.name for function in TABLE}) == len(TABLE)
    for function in TABLE:
        assert set(function.namespaces) <= set(NAMESPACES), function
        assert function.form in (*FORMS, ""), function
        assert bool(function.form) == bool(function.operation), function


@pytest.mark.parametrize("module", ["numpy", "awkward", "math"])
def test_modules_have_the_functions_of_the_table(module):
    module_object = importlib.import_module(module)
    names = [name for name in vocabulary.VOCABULARY[module] if "." not in name]
    assert [name for name in names if not hasattr(module_object, name)] == []
    if module == "numpy":
        assert hasattr(module_object.linalg, "norm")


def test_each_name_is_listed_once_for_the_documentation():
    assert {"numpy.log", "awkward.num", "math.exp", "_clip", "len", ".argmax", ".deltaR"} <= (
        FUNCTIONS
    )
    attributes = vocabulary.METHODS | vocabulary.VECTOR_METHODS | vocabulary.COMPONENTS
    assert len(FUNCTIONS) == len(attributes) + sum(len(function.namespaces) for function in TABLE)
    rows = vocabulary.markdown().splitlines()
    assert len(rows) == 2 + len(TABLE)
    assert "| `log` | numpy, math | elementwise |" in rows
    assert "| `nanmax` | numpy, awkward | no |" in rows


def test_helpers_match_the_table():
    assert set(HELPERS) == vocabulary.names_in("helper")


def test_operators_have_an_operation_in_torch():
    """Except bitwise operators, which torch has for booleans only."""
    operators = (vocabulary.BINARY, vocabulary.UNARY, vocabulary.COMPARE)
    operations = {operator.operation for kinds in operators for operator in kinds.values()} - {""}
    on_bits = {"bitwise_and", "bitwise_or", "bitwise_xor", "invert"}
    assert operations - set(OPERATIONS) == on_bits
    assert on_bits < set(vocabulary.ON_BOOLEANS)
    assert set(vocabulary.ON_BOOLEANS.values()) <= set(OPERATIONS)


# math's functions take numbers, not columns; numpy's sorting functions take no lists.
SERVED = [
    (namespace, function)
    for function in TABLE
    for namespace in function.namespaces
    if function.form
    and namespace in PREFIXES
    and not (namespace == "numpy" and function.form == "particles")
]


def _expression(namespace: str, function: vocabulary.Function) -> str:
    """A call of the function on the particles' columns x and y."""
    if function.form == "reduction":
        arguments = "x > 0.5, axis=1" if function.name in ("any", "all") else "x, axis=1"
    elif function.form == "particles":
        arguments = PARTICLES[function.name]
    else:
        number = getattr(getattr(np, function.name, None), "nin", 1)
        arguments = ARGUMENTS.get(function.name, ", ".join("xy"[:number]))
        if function.operation in vocabulary.ON_BOOLEANS and function.operation not in OPERATIONS:
            arguments = ", ".join(["x > 0.5", "y > 0.3"][:number])
    text = f"{PREFIXES[namespace]}{function.name}({arguments})"
    may_be_missing = function.form == "reduction" or function.name == "firsts"
    return f"ak.fill_none({text}, 0)" if may_be_missing else text


@pytest.mark.parametrize(
    ("namespace", "function"),
    SERVED,
    ids=[f"{namespace}.{function.name}" for namespace, function in SERVED],
)
def test_each_function_with_a_form_gives_the_same_in_torch_as_in_numpy(namespace, function):
    """Without an implementation in torch this fails, so that no form is declared without one."""
    options = {
        "new_variables": {"result": _expression(namespace, function)},
        "inputs": {
            "group": {"length": 4, "vars": ["result"]},
            "all": {"length": 4, "vars": ["x", "y"]},
        },
        "labels": {"type": "custom", "value": {"target": "np.log(genPt / jetPt)"}},
    }
    config = DataConfig.from_options(options)
    rng = np.random.default_rng(1)
    jets = {
        name: ak.unflatten(rng.uniform(0.1, 0.9, sum(COUNTS)).astype("f4"), COUNTS)
        for name in ("x", "y")
    }
    jets["jetPt"] = ak.Array(np.float32([30, 40, 50, 60]))
    program = raw_program.raw_program(config, COLUMNS)
    padded_jets = pad_columns({branch: jets[branch] for branch in program.inputs}, program)
    with torch.no_grad():
        preprocessing = Preprocessing(program, config, ["group", "all"])
        result, *_ = preprocessing(
            *(torch.from_numpy(padded_jets[name]) for name in raw_inputs(program))
        )
    expected = reference_inputs(padded_jets, config, program)["group"]
    np.testing.assert_allclose(result.numpy(), expected, rtol=2e-6, atol=1e-6)
