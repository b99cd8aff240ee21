"""The vocabulary of data-config expressions: one table of all functions, constants and operators.

Every module that handles expressions derives its list from this table:

    evaluator       weaver/config/expressions.py: what may be called, from which namespace
    helpers         weaver/config/helpers.py: one Python function for each row of namespace `helper`
    raw program     weaver/onnx/raw_program.py: which functions a served model can compute
    torch           weaver/onnx/raw_model.py: one implementation for each operation
    documentation   `python -m weaver.config.vocabulary` prints the table in Markdown

To add a function, add a row. A function without a form works in data configs only. One with a form
also works in a model that takes raw jets; the tests then require its implementation in torch.
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
# A function may be listed only if it has no side effects, opens no file, draws no random numbers,
# and needs memory in proportion to its arguments or below MOST_ELEMENTS.
_TABLE = """
_clip                           helper              elementwise clip
abs                             numpy               elementwise abs
absolute                        numpy               elementwise abs
acos                            numpy,math          elementwise arccos
add                             numpy               elementwise add
arccos                          numpy               elementwise arccos
arccosh                         numpy               elementwise arccosh
arcsin                          numpy               elementwise arcsin
arcsinh                         numpy               elementwise arcsinh
arctan                          numpy               elementwise arctan
arctan2                         numpy               elementwise arctan2
arctanh                         numpy               elementwise arctanh
asin                            numpy,math          elementwise arcsin
atan                            numpy,math          elementwise arctan
atan2                           numpy,math          elementwise arctan2
bitwise_and                     numpy               elementwise bitwise_and
bitwise_not                     numpy               elementwise invert
bitwise_or                      numpy               elementwise bitwise_or
bitwise_xor                     numpy               elementwise bitwise_xor
cbrt                            numpy,math          elementwise cbrt
ceil                            numpy,math          elementwise ceil
cos                             numpy,math          elementwise cos
cosh                            numpy,math          elementwise cosh
deg2rad                         numpy               elementwise deg2rad
degrees                         numpy,math          elementwise rad2deg
divide                          numpy               elementwise divide
equal                           numpy               elementwise equal
exp                             numpy,math          elementwise exp
exp2                            numpy,math          elementwise exp2
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
pow                             numpy,math          elementwise power
power                           numpy               elementwise power
rad2deg                         numpy               elementwise rad2deg
radians                         numpy,math          elementwise deg2rad
reciprocal                      numpy               elementwise reciprocal
remainder                       numpy               elementwise remainder
rint                            numpy               elementwise rint
round                           numpy,awkward       elementwise rint
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
Array                           awkward
_batch_permute_and_drop_indices helper
_batch_permute_indices          helper
_concat                         helper
_hash                           helper
_p4_from_ptetaphie              helper
_p4_from_ptetaphim              helper
_p4_from_pxpypze                helper
_pad                            helper
_repeat_pad                     helper
_stack                          helper
acosh                           numpy,math
almost_equal                    awkward
angle                           numpy,awkward
append                          numpy
arange                          numpy
argcartesian                    awkward
argcombinations                 awkward
argmax                          numpy,awkward
argmin                          numpy,awkward
argpartition                    numpy
argwhere                        numpy
around                          numpy
array                           numpy
array_equal                     awkward
asarray                         numpy
asinh                           numpy,math
astype                          numpy
atanh                           numpy,math
atleast_1d                      numpy
atleast_2d                      numpy
atleast_3d                      numpy
average                         numpy
bitwise_count                   numpy
bitwise_invert                  numpy
bitwise_left_shift              numpy
bitwise_right_shift             numpy
bool                            numpy
bool_                           numpy
broadcast_arrays                numpy,awkward
broadcast_fields                awkward
broadcast_to                    numpy
cartesian                       awkward
choose                          numpy
clip                            numpy
column_stack                    numpy
combinations                    awkward
compress                        numpy
concat                          numpy
concatenate                     numpy,awkward
conj                            numpy
conjugate                       numpy
copy                            numpy,awkward
copysign                        numpy,math
corr                            awkward
covar                           awkward
cross                           numpy
cumprod                         numpy
cumsum                          numpy
cumulative_prod                 numpy
cumulative_sum                  numpy
diagonal                        numpy
diff                            numpy
digitize                        numpy
dist                            math
divmod                          numpy
dot                             numpy
double                          numpy
drop_none                       awkward
dstack                          numpy
e                               numpy,math
ediff1d                         numpy
einsum                          numpy
enforce_type                    awkward
erf                             math
erfc                            math
euler_gamma                     numpy
expand_dims                     numpy
extract                         numpy
eye                             numpy
fields                          awkward
fix                             numpy
flatnonzero                     numpy
flatten                         awkward
flip                            numpy
fliplr                          numpy
flipud                          numpy
float16                         numpy
float32                         numpy
float64                         numpy
fmax                            numpy
fmin                            numpy
fmod                            numpy,math
frexp                           numpy,math
from_iter                       awkward
from_numpy                      awkward
from_regular                    awkward
fsum                            math
full                            numpy
gamma                           math
gcd                             numpy,math
geomspace                       numpy
gradient                        numpy
half                            numpy
heaviside                       numpy
histogram                       numpy
hstack                          numpy
i0                              numpy
identity                        numpy
imag                            numpy,awkward
inf                             numpy,math
inner                           numpy
int16                           numpy
int32                           numpy
int64                           numpy
int8                            numpy
int_                            numpy
intc                            numpy
interp                          numpy
intp                            numpy
is_none                         awkward
isclose                         numpy,awkward,math
isin                            numpy
isneginf                        numpy
isposinf                        numpy
isqrt                           math
isreal                          numpy
lcm                             numpy,math
ldexp                           numpy,math
left_shift                      numpy
len                             python
lexsort                         numpy
lgamma                          math
linalg.norm                     numpy
add.reduce                      numpy
logical_and.reduce              numpy
logical_or.reduce               numpy
maximum.reduce                  numpy
minimum.reduce                  numpy
multiply.reduce                 numpy
linear_fit                      awkward
linspace                        numpy
logaddexp2                      numpy
logspace                        numpy
longlong                        numpy
mask                            awkward
matmul                          numpy
matrix_transpose                numpy
median                          numpy
merge_option_of_records         awkward
merge_union_of_records          awkward
modf                            numpy,math
moment                          awkward
moveaxis                        numpy
nan                             numpy,math
nan_to_none                     awkward
nanargmax                       numpy,awkward
nanargmin                       numpy,awkward
nancumprod                      numpy
nancumsum                       numpy
nanmax                          numpy,awkward
nanmean                         numpy,awkward
nanmedian                       numpy
nanmin                          numpy,awkward
nanpercentile                   numpy
nanprod                         numpy,awkward
nanquantile                     numpy
nanstd                          numpy,awkward
nansum                          numpy,awkward
nanvar                          numpy,awkward
ndim                            numpy
newaxis                         numpy
nextafter                       numpy,math
nonzero                         numpy
ones                            numpy
pad_none                        awkward
partition                       numpy
percentile                      numpy
permute_dims                    numpy
pi                              numpy,math
polyval                         numpy
ptp                             numpy,awkward
quantile                        numpy
ravel                           numpy,awkward
real                            numpy,awkward
repeat                          numpy
reshape                         numpy
right_shift                     numpy
roll                            numpy
rollaxis                        numpy
rot90                           numpy
run_lengths                     awkward
searchsorted                    numpy
select                          numpy
setdiff1d                       numpy
shape                           numpy
short                           numpy
signbit                         numpy
sinc                            numpy
single                          numpy
singletons                      awkward
size                            numpy
softmax                         awkward
spacing                         numpy
squeeze                         numpy
stack                           numpy
std                             numpy,awkward
strings_astype                  awkward
swapaxes                        numpy
take                            numpy
take_along_axis                 numpy
tau                             math
tensordot                       numpy
tile                            numpy
to_numpy                        awkward
to_packed                       awkward
to_regular                      awkward
trace                           numpy
transpose                       numpy
trapezoid                       numpy
tri                             numpy
tril                            numpy
triu                            numpy
ubyte                           numpy
uint                            numpy
uint16                          numpy
uint32                          numpy
uint64                          numpy
uint8                           numpy
ulp                             math
unflatten                       awkward
union1d                         numpy
unique                          numpy
unwrap                          numpy
unzip                           awkward
var                             numpy,awkward
vecdot                          numpy
vstack                          numpy
with_field                      awkward
with_name                       awkward
without_field                   awkward
without_parameters              awkward
zeros                           numpy
zip                             awkward
zip_no_broadcast                awkward
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
    """Return the names of all functions of a namespace, one of NAMESPACES."""
    return frozenset(function.name for function in TABLE if namespace in function.namespaces)


