"""The vocabulary of data-config expressions: one table of all functions, constants and operators.

Whatever an expression may contain stands here, and each place that handles expressions derives its
list from it:

    evaluator       weaver/config/expressions.py: what may be called, from which namespace
    helpers         weaver/config/helpers.py: one Python function for each row of namespace `helper`
    raw program     weaver/onnx/raw_program.py: which functions a served model can compute
    torch           weaver/onnx/raw_model.py: one implementation for each operation
    documentation   `python -m weaver.config.vocabulary` prints the table in Markdown

To add a function, add a row. Without a form it works in data configs; with one it also works in a
model that takes raw jets, and the tests then require its implementation in torch.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
from collections.abc import Callable

MODULES = {"np": "numpy", "numpy": "numpy", "ak": "awkward", "awkward": "awkward", "math": "math"}
"""Prefix as written in an expression -> module."""

NAMESPACES = ("numpy", "awkward", "math", "helper", "python")
"""The modules; weaver-core's helpers and Python's `len` are called without a prefix."""

FORMS = ("elementwise", "reduction", "particles")
"""How a served model computes a function.

    elementwise   each number by itself
    reduction     a jet's particles to one value; needs axis=1
    particles     moves, counts or selects a jet's particles; the raw program has code for each
"""

# name, namespaces, form in the raw program, its operation there (of `particles`: the last of them).
# Only functions without side effects whose memory is bounded by that of their arguments: no files,
# no random numbers by themselves, no sizes.
_TABLE = """
_clip                           helper              elementwise clip
abs                             numpy               elementwise abs
absolute                        numpy               elementwise abs
acos                            math                elementwise arccos
add                             numpy               elementwise add
arccos                          numpy               elementwise arccos
arccosh                         numpy               elementwise arccosh
arcsin                          numpy               elementwise arcsin
arcsinh                         numpy               elementwise arcsinh
arctan                          numpy               elementwise arctan
arctan2                         numpy               elementwise arctan2
arctanh                         numpy               elementwise arctanh
asin                            math                elementwise arcsin
atan                            math                elementwise arctan
atan2                           math                elementwise arctan2
bitwise_and                     numpy               elementwise bitwise_and
bitwise_not                     numpy               elementwise invert
bitwise_or                      numpy               elementwise bitwise_or
bitwise_xor                     numpy               elementwise bitwise_xor
cbrt                            numpy               elementwise cbrt
ceil                            numpy,math          elementwise ceil
cos                             numpy,math          elementwise cos
cosh                            numpy,math          elementwise cosh
deg2rad                         numpy               elementwise deg2rad
degrees                         numpy,math          elementwise rad2deg
divide                          numpy               elementwise divide
equal                           numpy               elementwise equal
exp                             numpy,math          elementwise exp
exp2                            numpy               elementwise exp2
expm1                           numpy,math          elementwise expm1
fabs                            numpy,math          elementwise abs
float_power                     numpy               elementwise power
floor                           numpy,math          elementwise floor
floor_divide                    numpy               elementwise floor_divide
greater                         numpy               elementwise greater
greater_equal                   numpy               elementwise greater_equal
hypot                           numpy,math          elementwise hypot
invert                          numpy               elementwise invert
isfinite                        numpy,math          elementwise isfinite
isinf                           numpy,math          elementwise isinf
isnan                           numpy,math          elementwise isnan
less                            numpy               elementwise less
less_equal                      numpy               elementwise less_equal
log                             numpy,math          elementwise log
log10                           numpy,math          elementwise log10
log1p                           numpy,math          elementwise log1p
log2                            numpy,math          elementwise log2
logaddexp                       numpy               elementwise logaddexp
logical_and                     numpy               elementwise logical_and
logical_not                     numpy               elementwise logical_not
logical_or                      numpy               elementwise logical_or
logical_xor                     numpy               elementwise logical_xor
maximum                         numpy               elementwise maximum
minimum                         numpy               elementwise minimum
mod                             numpy               elementwise remainder
multiply                        numpy               elementwise multiply
nan_to_num                      numpy,awkward       elementwise nan_to_num
negative                        numpy               elementwise negative
not_equal                       numpy               elementwise not_equal
ones_like                       numpy,awkward       elementwise ones_like
positive                        numpy               elementwise positive
pow                             math                elementwise power
power                           numpy               elementwise power
rad2deg                         numpy               elementwise rad2deg
radians                         numpy,math          elementwise deg2rad
reciprocal                      numpy               elementwise reciprocal
remainder                       numpy               elementwise remainder
rint                            numpy               elementwise rint
round                           numpy               elementwise rint
sign                            numpy               elementwise sign
sin                             numpy,math          elementwise sin
sinh                            numpy,math          elementwise sinh
sqrt                            numpy,math          elementwise sqrt
square                          numpy               elementwise square
subtract                        numpy               elementwise subtract
tan                             numpy,math          elementwise tan
tanh                            numpy,math          elementwise tanh
true_divide                     numpy               elementwise divide
trunc                           numpy,math          elementwise trunc
where                           numpy,awkward       elementwise where
zeros_like                      numpy,awkward       elementwise zeros_like
all                             numpy,awkward       reduction   all
amax                            numpy               reduction   max
amin                            numpy               reduction   min
any                             numpy,awkward       reduction   any
count_nonzero                   numpy,awkward       reduction   count_nonzero
max                             numpy,awkward       reduction   max
mean                            numpy,awkward       reduction   mean
min                             numpy,awkward       reduction   min
prod                            numpy,awkward       reduction   prod
sum                             numpy,awkward       reduction   sum
_batch_argsort                  helper              particles   argsort
_batch_gather                   helper              particles   gather
argsort                         numpy,awkward       particles   argsort
count                           awkward             particles   positive
fill_none                       awkward             particles   where
firsts                          awkward             particles   first
full_like                       numpy,awkward       particles   full_like
local_index                     awkward             particles   local_index
num                             awkward             particles   positive
sort                            numpy,awkward       particles   gather
values_astype                   awkward             particles   positive
_batch_permute_and_drop_indices helper
_batch_permute_indices          helper
_concat                         helper
_p4_from_ptetaphie              helper
_p4_from_ptetaphim              helper
_p4_from_pxpypze                helper
_stack                          helper
acosh                           math
argmax                          numpy,awkward
argmin                          numpy,awkward
asinh                           math
atanh                           math
bool_                           numpy
broadcast_arrays                awkward
clip                            numpy
column_stack                    numpy
concatenate                     numpy,awkward
copysign                        numpy,math
corr                            awkward
covar                           awkward
cumprod                         numpy
cumsum                          numpy
diff                            numpy
digitize                        numpy
drop_none                       awkward
e                               numpy,math
erf                             math
erfc                            math
euler_gamma                     numpy
expand_dims                     numpy
flatten                         awkward
float32                         numpy
float64                         numpy
fmax                            numpy
fmin                            numpy
fmod                            numpy,math
from_numpy                      awkward
from_regular                    awkward
gamma                           math
inf                             numpy,math
int16                           numpy
int32                           numpy
int64                           numpy
int8                            numpy
interp                          numpy
is_none                         awkward
isclose                         numpy,awkward,math
isin                            numpy
isneginf                        numpy
isposinf                        numpy
ldexp                           numpy
left_shift                      numpy
len                             python
lgamma                          math
linear_fit                      awkward
mask                            awkward
median                          numpy
moment                          awkward
nan                             numpy,math
nan_to_none                     awkward
nanmax                          awkward
nanmean                         awkward
nanmin                          awkward
nanprod                         awkward
nanstd                          awkward
nansum                          awkward
nanvar                          awkward
newaxis                         numpy
nextafter                       numpy
pad_none                        awkward
percentile                      numpy
pi                              numpy,math
ptp                             numpy,awkward
quantile                        numpy
ravel                           awkward
right_shift                     numpy
run_lengths                     awkward
select                          numpy
signbit                         numpy
singletons                      awkward
softmax                         awkward
squeeze                         numpy
stack                           numpy
std                             numpy,awkward
take                            numpy
take_along_axis                 numpy
tau                             math
to_numpy                        awkward
to_regular                      awkward
uint16                          numpy
uint32                          numpy
uint64                          numpy
uint8                           numpy
unflatten                       awkward
unwrap                          numpy
var                             numpy,awkward
"""


@dataclasses.dataclass(frozen=True)
class Function:
    """One row of the table: a function, or a constant or type such as `np.pi` and `np.float32`."""

    name: str
    namespaces: tuple[str, ...]
    """Those of NAMESPACES that have it."""
    form: str = ""
    """One of FORMS; empty where a served model cannot compute it."""
    operation: str = ""
    """Operation of the raw program; empty without a form. Several functions may share one."""


def _read_table() -> tuple[Function, ...]:
    functions = []
    for line in _TABLE.strip().splitlines():
        name, namespaces, *raw = line.split()
        functions.append(Function(name, tuple(namespaces.split(",")), *raw))
    return tuple(functions)


TABLE = _read_table()
"""All rows, sorted by form and name."""


def names_in(namespace: str) -> frozenset[str]:
    """Names of all functions of a namespace, one of NAMESPACES."""
    return frozenset(function.name for function in TABLE if namespace in function.namespaces)


def operations(form: str) -> dict[str, str]:
    """Function -> operation of the raw program, for all functions of a form, one of FORMS."""
    return {function.name: function.operation for function in TABLE if function.form == form}


VOCABULARY: dict[str, frozenset[str]] = {
    module: names_in(module) for module in ("numpy", "awkward", "math")
}
"""Module -> the names of it that an expression may use."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


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


