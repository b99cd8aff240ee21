"""Expressions mean what Python, numpy and awkward mean by them, and nothing outside the vocabulary
gets through.
"""

from __future__ import annotations

import math
import pickle

import awkward as ak
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from weaver.config.expressions import Expression
from weaver.config.helpers import random_numbers

PLACE = "jec.yaml:new_variables:x"
COLUMNS = {
    "pt": ak.values_astype(ak.Array([[1.0, 20.0, 3.5], [], [0.0, 7.0]]), "float32"),
    "charge": ak.values_astype(ak.Array([[1, -1, 0], [], [0, 1]]), "int32"),
    "jet_pt": ak.Array(np.float32([30, 40, 50])),
    "label": ak.Array(np.int32([0, 1, 1])),
}


@pytest.mark.parametrize(
    "text",
    [
        "np.log(pt / jet_pt)",
        "(jet_pt > 35) & (np.abs(label) < 2.5) | ~(label == 1)",
        "1 - label",
        "-pt ** 2 + +jet_pt // 7 % 3 - 2 * pt",
        "(label << 2) >> 1 ^ 3",
        "(np.abs(charge)==1) + (np.abs(charge)==0)*0.5",
        "ak.ones_like(pt)",
        "ak.num(pt, axis=1)",
        "ak.sum(pt[charge != 0], axis=-1)",
        "ak.fill_none(ak.firsts(pt[ak.argsort(pt, ascending=False)]), 0)",
        "pt[:, :2]",
        "ak.values_astype(label == 1, np.float32)",
        "np.where(jet_pt > 35, jet_pt, math.pi)",
        "np.stack([ak.to_numpy(label), ak.to_numpy(1 - label)], axis=1).argmax(1)",
        "np.isin(ak.to_numpy(label), [1, 2])",
        "np.clip(ak.to_numpy(jet_pt), 35, 45)",
        "len(jet_pt) * jet_pt",
        "numpy.tanh(awkward.to_numpy(jet_pt) / math.sqrt(2))",
    ],
)
def test_values_and_types_are_those_of_python(text):
    ours = Expression(text).evaluate(COLUMNS)
    with np.errstate(all="ignore"):
        theirs = eval(
            text, {"np": np, "numpy": np, "ak": ak, "awkward": ak, "math": math}, dict(COLUMNS)
        )
    assert ak.type(ours) == ak.type(theirs)
    assert ak.array_equal(ours, theirs, equal_nan=True)


NUMBERS = st.one_of(
    st.integers(-50, 50).map(str),
    st.floats(-50, 50, allow_nan=False).map(repr),
    st.sampled_from(["a", "b", "c"]),
)
FORMULAS = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "<", ">=", "=="]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        inner.map(lambda text: f"(-{text})"),
        inner.map(lambda text: f"np.arctan({text})"),
    ),
    max_leaves=8,
)


@given(FORMULAS)
def test_random_formulas_are_those_of_python(text):
    columns = {name: np.linspace(start, 3, 4) for name, start in (("a", -2), ("b", 0), ("c", 1))}
    try:
        with np.errstate(all="ignore"):
            theirs = eval(text, {"np": np}, dict(columns))
    except (ZeroDivisionError, TypeError):  # of plain numbers; numpy's `-` on a bool
        with pytest.raises(InputError, match="cannot be evaluated"):
            Expression(text).evaluate(columns)
        return
    assert np.array_equal(Expression(text).evaluate(columns), theirs, equal_nan=True)


def test_names_are_the_columns_that_are_needed_once_each():
    assert Expression("np.log(PF_pT / jetPt) + ak.sum(PF_pT) + math.pi").names == ("PF_pT", "jetPt")