def operations(form: str) -> dict[str, str]:
    """Return function -> operation of the raw program, for the functions of a form of FORMS."""
    return {function.name: function.operation for function in TABLE if function.form == form}


VOCABULARY: dict[str, frozenset[str]] = {
    module: names_in(module) for module in ("numpy", "awkward", "math")
}
"""Module -> the names of it that an expression may use."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SIZE_RULES = {
    "ones": "shape",
    "zeros": "shape",
    "full": "shape",
    "broadcast_to": "shape",
    "identity": "square",
    "eye": "square",
    "tri": "square",
    "arange": "range",
    "linspace": "num",
    "logspace": "num",
    "geomspace": "num",
    "repeat": "repeats",
    "tile": "repeats",
}
"""Functions of numpy that make arrays of any size -> which of their arguments decide the size."""
MOST_ELEMENTS = 2**28
"""The largest array that an expression may make (weaver/config/sizes.py)."""

AWKWARD_0 = {
    "ones_like": "ak.ones_like(x)",
    "zeros_like": "ak.zeros_like(x)",
    "fromcounts": "ak.unflatten(content, counts)",
    "fromoffsets": "ak.unflatten(content, counts)",
    "fromiter": "ak.from_iter(lists)",
    "concatenate": "ak.concatenate(arrays, axis=1)",
    "zip": "ak.zip({...})",
}
"""Functions of awkward 0's JaggedArray -> what to write instead."""
AWKWARD_0_METHODS = {
    "counts": "ak.num(x)",
    "flatten": "ak.flatten(x)",
    "content": "ak.flatten(x)",
    "pad": "ak.pad_none(x, length)",
    "fillna": "ak.fill_none(x, value)",
    "regular": "ak.to_regular(x)",
    "compact": "x",
    "cross": "ak.cartesian([x, y])",
    "distincts": "ak.combinations(x, 2)",
    "pairs": "ak.combinations(x, 2)",
}
"""Methods and attributes of awkward 0's arrays -> what to write instead."""

