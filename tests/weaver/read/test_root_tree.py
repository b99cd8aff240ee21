"""The reader of baskets against uproot on the same files, and expressions on flat content against
awkward.
"""

from __future__ import annotations

import awkward as ak
import numpy as np
import pytest
import uproot

from weaver.config.expressions import Expression
from weaver.read.jagged import JaggedColumn, evaluate, plain, to_awkward
from weaver.read.opening import open_bytes
from weaver.read.root import baskets, inflate, root_tree

ENTRIES = 300


def jets(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, ENTRIES)
    lists = {
        name: ak.unflatten(rng.integers(-90, 90, counts.sum()).astype(dtype), counts)
        for name, dtype in (("f", "f4"), ("d", "f8"), ("i", "i4"), ("u", "u2"))
    }
    flats = {
        f"x_{dtype}": rng.integers(0, 100, ENTRIES).astype(dtype)
        for dtype in ("f4", "f8", "i4", "u4", "i8", "u8", "i2", "i1", "?")
    }
    return lists | flats


def write(path, compression, parts=1):
    columns = [jets(seed) for seed in range(parts)]
    with uproot.recreate(path, compression=compression) as file:
        tree = file.mktree(
            "a/b/t", {name: ak.type(values).content for name, values in columns[0].items()}
        )
        for part in columns:
            tree.extend(part)
    return path


def read_tree(path, choose, names):
    with open_bytes(path) as fetch:
        return root_tree.read_tree(fetch, choose, names)


def test_an_array_of_one_number_is_left_to_uproot(tmp_path):
    """weaver-core reads `x[1]` as (N, 1), and `x` as (N,): the leaf's title tells them apart."""
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mktree("t", {"x": "f4", "one": np.dtype(("f4", (1,)))}).extend(
            {"x": np.zeros(3, "f4"), "one": np.zeros((3, 1), "f4")}
        )
    assert read_tree(str(path), lambda keys: keys[0], {"x"}).branches
    with pytest.raises(root_tree.UnsupportedFile):
        read_tree(str(path), lambda keys: keys[0], {"x", "one"})


COMPRESSIONS = [None, uproot.ZLIB(1), uproot.LZ4(1), uproot.LZMA(1), uproot.ZSTD(1)]


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda kind: type(kind).__name__)
def test_columns_equal_those_of_uproot(tmp_path, compression):
    path = write(tmp_path / "a.root", compression, parts=3)
    names = set(jets(0))
    tree = read_tree(str(path), lambda keys: keys[0], names)
    assert (tree.path, tree.num_entries) == ("a/b/t;1", 3 * ENTRIES)
    with uproot.open(path) as file, open_bytes(str(path)) as fetch:
        # within, across and at the edges of baskets
        for start, stop in ((0, 900), (10, 20), (250, 350), (299, 900), (600, 900)):
            result = baskets.columns(fetch, tree.branches, start, stop)
            for name, values in (
                file["a/b/t"]
                .arrays(list(names), entry_start=start, entry_stop=stop, how=dict)
                .items()
            ):
                assert ak.array_equal(to_awkward(result[name]), values, dtype_exact=True), (
                    name,
                    start,
                    stop,
                )
            assert result["f"].lists is result["u"].lists


def test_ranges_split_no_basket_and_end_at_the_last_entry(tmp_path):
    tree = read_tree(
        str(write(tmp_path / "a.root", None, parts=4)), lambda keys: keys[0], {"f", "x_f4"}
    )
    assert list(baskets.ranges(tree.branches.values(), 400, 1200)) == [(0, 600), (600, 1200)]
    assert list(baskets.ranges(tree.branches.values(), 1, 1000)) == [
        (0, 300),
        (300, 600),
        (600, 900),
        (900, 1000),
    ]


def test_branches_that_are_not_simple_are_left_to_uproot(tmp_path):
    path = tmp_path / "a.root"
    with uproot.recreate(path) as file:
        file.mktree("t", {"pair": np.dtype(("f4", (2,))), "x": "f4"}).extend(
            {"pair": np.ones((5, 2), "f4"), "x": np.ones(5, "f4")}
        )
    assert read_tree(str(path), lambda keys: "t;1", {"x"}).branches["x"].dtype == np.dtype(">f4")
    for name in ("pair", "absent"):
        with pytest.raises(root_tree.UnsupportedFile):
            read_tree(str(path), lambda keys: "t;1", {name})


@pytest.mark.parametrize("compression", COMPRESSIONS[1:], ids=lambda kind: type(kind).__name__)
def test_damaged_blocks_raise_an_error(tmp_path, compression):
    path = write(tmp_path / "a.root", compression)
    tree = read_tree(str(path), lambda keys: keys[0], {"f"})
    branch, content = tree.branches["f"], bytearray(path.read_bytes())
    middle = int(branch.seeks[0] + branch.sizes[0] * 3 // 4)
    content[middle] ^= 0xFF
    path.write_bytes(content)
    with open_bytes(str(path)) as fetch, pytest.raises(Exception, match=r".+"):
        baskets.columns(fetch, tree.branches, 0, ENTRIES)


def test_the_zlib_libraries_give_the_same_bytes(monkeypatch):
    import zlib

    data = np.random.default_rng(1).integers(0, 40, 5000).astype("u1").tobytes()
    packed = zlib.compress(data, 1)
    block = b"ZL\x08" + len(packed).to_bytes(3, "little") + len(data).to_bytes(3, "little") + packed
    for name in {"zlib", inflate.zlib_library()}:
        monkeypatch.setattr(inflate, "zlib_library", lambda name=name: name)
        inflate._library.cache_clear()
        assert bytes(inflate.inflate(block * 2, 2 * len(data))) == 2 * data
        with pytest.raises(ValueError, match="not as long"):
            inflate.inflate(block, len(data) + 1)
    inflate._library.cache_clear()


EXPRESSIONS = """
f * 2.5; f / x_f4; np.log(f / x_f8); -d + 1; (f > 3) & (x_i4 < 50); ~(u == 3); i + u; i * x_i8
f * x_u4; np.maximum(f, 0.1); np.hypot(f, d); np.abs(i) - 3; ak.ones_like(f); ak.zeros_like(i)
np.where(f > 0, f, d); f * np.pi; x_f4 / x_i2; np.sqrt(x_i1); x_f4 > 3; f * x_u8; i / 2; u - 1.5
f ** 2; i % 3; ak.num(f); ak.sum(f, axis=1) * x_f4; np.arctan2(f, x_f4); x_f4 * 2; u * x_i1
"""


@pytest.mark.parametrize(
    "text", [text.strip() for text in EXPRESSIONS.replace("\n", ";").split(";") if text.strip()]
)
def test_expressions_equal_awkward_s(text):
    columns = {name: values for name, values in jets(3).items() if name != "x_?"}
    expression = Expression(text)
    result = evaluate(
        expression, {name: plain(ak.Array(values)) for name, values in columns.items()}
    )
    expected = expression.evaluate({name: ak.Array(values) for name, values in columns.items()})
    assert ak.array_equal(to_awkward(result), expected, dtype_exact=True, equal_nan=True)
    assert isinstance(result, JaggedColumn | np.ndarray) == (expression.is_elementwise)


def test_selecting_and_truncating_lists_equals_awkward_s():
    values = jets(5)["f"]
    is_even = np.asarray(ak.num(values) % 2 == 0)
    result = plain(values)[is_even].head(3)
    assert ak.array_equal(result.to_awkward(), values[is_even][:, :3])
    assert ak.array_equal(plain(values)[4:9].to_awkward(), values[4:9])