def test_layout_does_not_change_the_canonical_form():
    assert (
        Expression("( a+ b )*2").canonical()
        == Expression("(a + b) * 2").canonical()
        != Expression("a + b * 2").canonical()
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    {
        "import": ("__import__('os').system('true')", "system"),
        "dunder": ("pt.__class__", "__class__"),
        "builtin": ("open('x')", "unknown function or constant 'open'"),
        "eval": ("eval('1')", "unknown function or constant 'eval'"),
        "file": ("np.load('x')", "unknown function or constant 'np.load'"),
        "file of awkward": (
            "ak.from_parquet('x')",
            "unknown function or constant 'ak.from_parquet'",
        ),
        "random": ("np.random.rand(3)", "rand"),
        "nearest of numpy": ("np.lgo(pt)", "'np.log'"),
        "nearest by bare name": ("abs(pt)", "'np.abs'"),
        "submodule": ("np.linalg.norm(pt)", "norm"),
        "lambda": ("(lambda: 1)()", "lambda"),
        "comprehension": ("[x for x in pt]", "comprehension"),
        "walrus": ("(x := 1)", "NamedExpr"),
        "f-string": ("f'{pt}'", "formatted string"),
        "dict": ("{'a': 1}", "Dict"),
        "and": ("pt and label", "write & and |"),
        "not": ("not label", "write ~"),
        "chain": ("0 < label < 2", "(a < b) & (b < c)"),
        "ternary": ("1 if label else 0", "np.where"),
        "in": ("label in [1]", "np.isin"),
        "is": ("label is None", "write =="),
        "matrix product": ("pt @ pt", "@"),
        "star": ("np.hypot(*pt)", "*"),
        "out by keyword": ("np.add(pt, 1, out=pt)", "out="),
        "out by position": ("np.log(pt, pt)", "at most 1"),
        "out of a reduction": ("np.sum(pt, 0, None, pt)", "at most 3"),
        "call of a call": ("np.log(pt)(pt)", "named function"),
        "module alone": ("np", "np.something"),
        "private name": ("_secret + 1", "underscore"),
        "complex": ("1j * pt", "1j"),
        "syntax": ("pt +", "does not parse"),
        "empty": ("", "does not parse"),
        "two statements": ("pt; label", "does not parse"),
        "deep": ("-" * 20000 + "pt", "nested too deeply"),
    }.values(),
    ids=lambda value: value[:20],
)
def test_refused_before_any_evaluation(text, reason):
    with pytest.raises(InputError) as refused:
        Expression(text, PLACE)
    assert reason in str(refused.value)
    assert str(refused.value).startswith(f"{PLACE}: expression '{text[:100]}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pt + jet_ptt", "no column 'jet_ptt'; did you mean 'jet_pt'?"),
        ("math.log(pt)", "cannot be evaluated"),
        ("pt + pt[:, :1]", "cannot be evaluated"),
        ("9 ** 9 ** 9", "too large"),
        ("1 << 10 ** 9", "too large"),
        ("'a' * 10 ** 9", "not on text"),
        ("[0] * 10 ** 9", "not on text or lists"),
        ("pt.sum()", "write ak.sum"),
    ],
)
def test_refused_in_evaluation(text, reason):
    with pytest.raises(InputError, match=PLACE) as refused:
        Expression(text, PLACE).evaluate(COLUMNS)
    assert reason in str(refused.value)


def test_columns_are_left_as_they_were():
    column = np.arange(3.0)
    Expression("np.maximum(x, 1) * 2 - x").evaluate({"x": column})
    assert column.tolist() == [0, 1, 2]


def test_helpers_of_weaver():
    assert Expression("_clip(pt, 1.5, 10)").evaluate(COLUMNS).to_list() == [
        [1.5, 10, 3.5],
        [],
        [1.5, 7],
    ]
    assert Expression("_batch_gather(pt, _batch_argsort(pt))").evaluate(COLUMNS).to_list() == [
        [1, 3.5, 20],
        [],
        [0, 7],
    ]
    assert Expression("_concat([jet_pt, jet_pt])").evaluate(COLUMNS).to_list() == [
        30,
        40,
        50,
        30,
        40,
        50,
    ]
    assert Expression("_stack([jet_pt, jet_pt])").evaluate({"jet_pt": np.arange(3)}).tolist() == [
        [0, 0],
        [1, 1],
        [2, 2],
    ]
    assert Expression("_stack([jet_pt, jet_pt], 1)").evaluate(COLUMNS).to_list() == [
        [30, 30],
        [40, 40],
        [50, 50],
    ]


def test_four_momenta():
    columns = {
        "pt": ak.Array([[3.0, 0.0], []]),
        "zero": ak.Array([[0.0, 0.0], []]),
        "m": ak.Array([[4.0, 2.0], []]),
    }
    columns["p4"] = Expression("_p4_from_ptetaphim(pt, zero, zero, m)").evaluate(columns)
    assert Expression("p4.energy + p4.px").evaluate(columns).to_list() == [[8, 2], []]
    assert Expression("(p4 + p4).mass").evaluate(columns).to_list() == [[8, 4], []]
    assert Expression("p4.deltaR(p4)").evaluate(columns).to_list() == [[0, 0], []]
    assert Expression("p4.pt").names == ("p4",)
    with pytest.raises(InputError, match=r"expression 'pt.px': '.px' is that of a four-momentum"):
        Expression("pt.px").evaluate(columns)
    with pytest.raises(InputError, match=r"'.layout' is not allowed"):
        Expression("p4.layout")


def test_random_helpers_repeat_by_seed():
    columns = {"pt": ak.Array([list(range(40)), [], [1.0, 2.0]])}
    shuffled = Expression("_batch_gather(pt, _batch_permute_indices(pt))")
    dropping = Expression("_batch_permute_and_drop_indices(pt, True, 0.4, 0.6, 2)")
    made = []
    for seed in (1, 1, 2):
        with random_numbers(seed):
            made.append(
                (shuffled.evaluate(columns).to_list(), dropping.evaluate(columns).to_list())
            )
    assert made[0] == made[1] != made[2]
    assert [sorted(jet) for jet in made[0][0]] == columns["pt"].to_list()
    assert made[0][0] != columns["pt"].to_list()
    assert 16 <= len(made[0][1][0]) <= 24
    assert [len(jet) for jet in made[0][1][1:]] == [0, 2]
    with pytest.raises(InputError, match="drop rates must be"):
        Expression("_batch_permute_and_drop_indices(pt, True, 0.4, 0.2)").evaluate(columns)


def test_it_travels_between_processes():
    assert pickle.loads(pickle.dumps(Expression("pt + 1", PLACE))).evaluate({"pt": 1}) == 2
