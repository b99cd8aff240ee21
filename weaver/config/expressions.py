"""The expressions of a data config: parsed once, checked against a fixed vocabulary, evaluated on
whole columns.

An expression is written like Python and means what it means in weaver-core: names are columns
(branches or new variables), `np`, `ak` and `math` (or `numpy`, `awkward`) give functions and
constants, `&`, `|`, `~` combine conditions. Nothing is ever handed to Python's own evaluation: the
text becomes a syntax tree, and each node is either in the vocabulary below or refused with the
expression, its place in the file and the offending name.

>>> Expression("np.log(PF_pT / jetPt)", where="jec.yaml:new_variables:PF_logRelPt").names
('PF_pT', 'jetPt')
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import functools
import importlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from common.errors import InputError, nearest


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


MODULES = {"np": "numpy", "numpy": "numpy", "ak": "awkward", "awkward": "awkward", "math": "math"}
"""Prefix as written -> module. awkward is imported only when an expression that uses it is
evaluated.
"""

# Functions without side effects, whose memory is bounded by that of their arguments: no files, no
# random numbers, no sizes.
VOCABULARY: dict[str, frozenset[str]] = {
    "numpy": _words(
        """abs absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and
        bitwise_not bitwise_or bitwise_xor cbrt ceil clip copysign cos cosh cumprod cumsum deg2rad
        degrees diff digitize divide equal exp exp2 expm1 fabs float32 float64 float_power floor
        floor_divide fmax fmin fmod greater greater_equal hypot int8 int16 int32 int64 interp invert
        isclose isfinite isin isinf isnan isneginf isposinf ldexp left_shift less less_equal log
        log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor maximum mean
        median minimum mod multiply nan_to_num negative nextafter not_equal ones_like positive power
        prod rad2deg radians reciprocal remainder right_shift rint round select sign signbit sin
        sinh sqrt square std subtract sum tan tanh true_divide trunc uint8 uint16 uint32 uint64
        unwrap var where zeros_like bool_ full_like max min amax amin argmax argmin argsort sort all
        any count_nonzero stack concatenate column_stack percentile quantile ptp take
        take_along_axis expand_dims squeeze pi e inf nan euler_gamma newaxis"""
    ),
    "awkward": _words(
        """all any argmax argmin argsort broadcast_arrays concatenate corr count count_nonzero covar
        drop_none fill_none firsts flatten from_numpy from_regular full_like is_none isclose
        linear_fit local_index mask max mean min moment nan_to_none nan_to_num nanmax nanmean nanmin
        nanprod nanstd nansum nanvar num ones_like pad_none prod ptp ravel run_lengths singletons
        softmax sort std sum to_numpy to_regular unflatten values_astype var where zeros_like"""
    ),
    "math": _words(
        """acos acosh asin asinh atan atan2 atanh ceil copysign cos cosh degrees erf erfc exp expm1
        fabs floor fmod gamma hypot isclose isfinite isinf isnan lgamma log log10 log1p log2 pow
        radians sin sinh sqrt tan tanh trunc e inf nan pi tau"""
    ),
}

METHODS = _words(
    "all any argmax argmin argsort astype clip cumsum max mean min prod ptp round squeeze std"
    " sum var"
)
"""Methods of an array that may be called, as in `label.argmax(1)`."""

COMPONENTS = _words(
    "px py pz E energy pt eta phi mass m p theta rapidity mass2 m2 pt2 p2 Et mt beta gamma"
)
"""Attributes of a four-momentum (made by _p4_from_...), as in `p4.px`."""
VECTOR_METHODS = _words("deltaR deltaphi deltaeta deltaR2 deltaRapidityPhi deltaangle")
"""Methods of a four-momentum, as in `p4.deltaR(other)`."""

# numpy takes `out` as the fourth positional argument (second or third for a ufunc); columns are not
# to be written to
MAX_POSITIONAL = 3
SHOWN = 200  # characters of an expression in an error
MAX_EXPONENT = 64  # of two plain integers: 9 ** 9 ** 9 would keep the machine busy for ever

_BINARY: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_UNARY: dict[type[ast.unaryop], Callable] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}
_COMPARE: dict[type[ast.cmpop], Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

# What people write first, and what to write instead.
_REFUSED: dict[type[ast.AST], str] = {
    ast.BoolOp: (
        "'and' and 'or' do not work on columns; write & and |, with each condition in parentheses"
    ),
    ast.Not: "'not' does not work on columns; write ~(...)",
    ast.IfExp: "'... if ... else ...' does not work on columns; write np.where(condition, a, b)",
    ast.Lambda: "lambda is not allowed",
    ast.ListComp: "a comprehension is not allowed; columns are computed as a whole",
    ast.GeneratorExp: "a comprehension is not allowed; columns are computed as a whole",
    ast.Starred: "* in front of an argument is not allowed",
    ast.JoinedStr: "a formatted string is not allowed",
    ast.MatMult: "the operator @ is not allowed",
    ast.In: "'in' does not work on columns; write np.isin(a, [...])",
    ast.NotIn: "'not in' does not work on columns; write ~np.isin(a, [...])",
}


class Expression:
    """One parsed expression. `text` is what was written, `where` its place (file:section:name),
    `names` the columns it needs, `tree` its checked syntax tree (an `ast.expr` that holds nothing
    outside the vocabulary), for whoever translates it.

    Raises InputError for text that does not parse or leaves the vocabulary.
    """

    def __init__(self, text: str, where: str = "") -> None:
        self.text, self.where = str(text).strip(), where
        try:
            self.tree: ast.expr = ast.parse(self.text, mode="eval").body
            self.names: tuple[str, ...] = tuple(dict.fromkeys(self._check(self.tree)))
        except SyntaxError as error:
            shown = (
                f" near '{self.text[error.offset - 1 :][:20]}'"
                if error.offset and error.lineno == 1
                else ""
            )
            raise self._refusal(f"it does not parse{shown} ({error.msg})") from None
        except (RecursionError, MemoryError, ValueError):
            raise self._refusal("it cannot be parsed: nested too deeply, or not text") from None

    def __repr__(self) -> str:
        return f"Expression({self.text!r}, where={self.where!r})"

    def canonical(self) -> str:
        """The expression without its layout: equal for texts that differ in blanks and superfluous
        parentheses only.
        """
        return ast.unparse(self.tree)

    @functools.cached_property
    def is_elementwise(self) -> bool:
        """True if each number of the value depends on the numbers in its place only, so that flat
        content gives the same numbers.
        """
        return _is_elementwise(self.tree)

    @functools.cached_property
    def is_random(self) -> bool:
        """True if it draws random numbers (see `random_numbers`)."""
        return any(
            isinstance(node, ast.Name) and node.id.startswith("_batch_permute")
            for node in ast.walk(self.tree)
        )

    def evaluate(self, columns: Mapping):
        """The value for these columns (name -> awkward or numpy array, jets along the first axis).

        Division by zero and the like give inf and NaN without a warning. Raises InputError for a
        name that is not among `columns`, and for operands that do not fit each other.
        """
        try:
            with np.errstate(all="ignore"):
                return self._value(self.tree, columns)
        except InputError:
            raise
        # whatever numpy and awkward raise about operands: the user's text is the cause
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise self._refusal(
                f"it cannot be evaluated: {reason[0] if reason else type(error).__name__}"
            ) from error

    # ----------------------------------------------------------------------------------- checking

    def _refusal(self, reason: str) -> InputError:
        shown = self.text if len(self.text) <= SHOWN else self.text[:SHOWN] + "..."
        return InputError(
            f"{self.where + ': ' if self.where else ''}expression '{shown}': {reason}"
        )

    def _check(self, node: ast.AST) -> Iterator[str]:
        """Yield the column names below `node`, refusing whatever is not in the vocabulary."""
        for part in (node, *ast.iter_child_nodes(node)):
            if type(part) in _REFUSED:
                raise self._refusal(_REFUSED[type(part)])
        method = getattr(self, f"_check_{type(node).__name__}", None)
        if method is None:
            raise self._refusal(f"{type(node).__name__} is not allowed here")
        yield from method(node)

    def _check_children(self, node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.operator | ast.unaryop | ast.cmpop | ast.expr_context):
                yield from self._check(child)

    _check_BinOp = _check_UnaryOp = _check_Subscript = _check_Slice = _check_Tuple = _check_List = (
        _check_children
    )

    def _check_Constant(self, node: ast.Constant) -> Iterator[str]:
        if not isinstance(node.value, bool | int | float | str | None):
            raise self._refusal(f"the constant {node.value!r} is not allowed")
        return iter(())

    def _check_Compare(self, node: ast.Compare) -> Iterator[str]:
        if len(node.ops) > 1:
            raise self._refusal(
                "a chain of comparisons does not work on columns; write (a < b) & (b < c)"
            )
        if type(node.ops[0]) not in _COMPARE:
            raise self._refusal("'is' does not work on columns; write == or !=")
        yield from self._check_children(node)

    def _check_Name(self, node: ast.Name) -> Iterator[str]:
        if node.id in MODULES:
            raise self._refusal(f"'{node.id}' is no column; write {node.id}.something")
        if node.id == "len" or node.id in HELPERS:
            raise self._refusal(f"'{node.id}' is a function; write {node.id}(...)")
        if node.id.startswith("_"):
            raise self._refusal(f"'{node.id}': names that begin with an underscore are no columns")
        yield node.id

    def _check_Attribute(self, node: ast.Attribute) -> Iterator[str]:
        """module.name (a function alone is fine where a type is meant, as in ak.values_astype(x,
        np.float32)), or momentum.component.
        """
        if node.attr in COMPONENTS and not (
            isinstance(node.value, ast.Name) and node.value.id in MODULES
        ):
            yield from self._check(node.value)
            return
        if not (isinstance(node.value, ast.Name) and node.value.id in MODULES):
            raise self._refusal(
                f"'.{node.attr}' is not allowed here; only methods are:"
                f" {', '.join(sorted(METHODS))}"
            )
        known = VOCABULARY[MODULES[node.value.id]]
        if node.attr not in known:
            raise self._refusal(
                self._suggestion(
                    f"{node.value.id}.{node.attr}",
                    node.attr,
                    {f"{node.value.id}.{n}": n for n in known},
                )
            )

    def _check_Call(self, node: ast.Call) -> Iterator[str]:
        if any(keyword.arg is None or keyword.arg == "out" for keyword in node.keywords):
            raise self._refusal("** and out= are not allowed in a call")
        yield from self._check_callee(node)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            yield from self._check(argument)

    def _check_callee(self, node: ast.Call) -> Iterator[str]:
        function = node.func
        if isinstance(function, ast.Name):
            if function.id != "len" and function.id not in HELPERS:
                choices = {
                    f"{prefix}.{n}": n
                    for prefix in ("np", "ak")
                    for n in VOCABULARY[MODULES[prefix]]
                } | {n: n for n in HELPERS}
                raise self._refusal(self._suggestion(function.id, function.id, choices))
        elif isinstance(function, ast.Attribute) and not (
            isinstance(function.value, ast.Name) and function.value.id in MODULES
        ):
            if function.attr not in METHODS | VECTOR_METHODS:
                there = ", ".join(sorted(METHODS | VECTOR_METHODS))
                raise self._refusal(
                    f"method '.{function.attr}()' is not allowed; there are: {there}"
                )
            yield from self._check(function.value)
        elif isinstance(function, ast.Attribute):
            yield from self._check(function)
            self._limit_arguments(node)
        else:
            raise self._refusal("only a named function can be called")

    def _limit_arguments(self, node: ast.Call) -> None:
        """Refuse more positional arguments of a numpy function than can be given without reaching
        `out`.
        """
        if MODULES[node.func.value.id] != "numpy":
            return
        function = getattr(np, node.func.attr)
        most = function.nin if isinstance(function, np.ufunc) else MAX_POSITIONAL
        if len(node.args) > most:
            raise self._refusal(
                f"np.{node.func.attr} takes at most {most} arguments here; give others by keyword"
            )

    @staticmethod
    def _suggestion(asked: str, bare: str, choices: Mapping[str, str]) -> str:
        """`choices` maps full names to bare ones; the nearest by bare name are suggested."""
        near = nearest(bare, choices.values())
        found = sorted(
            (full for full, name in choices.items() if name in near),
            key=lambda full: (near.index(choices[full]), full),
        )
        hint = f"; did you mean {' or '.join(repr(full) for full in found[:3])}?" if found else ""
        return f"unknown function or constant '{asked}'{hint}"

    # --------------------------------------------------------------------------------- evaluation

    def _value(self, node: ast.AST, columns: Mapping):
        return getattr(self, f"_value_{type(node).__name__}")(node, columns)

    def _value_Constant(self, node: ast.Constant, columns: Mapping):
        return node.value

    def _value_Name(self, node: ast.Name, columns: Mapping):
        if node.id not in columns:
            hint = "".join(f"; did you mean '{name}'?" for name in nearest(node.id, columns, 1))
            raise self._refusal(f"there is no column '{node.id}'{hint}")
        return columns[node.id]

    def _value_BinOp(self, node: ast.BinOp, columns: Mapping):
        left, right = self._value(node.left, columns), self._value(node.right, columns)
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            raise self._refusal("operators work on columns and numbers, not on text or lists")
        growing = isinstance(node.op, ast.Pow | ast.LShift)
        if (
            growing
            and isinstance(left, int)
            and isinstance(right, int)
            and abs(right) > MAX_EXPONENT
        ):
            raise self._refusal(
                f"the exponent {right} is too large for whole numbers; write a float"
            )
        return _BINARY[type(node.op)](left, right)

    def _value_UnaryOp(self, node: ast.UnaryOp, columns: Mapping):
        return _UNARY[type(node.op)](self._value(node.operand, columns))

    def _value_Compare(self, node: ast.Compare, columns: Mapping):
        return _COMPARE[type(node.ops[0])](
            self._value(node.left, columns), self._value(node.comparators[0], columns)
        )

    def _value_Subscript(self, node: ast.Subscript, columns: Mapping):
        return self._value(node.value, columns)[self._value(node.slice, columns)]

    def _value_Slice(self, node: ast.Slice, columns: Mapping):
        return slice(
            *(
                None if part is None else self._value(part, columns)
                for part in (node.lower, node.upper, node.step)
            )
        )

    def _value_Tuple(self, node: ast.Tuple, columns: Mapping):
        return tuple(self._value(item, columns) for item in node.elts)

    def _value_List(self, node: ast.List, columns: Mapping):
        return [self._value(item, columns) for item in node.elts]

    def _value_Attribute(self, node: ast.Attribute, columns: Mapping):
        if isinstance(node.value, ast.Name) and node.value.id in MODULES:
            return getattr(_module(MODULES[node.value.id]), node.attr)
        return getattr(self._momentum(node, columns), node.attr)

    def _momentum(self, node: ast.Attribute, columns: Mapping):
        owner = self._value(node.value, columns)
        if not type(owner).__module__.startswith("vector."):
            raise self._refusal(
                f"'.{node.attr}' is that of a four-momentum; make one with _p4_from_ptetaphim(pt,"
                " eta, phi, mass)"
            )
        return owner

    def _value_Call(self, node: ast.Call, columns: Mapping):
        arguments = [self._value(argument, columns) for argument in node.args]
        keywords = {keyword.arg: self._value(keyword.value, columns) for keyword in node.keywords}
        return self._function(node.func, columns)(*arguments, **keywords)

    def _function(self, node: ast.expr, columns: Mapping) -> Callable:
        if isinstance(node, ast.Name):
            return len if node.id == "len" else HELPERS[node.id]
        if isinstance(node.value, ast.Name) and node.value.id in MODULES:
            return self._value(node, columns)
        if node.attr in VECTOR_METHODS:
            return getattr(self._momentum(node, columns), node.attr)
        owner = self._value(node.value, columns)
        if not isinstance(owner, np.ndarray | np.generic):
            raise self._refusal(
                f"a column has no method '{node.attr}'; write ak.{node.attr}(...) or"
                f" np.{node.attr}(...)"
            )
        return getattr(owner, node.attr)


@functools.cache
def _module(name: str):
    return math if name == "math" else np if name == "numpy" else importlib.import_module(name)


# of an array: the ufunc, whatever the operands
_PLAIN = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.BitXor)


def _is_elementwise(node: ast.expr) -> bool:
    match node:
        case ast.Name():
            return True
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float)
        case ast.BinOp(left=left, op=op, right=right):
            return isinstance(op, _PLAIN) and _is_elementwise(left) and _is_elementwise(right)
        case ast.UnaryOp(operand=operand):
            return _is_elementwise(operand)
        case ast.Compare(left=left, comparators=[right]):
            return _is_elementwise(left) and _is_elementwise(right)
        case ast.Attribute(value=ast.Name(id="np" | "numpy" | "math"), attr=name):
            return isinstance(getattr(math, name, None), float)  # pi and the like, the same in both
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=module), attr=name), args=arguments, keywords=[]
        ):
            if MODULES.get(module) == "awkward":
                return name in ("ones_like", "zeros_like") and isinstance(arguments[0], ast.Name)
            return (
                isinstance(getattr(np, name, None), np.ufunc)
                and MODULES.get(module) == "numpy"
                and all(map(_is_elementwise, arguments))
            )
    return False


# ------------------------------------------ weaver-core's own helpers, by the names it gives them


def _concat(arrays, axis=0):
    """The arrays joined along an axis."""
    return _module("awkward").concatenate(arrays, axis=axis)


def _clip(array, low, high):
    """Each number of a flat or jagged array limited to [low, high]; NaN stays NaN."""
    return np.minimum(np.maximum(array, low), high)


def _batch_argsort(array):
    """For each jet, the order that sorts its entries upwards."""
    return _module("awkward").argsort(array)


def _batch_gather(array, indices):
    """For each jet, the entries at the given positions."""
    return array[indices]


def _stack(arrays, axis=1):
    """The arrays side by side along a new axis."""
    if isinstance(arrays[0], np.ndarray):
        return np.stack(arrays, axis=axis)
    place = tuple(np.newaxis if i == axis else slice(None) for i in range(arrays[0].ndim + 1))
    return _module("awkward").concatenate([array[place] for array in arrays], axis=axis)


def _momentum4(**components):
    try:
        import vector
    except ImportError:
        raise InputError("four-momenta take the package vector; type: pip install vector") from None
    vector.register_awkward()
    return vector.zip(components)


def _p4_from_pxpypze(px, py, pz, energy):
    """Four-momenta (GeV)."""
    return _momentum4(px=px, py=py, pz=pz, energy=energy)


def _p4_from_ptetaphie(pt, eta, phi, energy):
    """Four-momenta (GeV, rad)."""
    return _momentum4(pt=pt, eta=eta, phi=phi, energy=energy)


def _p4_from_ptetaphim(pt, eta, phi, mass):
    """Four-momenta (GeV, rad)."""
    return _momentum4(pt=pt, eta=eta, phi=phi, mass=mass)


_RANDOM: contextvars.ContextVar[np.random.Generator | None] = contextvars.ContextVar(
    "random numbers", default=None
)


@contextlib.contextmanager
def random_numbers(seed: int | np.random.Generator) -> Iterator[None]:
    """Within the block random helpers draw from this generator, or one of this seed; outside of
    such a block, of seed 0 each time.

    So what they give is fixed when data are prepared and the same in every epoch, where weaver-core
    draws anew whenever it reads.
    """
    token = _RANDOM.set(np.random.default_rng(seed))
    try:
        yield
    finally:
        _RANDOM.reset(token)


def _generator() -> np.random.Generator:
    return _RANDOM.get() or np.random.default_rng(0)


def _batch_permute_indices(array):
    """For each jet, its positions in random order."""
    ak = _module("awkward")
    return ak.argsort(ak.unflatten(_generator().random(ak.count(array)), ak.num(array)))


def _batch_permute_and_drop_indices(
    array, random_permute=True, drop_rate_min=0, drop_rate_max=0, min_elements=1
):
    """For each jet, its positions in random order (or that which sorts upwards), without a random
    share between the two rates.
    """
    ak = _module("awkward")
    indices = _batch_permute_indices(array) if random_permute else _batch_argsort(array)
    if not drop_rate_min:
        return indices
    if not 0 < drop_rate_min <= drop_rate_max < 1:
        raise InputError(
            f"drop rates must be 0 < drop_rate_min <= drop_rate_max < 1, found {drop_rate_min} and"
            f" {drop_rate_max}"
        )
    counts = ak.to_numpy(ak.num(array))
    kept = np.maximum(
        min_elements,
        np.round(counts * (1 - _generator().uniform(drop_rate_min, drop_rate_max, len(counts)))),
    )
    return indices[indices < kept.astype(np.int64)]


_HELPERS = (
    _concat,
    _stack,
    _clip,
    _batch_argsort,
    _batch_gather,
    _batch_permute_indices,
    _batch_permute_and_drop_indices,
)
HELPERS: dict[str, Callable] = {
    f.__name__: f for f in (*_HELPERS, _p4_from_pxpypze, _p4_from_ptetaphie, _p4_from_ptetaphim)
}

FUNCTIONS: frozenset[str] = frozenset(
    {f"{module}.{name}" for module, names in VOCABULARY.items() for name in names}
    | {f".{name}" for name in METHODS | VECTOR_METHODS | COMPONENTS}
    | {"len", *HELPERS}
)
"""Every name that an expression may call or refer to:

"numpy.log", "awkward.num", "math.exp", ".astype", "len", "_clip".
"""
