"""Expressions that would fill the memory, never end or write to a column are refused at once."""

import contextlib
import resource
import time
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from weaver.config import sizes
from weaver.config.data_config import DataConfig
from weaver.config.expressions import MOST_BITS, Expression
from weaver.prepared.prepare import prepare

pytestmark = pytest.mark.faults

COLUMNS = {
    "a": ak.Array(np.arange(4.0)),
    "n": ak.Array(np.arange(4)),
    "p": ak.Array([[1.0, 2.0, 5.0], [3.0], [], [4.0]]),
    "many": ak.Array([list(range(128))] * 50),
    "big": ak.Array(np.arange(50_000.0)),
    "p2": ak.Array([list(range(400))] * 5 + [[1]] * 3),
}
ROW = "ak.to_numpy(a)"
BIG = "ak.to_numpy(big)"
REFUSED = [
    # powers that grow without a bound
    "((9**60)**60)**60",
    "(((9**9)**9)**9)**9",
    "(10**60*10**60*10**60)**60",
    "((2**60)<<60)**60",
    "(-9**60)**60",
    "((np.array([9**60])**60)**60)**60",
    "(np.array([10**18], dtype='O')**60)**60",
    "(np.array([10**18], dtype=object)**60)**60",
    "np.power(9**60, 60)",
    "ak.Array([9**60])",
    # sizes
    f"np.full_like({ROW}, 1, shape=(10**9, 3))",
    f"np.ones_like({ROW}, shape=10**10)",
    f"np.zeros_like({ROW}, shape=(3,))",
    f"np.full_like({ROW}, 1, None, 'K', True, (10**9, 3))",
    f"np.broadcast_to({ROW}, (10**8, 4))",
    f"{ROW}.repeat(10**9)",
    "np.tile(a, 10**9)",
    "np.linspace(0, 1, 10**10)",
    "ak.pad_none(p, 10**9)",
    "ak.pad_none(p, 10**9, clip=True)",
    "ak.combinations(many, 10)",
    "ak.combinations(many, 60, replacement=True)",
    "ak.argcombinations(many, 12)",
    "ak.cartesian([many, many, many, many])",
    "ak.cartesian({'x': many, 'y': many, 'z': many, 'w': many}, axis=1)",
    "ak.cartesian([many] * 3, axis=0)",
    # sizes of products: each jet with each jet
    "big[:, None] * big",
    "big[:, None] * big[None, :]",
    "big[:, None] < big",
    f"{BIG}[:, None] - {BIG}",
    f"np.maximum({BIG}[:, None], {BIG})",
    f"np.where({BIG}[:, None] > 1, {BIG}, 0)",
    f"np.select([{BIG}[:, None] > 1], [{BIG}])",
    f"np.clip({BIG}[:, None], 0, {BIG})",
    f"np.isclose({BIG}[:, None], {BIG})",
    f"np.take_along_axis({BIG}[:, None], np.zeros((1, 10**5), 'int64'), 1)",
    "ak.where(big[:, None] > 1, big, 0)",
    "ak.broadcast_arrays(big[:, None], big)",
    "_clip(big[:, None], 0, big)",
    "big[:, None] ** big",
    "p2[:, :, None, None] * p2[:, None, :, None] * p2[:, None, None, :]",
    f"ak.unflatten(big, np.ones_like({BIG}, 'int64'))[:, :, None] * big",
    f"np.dot({BIG}[:, None], {BIG}[None])",
    f"{BIG}[:, None].dot({BIG}[None])",
    f"np.matmul({BIG}[:, None], {BIG}[None])",
    f"np.inner({BIG}[:, None], {BIG}[:, None])",
    f"np.tensordot({BIG}, {BIG}, 0)",
    f"np.tensordot({BIG}[:, None], {BIG}[:, None], [[1], [1]])",
    f"np.einsum('i,j->ij', {BIG}, {BIG})",
    f"np.einsum('i,j->', {BIG}, {BIG})",
    f"np.einsum('...i,j...->ij', {BIG}, {BIG})",
    f"np.einsum({BIG}, [0], {BIG}, [1])",
    f"np.histogram({BIG}, 10**10)[0]",
    f"np.histogram({BIG}, bins=10**10)[0]",
    f"np.histogram({BIG}, 'auto')[0]",
    f"np.quantile({BIG}[:, None], np.linspace(0, 1, 10**5), 1)",
    f"np.linspace({BIG}, 1, 10**5)",
    f"np.diff({BIG}, 10**9)",
    "np.ones((9, 10**5))[np.zeros((10**4,), 'int64')]",
    "np.ones((9, 10**5)).take(np.zeros((10**4,), 'int64'), 0)",
    "np.take(np.ones((9, 10**5)), np.zeros((10**4,), 'int64'), axis=0)",
    "many[np.zeros(10**7, 'int64')]",
    "_pad(p, 10**9)",
    "_repeat_pad(p, 10**9)",
    # outputs
    "np.sqrt(a, a)",
    "np.sqrt(a, out=a)",
    "np.add(a, 1, where=a > 2)",
    f"np.sqrt({ROW}, where={ROW} > 1)",
    f"np.sum({ROW}, where=False)",
    f"{ROW}.sum(where=False)",
    f"np.nan_to_num({ROW}, False)",
    f"np.nan_to_num({ROW}, copy=False)",
    f"{ROW}.clip(0, 1, {ROW})",
    f"{ROW}.round(1, {ROW})",
    f"{ROW}.sum(0, None, {ROW})",
    f"{ROW}.cumsum(0, None, {ROW})",
    f"{ROW}.argmax(0, {ROW})",
    f"{ROW}.take([0], 0, {ROW})",
    f"{ROW}.mean(out={ROW})",
    # depth
    "(" * 5000 + "a" + ")" * 5000,
    "a" + "[0]" * 5000,
    "np.abs(" * 2000 + "a" + ")" * 2000,
    "a" + "+a" * 20_000,
    "~" * 100_000 + "n",
]
USUAL = [
    "2 ** 10 * a",
    "1 << 8",
    "a ** 2 ** 0.5",
    "10 ** -3 * a",
    "np.clip(a, 0, 1)",
    f"{ROW}.clip(0, 1)",
    f"{ROW}.round(1)",
    f"{ROW}.sum(0)",
    f"{ROW}.reshape(-1, 2)",
    f"{ROW}.astype('float32')",
    f"{ROW}.repeat(2)",
    "np.nan_to_num(a, nan=0)",
    "np.where(a > 1, a, 0)",
    "np.zeros_like(a)",
    "np.full_like(a, 3)",
    "ak.pad_none(p, 3, clip=True)",
    "ak.combinations(p, 2)",
    "ak.combinations(many, 2)",
    "ak.cartesian([p, p])",
    "ak.cartesian([p, p], nested=True)",
    "ak.with_field(ak.zip({'x': a}), a, where='y').y",
    # products of a jet's particles with each other and with its jet
    "big[:, None] * 2",
    "big[:, None] * big[:, None]",
    "a[:, None] * p",
    "p[:, :, None] * p[:, None, :]",
    "many[:, :, None] * many[:, None, :]",
    "(p[:, :, None] * p[:, None, :]) * p[:, :, None]",
    "ak.sum(p2[:, :, None] * p2[:, None, :], axis=-1)",
    "ak.concatenate([p, a[:, None]], axis=1)",
    "_stack([big, big, big], 1)",
    f"np.stack([{BIG}, {BIG}], 1)",
    f"np.column_stack([{BIG}[:, None], {BIG}])",
    f"np.stack([{BIG}, {BIG}], 1)[:, 0]",
    f"np.dot(np.stack([{BIG}, {BIG}], 1), np.array([1, 2]))",
    f"np.einsum('ij,ij->i', np.stack([{BIG}, {BIG}], 1), np.stack([{BIG}, {BIG}], 1))",
    f"np.inner(np.stack([{BIG}, {BIG}], 1), np.array([1, 2]))",
    f"np.take({BIG}, [0, 3])",
    f"{BIG}[np.array([0, 3])]",
    f"np.histogram({BIG}, 50)[0]",
    f"np.histogram({BIG}, [0, 1, 2])[0]",
    f"np.quantile({BIG}, [0.1, 0.9])",
    f"np.median(np.stack([{BIG}, {BIG}], 1), axis=1)",
    f"np.diff({BIG}, 2)",
    "p[ak.argsort(p)]",
    "many[many > 3]",
    "_batch_gather(p, ak.argsort(p))",
    "_pad(p, 5)",
    "_p4_from_ptetaphim(p, p, p, p).deltaR(_p4_from_ptetaphim(p, p, p, p))",
]