UNSUPPORTED_HELPERS = {
    "_knn": "its argument n_jobs is gone from scipy, so that weaver-core cannot evaluate it either",
    "_batch_knn": (
        "its argument n_jobs is gone from scipy, so that weaver-core cannot evaluate it either"
    ),
    "_get_content_and_offsets": "it gives two arrays, which no column can hold",
    "_fused_pad_and_stack": "it takes a whole table; write the variables into a group of inputs",
}
"""Functions of weaver-core's evaluator (weaver/utils/data/tools.py) that do not work here -> why.
"""

METHODS = _words(
    "all any argmax argmin argsort astype clip cumprod cumsum dot flatten max mean min nonzero prod"
    " ptp ravel repeat reshape round searchsorted squeeze std sum swapaxes take transpose var"
)
"""Methods of an array that may be called, as in `label.argmax(1)`."""

ATTRIBUTES = _words("T ndim shape size")
"""Attributes of a numpy array, such as np.stack gives."""

COMPONENTS = _words(
    "px py pz E energy pt eta phi mass m p theta rapidity mass2 m2 pt2 p2 Et mt beta gamma"
)
"""Attributes of a four-momentum (made by _p4_from_...), as in `p4.px`."""

VECTOR_METHODS = _words("deltaR deltaphi deltaeta deltaR2 deltaRapidityPhi deltaangle")
"""Methods of a four-momentum, as in `p4.deltaR(other)`."""


@dataclasses.dataclass(frozen=True)
class Operator:
    """A Python operator: the evaluator's function, and the operation of the raw program."""

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
    """Return the table for documentation, in Markdown: one row for each function."""
    lines = ["| Name | In | In a served model |", "|---|---|---|"]
    for function in sorted(TABLE, key=lambda function: function.name.lower()):
        form = function.form or "no"
        lines.append(f"| `{function.name}` | {', '.join(function.namespaces)} | {form} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
