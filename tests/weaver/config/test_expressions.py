"""Expressions have the meaning of Python, numpy and awkward, and names outside the vocabulary are
refused.
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
from weaver.read.jagged import evaluate, plain, to_awkward

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
def test_values_and_types_equal_those_of_python(text):
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
def test_random_formulas_give_the_values_of_python(text):
    columns = {name: np.linspace(start, 3, 4) for name, start in (("a", -2), ("b", 0), ("c", 1))}
    try:
        with np.errstate(all="ignore"):
            theirs = eval(text, {"np": np}, dict(columns))
    except (ZeroDivisionError, TypeError):  # of plain numbers; numpy's `-` on a bool
        with pytest.raises(InputError, match="cannot be evaluated"):
            Expression(text).evaluate(columns)
        return
    assert np.array_equal(Expression(text).evaluate(columns), theirs, equal_nan=True)


def test_names_lists_each_column_of_an_expression_once():
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
        "submodule": ("np.linalg.svd(pt)", "linalg.svd"),
        "arbitrary numbers": ("np.empty(3)", "np.zeros"),
        "functions of awkward 0": ("awkward.JaggedArray.ones_like(pt)", "ak.ones_like"),
        "counts of awkward 0": ("ak.JaggedArray.fromcounts(n, pt)", "ak.unflatten"),
        "methods of awkward 0": ("pt.pad(20).fillna(0)", "ak.fill_none"),
        "nearest neighbours": ("_knn(pt, pt, 3)", "scipy"),
        "pieces of an array": ("_get_content_and_offsets(pt)", "two arrays"),
        "lambda": ("(lambda: 1)()", "lambda"),
        "comprehension": ("[x for x in pt]", "comprehension"),
        "walrus": ("(x := 1)", "'(x := 1)' is"),
        "f-string": ("f'{pt}'", "formatted string"),
        "spread mapping": ("ak.zip({**pt})", "**"),
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
def test_an_invalid_expression_is_refused_before_evaluation(text, reason):
    with pytest.raises(InputError) as error:
        Expression(text, PLACE)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"{PLACE}: expression '{text[:100]}")


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
def test_an_evaluation_that_fails_is_refused_with_the_reason(text, reason):
    with pytest.raises(InputError, match=PLACE) as error:
        Expression(text, PLACE).evaluate(COLUMNS)
    assert reason in str(error.value)


def test_evaluation_does_not_change_the_columns():
    column = np.arange(3.0)
    Expression("np.maximum(x, 1) * 2 - x").evaluate({"x": column})
    assert column.tolist() == [0, 1, 2]


def test_helpers_of_weaver_give_its_values():
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
    with pytest.raises(InputError, match=r"'p4': unknown field 'layout'"):
        Expression("p4.layout").evaluate(columns)
    with pytest.raises(InputError, match=r"'pt' has no field '.layout'"):
        Expression("pt.layout").evaluate(columns)


@pytest.mark.parametrize(
    ("text", "replacement"),
    [
        ("pt.astype('int32')", r"ak\.values_astype"),
        ("pt.sum()", r"ak\.sum\(\.\.\.\) or np\.sum"),
        ("pt.cumsum()", r"write np\.cumsum"),
    ],
)
def test_a_method_of_a_column_is_refused_with_the_function_to_use(text, replacement):
    with pytest.raises(InputError, match=replacement):
        Expression(text).evaluate({"pt": ak.Array([[1.0], []])})


def test_random_helpers_give_the_same_values_for_a_seed():
    columns = {"pt": ak.Array([list(range(40)), [], [1.0, 2.0]])}
    shuffled = Expression("_batch_gather(pt, _batch_permute_indices(pt))")
    dropping = Expression("_batch_permute_and_drop_indices(pt, True, 0.4, 0.6, 2)")
    result = []
    for seed in (1, 1, 2):
        with random_numbers(seed):
            result.append(
                (shuffled.evaluate(columns).to_list(), dropping.evaluate(columns).to_list())
            )
    assert result[0] == result[1] != result[2]
    assert [sorted(jet) for jet in result[0][0]] == columns["pt"].to_list()
    assert result[0][0] != columns["pt"].to_list()
    assert 16 <= len(result[0][1][0]) <= 24
    assert [len(jet) for jet in result[0][1][1:]] == [0, 2]
    with pytest.raises(InputError, match="drop rates must be"):
        Expression("_batch_permute_and_drop_indices(pt, True, 0.4, 0.2)").evaluate(columns)


def test_an_expression_can_be_pickled():
    assert pickle.loads(pickle.dumps(Expression("pt + 1", PLACE))).evaluate({"pt": 1}) == 2


# ------------------------------------------------------------ what weaver-core's evaluator has too

PEER_COLUMNS = {
    "x": np.array([2.5, 0.25, 1.25], "f4"),
    "i": np.array([-5, 3, 7], "i4"),
    "n": np.array([2**40, 1, 2], "i8"),
    "b": np.array([True, False, True]),
    "j": ak.values_astype(ak.Array([[1.5, 0.5], [2.0], []]), "float32"),
    "k": ak.values_astype(ak.Array([[1, 2], [3], []]), "int32"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("_hash(i, n) % 5", [2, 3, 1]),
        ("_hash(x, i, b)", [-491071118263219226, 4301742826194248704, -7670855144215161153]),
        ("_pad(j, 3)", [[1.5, 0.5, 0], [2, 0, 0], [0, 0, 0]]),
        ("_pad(k, 1, -1, 'int32')", [[1], [3], [-1]]),
        ("_pad(x, 2, 9)", [[2.5, 9], [0.25, 9], [1.25, 9]]),
        ("_repeat_pad(j, 3)", [[1.5, 0.5, 1.5], [2, 2, 2], [0, 0, 0]]),
        ("np.ones(len(x))", [1, 1, 1]),
        ("np.zeros(len(x), dtype='int32')", [0, 0, 0]),
        ("np.full(len(x), 3.5)", [3.5, 3.5, 3.5]),
        ("np.arange(len(x)) % 2", [0, 1, 0]),
        ("np.searchsorted([0.5, 1.25, 2], x)", [3, 0, 1]),
        ("np.searchsorted([0.5, 1.25, 2], x, 'right')", [3, 0, 2]),
        ("np.nanmax(_pad(j, 2), axis=1)", [1.5, 2, 0]),
        ("np.linalg.norm(np.stack([i, b], 1), axis=1)", [26**0.5, 3, 50**0.5]),
        ("np.einsum('ij,ij->i', _pad(j, 2), _pad(k, 2))", [2.5, 6, 0]),
        ("np.heaviside(i, 0.5)", [0, 1, 1]),
        ("np.maximum.reduce([i, x, b])", [2.5, 3, 7]),
        ("np.logical_or.reduce([i > 1, x > 100])", [False, True, True]),
        ("ak.zip({'pt': j, 'q': k}).pt", [[1.5, 0.5], [2.0], []]),
        ("ak.zip({'pt': j, 'q': k})['q']", [[1, 2], [3], []]),
        ("ak.combinations(j, 2)['1']", [[0.5], [], []]),
        ("ak.fill_none(ak.max(j, axis=1), -1)", [1.5, 2, -1]),
    ],
)
def test_values_equal_those_of_weaver_core_s_evaluator(text, expected):
    """The expected values are those of weaver-core 0.5.3's evaluator."""
    values = evaluate(Expression(text), {name: plain(v) for name, v in PEER_COLUMNS.items()})
    result = to_awkward(values).to_list()
    assert (
        result == pytest.approx(expected)
        if not isinstance(expected[0], list)
        else (result == expected)
    )


def test_hash_takes_numbers_only():
    for text in ("_hash(j)", "_hash('QCD')"):
        with pytest.raises(InputError, match="_hash` takes one number for each jet"):
            Expression(text).evaluate(PEER_COLUMNS)


@pytest.mark.parametrize("text", ["np.ones(10**10)", "np.repeat([1, 2], 10**9)", "np.arange(1e12)"])
def test_too_large_arrays_are_refused(text):
    with pytest.raises(InputError, match="at most 268,435,456"):
        Expression(text).evaluate({})