@dataclasses.dataclass(frozen=True)
class Operator:
    """A Python operator: what the evaluator does, and the raw program's operation for it."""

    function: Callable
    operation: str = ""
    """Empty where a served model cannot compute it."""


BINARY: dict[type[ast.operator], Operator] = {
    ast.Add: Operator(operator.add, "add"),
    ast.Sub: Operator(operator.sub, "subtract"),
    ast.Mult: Operator(operator.mul, "multiply"),
    ast.Div: Operator(operator.truediv, "divide"),
    ast.FloorDiv: Operator(operator.floordiv, "floor_divide"),
    ast.Mod: Operator(operator.mod, "remainder"),
    ast.Pow: Operator(operator.pow, "power"),
    ast.BitAnd: Operator(operator.and_, "bitwise_and"),
    ast.BitOr: Operator(operator.or_, "bitwise_or"),
    ast.BitXor: Operator(operator.xor, "bitwise_xor"),
    ast.LShift: Operator(operator.lshift),
    ast.RShift: Operator(operator.rshift),
}
UNARY: dict[type[ast.unaryop], Operator] = {
    ast.USub: Operator(operator.neg, "negative"),
    ast.UAdd: Operator(operator.pos, "positive"),
    ast.Invert: Operator(operator.invert, "invert"),
}
COMPARE: dict[type[ast.cmpop], Operator] = {
    ast.Eq: Operator(operator.eq, "equal"),
    ast.NotEq: Operator(operator.ne, "not_equal"),
    ast.Lt: Operator(operator.lt, "less"),
    ast.LtE: Operator(operator.le, "less_equal"),
    ast.Gt: Operator(operator.gt, "greater"),
    ast.GtE: Operator(operator.ge, "greater_equal"),
}

ON_BOOLEANS = {
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
    "invert": "logical_not",
    # numpy's arithmetic of true and false
    "multiply": "logical_and",
    "add": "logical_or",
}
"""Operation -> the one that computes it on booleans. The bitwise ones exist on booleans only."""


def markdown() -> str:
    """The table for documentation, in Markdown: one row for each function."""
    lines = ["| Name | In | In a served model |", "|---|---|---|"]
    for function in sorted(TABLE, key=lambda function: function.name.lower()):
        served = function.form or "no"
        lines.append(f"| `{function.name}` | {', '.join(function.namespaces)} | {served} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