@pytest.fixture(autouse=True)
def memory():
    """Take 6 GB at most beyond what the process has: a wrong answer must not fill the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 6 * 10**9, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:50])
def test_hostile_expressions_are_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(InputError, match="the place") as refusal:
        Expression(text, "the place").evaluate(COLUMNS)
    assert time.process_time() - start < 5
    assert "allocate" not in str(
        refusal.value
    )  # refused by our check, before the memory was allocated


@pytest.mark.parametrize("text", USUAL)
def test_usual_expressions_are_evaluated(text):
    before = {name: ak.to_list(column) for name, column in COLUMNS.items()}
    Expression(text).evaluate(COLUMNS)
    assert {name: ak.to_list(column) for name, column in COLUMNS.items()} == before


whole = st.recursive(
    st.integers(-(10**6), 10**6).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["**", "<<", "*", "+", "-", "|"]), inner).map(
        lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"
    ),
    max_leaves=30,
)


@settings(max_examples=300, deadline=2000)
@given(whole)
def test_whole_numbers_of_any_formula_stay_small(text):
    try:
        value = Expression(text, "the place").evaluate({})
    except InputError:
        return
    if isinstance(value, int):
        # at most thirty factors, each the result of a power
        assert value.bit_length() <= 30 * MOST_BITS


def numbers(value):
    return value.size if isinstance(value, np.ndarray) else len(ak.flatten(value, axis=None))


OPERANDS = ("x", "x[:, None]", "x[None]", "y", "y[:, None]", "y[:, :, None]", "y[:, None, :]")
OPERANDS += ("r", "r[:, None]", "r[None]", "r[:, :, None]", "z", "z[:, None, :, :]", "u", "u[:, 0]")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.sampled_from(OPERANDS), min_size=2, max_size=3),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
    st.booleans(),
)
def test_no_product_is_larger_than_its_bound(jets, operands, counts, plain):
    columns = {
        "x": np.ones(jets) if plain else ak.Array(np.ones(jets)),
        "r": np.ones((jets, 3)) if plain else ak.Array(np.ones((jets, 3))),
        "u": np.ones((jets, 1)) if plain else ak.Array(np.ones((jets, 1))),
        "y": ak.unflatten(np.ones(sum(counts[:jets])), counts[:jets]),
    }
    inner = [int(count) for count in counts[: sum(counts[:jets])]]
    inner += [2] * (sum(counts[:jets]) - len(inner))
    columns["z"] = ak.unflatten(ak.unflatten(np.ones(sum(inner)), inner), counts[:jets])
    values = [Expression(text).evaluate(columns) for text in operands]
    product = values[0]
    for value in values[1:]:
        most = max(sizes.of_broadcast((product, value)), numbers(product), numbers(value))
        try:
            product = product * value
        except ValueError:  # they do not fit each other
            return
        assert numbers(product) <= most


ATOMS = ("a", "n", "p", ROW, "1", "3", "2.5", "None", "10**9", "(10**5, 10**5)", "[1]")
FUNCTIONS = (
    *("np.sqrt", "np.add", "np.clip", "np.sum", "np.cumsum", "np.round", "np.take", "np.tile"),
    *("np.repeat", "np.ones", "np.zeros_like", "np.full_like", "np.nan_to_num", "np.maximum"),
    *("np.stack", "np.concatenate", "np.argsort", "np.mean", "np.std"),
    *("ak.sum", "ak.pad_none", "ak.combinations", "ak.flatten"),
)
KEYWORDS = ("", ", axis=0", ", out=a", f", out={ROW}", ", shape=9", ", where=n")
calls = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.tuples(
        st.sampled_from(FUNCTIONS),
        st.lists(inner, min_size=1, max_size=5),
        st.sampled_from(KEYWORDS),
    ).map(lambda parts: f"{parts[0]}({', '.join(parts[1])}{parts[2]})"),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(calls)
@pytest.mark.filterwarnings("ignore")
def test_no_call_writes_to_a_column(text):
    row = np.arange(4.0)
    columns = {"a": ak.Array(row), "n": ak.Array(np.arange(4)), "p": COLUMNS["p"]}
    before = ak.to_list(columns["p"])
    with contextlib.suppress(InputError):
        Expression(text, "the place").evaluate(columns)
    assert row.tolist() == [0, 1, 2, 3]
    assert ak.to_list(columns["p"]) == before


def chain_config(tmp_path, length, first):
    """A data config of variables v0, v1, ..., each the one before plus 1; v0 is first plus 1."""
    lines = ["treename: t", "new_variables:", f"  v0: {first} + 1"]
    lines += [f"  v{number}: v{number - 1} + 1" for number in range(1, length)]
    lines += ["inputs:", "  scalars:", "    length: null", f"    vars: [[v{length - 1}, null]]"]
    lines += ["labels:", "  type: custom", "  value:", "    target: a"]
    path = tmp_path / "d.yaml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_chain_of_3000_variables_is_computed(tmp_path):
    with uproot.recreate(tmp_path / "jets.root") as file:
        file["t"] = {"a": np.arange(3, dtype=np.float32)}
    config = DataConfig.load(chain_config(tmp_path, 3000, "a"))
    reference = prepare(
        str(tmp_path / "jets.root"), config, str(tmp_path), for_training=True, report=print
    )
    values = np.load(f"{reference.uri}/scalars.npy")
    assert values.ravel().tolist() == [3000, 3001, 3002]


def test_a_circle_of_3000_variables_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"circle: .*v2999") as refusal:
        DataConfig.load(chain_config(tmp_path, 3000, "v2999"))
    assert len(str(refusal.value)) < 500
