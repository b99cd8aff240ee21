"""Compile a data config's expressions into the program that prepares raw jets in a served model.

    program = raw_program(data_config, columns)      # InputError if a graph cannot compute it

Each expression (weaver/config/expressions.py) becomes operations on padded columns: a variable of
jets is (N,), one of particles (N, P) with a number of particles (N,). To follow the rules of numpy
and awkward, the type and shape of each result are taken from evaluating the expression on three
tiny jets. Nothing here needs torch, so that `check_raw` can reject a data config that cannot be
served with raw jets before any training. weaver/onnx/raw_model.py makes the graph.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import awkward as ak
import numpy as np

from common.errors import InputError, unknown
from weaver.config import vocabulary
from weaver.config.data_config import TRAINING_FLAG, DataConfig
from weaver.config.expressions import Expression
from weaver.config.reference import ETA, eta_group, reference_expression
from weaver.config.vocabulary import MODULES

# numbers of particles of the tiny jets: they differ from each other and from the number of jets,
# so that a wrong axis changes the shape
COUNTS = (2, 1, 4)

ELEMENTWISE = vocabulary.operations("elementwise")
"""Functions of single values -> operation.

Names are those of numpy, awkward and weaver-core's helpers.
"""

REDUCTIONS = vocabulary.operations("reduction")
"""Functions from particles to one value a jet -> operation; they need axis=1."""

PARTICLE_FUNCTIONS = frozenset(vocabulary.operations("particles"))
"""Functions of a jet's particles; the compiler has a method `call_<name>` for each."""

_BINARY = {kind: row.operation for kind, row in vocabulary.BINARY.items() if row.operation}
_UNARY = {kind: row.operation for kind, row in vocabulary.UNARY.items()}
_COMPARE = {kind: row.operation for kind, row in vocabulary.COMPARE.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A branch of the files."""

    dtype: np.dtype
    particles: bool
    """Whether it has several values a jet."""
    counter: str = ""
    """For particles: the name of the input with each jet's number of particles."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """The result of one operation. Equal operations on equal values are one object."""

    op: str
    args: tuple
    """Values, and the plain numbers and words of the operation."""
    dtype: np.dtype
    counts: Value | None = None
    """For particles: the number in each jet. None for one value a jet."""
    absent: Value | None = None
    """Which jets have no value (such as the maximum over no particles); None if all have one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawProgram:
    """All operations before the network, and the quantity that its output corrects."""

    inputs: dict[str, Column]
    """Branch -> column, in the order of first use in the data config, without the counters."""
    groups: dict[str, list[Value]]
    """Input group of the network -> its variables, before standardisation and the cut to the
    length.
    """
    orders: dict[str, list[tuple[Value, bool]]]
    """Group -> its sort keys, the first one first, and whether each falls."""
    reference: Value
    """The quantity that the network's output corrects, one value a jet: jetPt (GeV) in
    log(genJetPt / jetPt)."""
    reference_text: str
    eta: Value | None = None
    """jetEta, if the network takes it as one value a jet."""

    @property
    def counters(self) -> list[str]:
        """Names of the counters, each once, in the order of the inputs."""
        counters = [column.counter for column in self.inputs.values() if column.particles]
        return list(dict.fromkeys(counters))


def raw_program(config: DataConfig, columns: Mapping[str, Column]) -> RawProgram:
    """Make the program of a data config for files with these columns (branch name -> Column).

    Raises InputError, with the expression and its place, for what a graph cannot compute.
    """
    compiler = _Compiler(config, columns)
    groups: dict[str, list[Value]] = {}
    for group, names in config.input_dicts.items():
        groups[group] = [compiler.variable(name, group) for name in names]
    orders: dict[str, list[tuple[Value, bool]]] = {}
    for group, keys in config.order_by.items():
        orders[group] = [(compiler.column(key.name), key.falling) for key in keys]
    reference = reference_expression(config)
    return RawProgram(
        groups=groups,
        orders=orders,
        reference=compiler.reference(reference),
        reference_text=reference.canonical(),
        eta=compiler.column(ETA) if eta_group(config) is not None else None,
        inputs=compiler.inputs,
    )


def check_raw(config: DataConfig, columns: Mapping[str, Column]) -> None:
    """Raise InputError if a model for raw jets cannot be made from this data config."""
    raw_program(config, columns)


def input_columns(config: DataConfig) -> list[str]:
    """Return the names of the network's input variables, and of the keys that sort particles."""
    names: list[str] = []
    for variables in config.input_dicts.values():
        names += variables
    for keys in config.order_by.values():
        names += [key.name for key in keys]
    return names


def raw_branches(config: DataConfig) -> dict[str, str]:
    """Return the branches that a model for raw jets needs: column name -> branch name.

    Raises InputError for a label that it cannot invert.
    """
    # a served model has outputs for every jet
    without_selection = dataclasses.replace(config, selections={"train": None, "test": None})
    names = [*input_columns(config), *reference_expression(config).names]
    return without_selection.plan_for(names).branches


class _Compiler:
    """Compile expressions to Values.

    It stores the Value of each column, and the column of the three tiny jets.
    """

    def __init__(self, config: DataConfig, columns: Mapping[str, Column]) -> None:
        self.config = config
        self.columns = columns
        self.branches = raw_branches(config)
        self.inputs: dict[str, Column] = {}
        self.values: dict[str, Value] = {}
        self.samples: dict[str, ak.Array] = {}
        self.values_by_key: dict[tuple, Value] = {}
        # place of the expression that is being compiled, for errors
        self.where = config.source
        self.visitors: dict[type[ast.AST], Callable[[Any], Value]] = {
            ast.Name: lambda node: self.values[node.id],
            ast.BinOp: self.binary,
            ast.UnaryOp: self.unary,
            ast.Compare: self.comparison,
            ast.Subscript: self.subscript,
            ast.Call: self.call,
        }

    # ------------------------------------------------------------------------------------ columns

    def variable(self, name: str, group: str) -> Value:
        """Return an input variable of the network."""
        value = self.column(name)
        self.where = f"{self.config.source}:inputs:{group}:{name}"
        if value.absent is not None:
            raise self.error(
                name, "it has no value for jets without particles; write ak.fill_none(..., 0)"
            )
        return value

    def reference(self, expression: Expression) -> Value:
        """Return the quantity that the label divides by."""
        value = self.expression(expression)
        if not isinstance(value, Value) or value.counts is not None or value.absent is not None:
            raise self.error(
                expression.text, "what the label divides by is not one number for each jet"
            )
        return value

    def column(self, name: str) -> Value:
        """Return the Value of a branch or a new variable, which is compiled at its first use."""
        if name not in self.values:
            function = self.config.functions.get(name)
            value = self.branch(name) if function is None else self.expression(function)
            # an expression without columns: the same number for every jet
            if not isinstance(value, Value):
                raise self.error(name, "it is the same for all jets")
            if function is not None:
                self.samples[name] = self.sample(function.tree)
            self.values[name] = value
        return self.values[name]

    def branch(self, name: str) -> Value:
        """Return the Value of a column of the files, which becomes an input of the model.

        Raises:
            InputError: the column comes from no branch, or no file has the branch.
        """
        if name == TRAINING_FLAG or name not in self.branches:
            raise self.error(name, "it comes from no branch, so that a served model cannot know it")
        branch = self.branches[name]
        if branch not in self.columns:
            raise InputError(f"{self.config.source}: {unknown('branch', branch, self.columns)}")
        column = self.inputs[branch] = self.columns[branch]
        ones = np.ones(sum(COUNTS) if column.particles else len(COUNTS), column.dtype)
        self.samples[name] = ak.unflatten(ones, COUNTS) if column.particles else ak.Array(ones)
        counts = None
        # all columns of a counter share one Value, which takes the number of places from the first
        if column.particles:
            same = [name for name, other in self.inputs.items() if other.counter == column.counter]
            counts = self.make("counter", (column.counter, same[0]), np.int64)
        return self.make("column", (branch,), column.dtype, counts)

    def make(
        self, op: str, args: tuple, dtype, counts: Value | None = None, absent: Value | None = None
    ) -> Value:
        """Return the Value of an operation; equal operations get the same object."""
        # the key contains the types of numbers, because 1, 1.0 and True are equal
        operands = [id(a) if isinstance(a, Value) else (type(a), a) for a in args]
        key = (op, *operands, np.dtype(dtype), id(counts), id(absent))
        return self.values_by_key.setdefault(key, Value(op, args, np.dtype(dtype), counts, absent))

    # -------------------------------------------------------------------------------- expressions

    def expression(self, expression: Expression) -> Any:
        """Return the Value of an expression, or a number if it contains no column."""
        for name in expression.names:
            self.column(name)
        before, self.where = self.where, expression.where
        try:
            return self.visit(expression.tree)
        finally:
            self.where = before

    def visit(self, node: ast.AST) -> Any:
        """Return the Value of a part of an expression, or a number if it contains no column."""
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - set(MODULES)
        if not names & set(self.samples):
            return self.sample(node)
        if type(node) not in self.visitors:
            raise self.error(node, "it has no form in a graph")
        return self.visitors[type(node)](node)

    def binary(self, node: ast.BinOp) -> Value:
        if type(node.op) not in _BINARY:
            raise self.error(node, "shifting bits has no form in a graph")
        return self.elementwise(node, _BINARY[type(node.op)], [node.left, node.right])

    def unary(self, node: ast.UnaryOp) -> Value:
        return self.elementwise(node, _UNARY[type(node.op)], [node.operand])

    def comparison(self, node: ast.Compare) -> Value:
        return self.elementwise(node, _COMPARE[type(node.ops[0])], [node.left, node.comparators[0]])

    def subscript(self, node: ast.Subscript) -> Value:
        """Select particles: x[positions], x[condition] or x[:, :k]."""
        particles = self.particles(node, node.value)
        if isinstance(node.slice, ast.Tuple):
            return self.head(node, particles)
        return self.take(node, particles, self.visit(node.slice))

    def call(self, node: ast.Call) -> Value:
        module, name = self.function_of(node)
        if name in REDUCTIONS and module != "math":
            return self.reduce(node, REDUCTIONS[name])
        if name in ELEMENTWISE and (module or name.startswith("_")):
            self.keywords(node)
            return self.elementwise(node, ELEMENTWISE[name], node.args)
        if name in PARTICLE_FUNCTIONS:
            return getattr(self, f"call_{name.strip('_')}")(node)
        raise self.error(
            node,
            unknown("function in a graph", name, {*ELEMENTWISE, *REDUCTIONS, *PARTICLE_FUNCTIONS}),
        )

    def function_of(self, node: ast.Call) -> tuple[str, str]:
        """Return (module, name) of the function; the module is empty for a helper."""
        match node.func:
            case ast.Name(id=name):
                return "", name
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in MODULES:
                return MODULES[module], name
            case ast.Attribute(attr=name):
                raise self.error(node, f"the method .{name}() has no form in a graph")
        # Expression itself rejects other forms, such as f()(x)
        raise self.error(node, "only functions by their names have a form in a graph")

    def elementwise(self, node: ast.AST, op: str, parts: Sequence[ast.AST]) -> Value:
        """Return an elementwise operation, on values of jets or of particles."""
        args = tuple(self.visit(part) for part in parts)
        dtype, particles = self.type_of(node)
        operands = [a for a in args if isinstance(a, Value)]
        if dtype.kind == "b" or all(_dtype(a).kind == "b" for a in args):
            op = vocabulary.ON_BOOLEANS.get(op, op)
        if op.startswith("bitwise") or op == "invert":
            raise self.error(node, "bits of whole numbers have no form in a graph")
        of_particles = [a.counts for a in operands if a.counts is not None]
        counts = of_particles[0] if particles and of_particles else None
        return self.make(op, args, dtype, counts, self.any_absent(operands))

    def any_absent(self, values: Sequence[Value]) -> Value | None:
        """Return which jets lack one of the values; None if all jets have all of them."""
        absent: Value | None = None
        for other in dict.fromkeys(value.absent for value in values):
            if absent is None:
                absent = other
            elif other is not None:
                absent = self.make("logical_or", (absent, other), bool)
        return absent

    # ------------------------------------------------------------------------- particles of a jet

    def particles(self, node: ast.AST, part: ast.AST) -> Value:
        """Return the Value of a part of an expression that must be a list of particles."""
        value = self.visit(part)
        if not isinstance(value, Value) or value.counts is None:
            raise self.error(node, f"'{ast.unparse(part)}' is not a list of particles")
        return value

    def reduce(self, node: ast.Call, op: str) -> Value:
        """Return a reduction of each jet's particles to one value."""
        self.axis(node, ("axis", "mask_identity", "keepdims"))
        value = self.particles(node, node.args[0])
        dtype, particles = self.type_of(node)
        if particles:
            raise self.error(node, "write axis=1, for the particles of each jet, without keepdims")
        # awkward's type contains a question mark if the result for no particles is None
        empty = "?" in str(ak.type(self.sample(node)))
        absent = self.make("equal", (value.counts, 0), bool) if empty else None
        return self.make(op, (value,), dtype, None, absent)

    def axis(self, node: ast.Call, keyword_names: tuple[str, ...]) -> None:
        """Raise InputError for a function over another axis than the particles of each jet."""
        self.keywords(node, *keyword_names)
        axes = [k.value for k in node.keywords if k.arg == "axis"] + node.args[1:2]
        if not axes or self.sample(axes[0]) not in (1, -1):
            raise self.error(node, "it would mix jets; write axis=1, for the particles of each jet")

    def keywords(self, node: ast.Call, *keyword_names: str) -> None:
        """Raise InputError for a keyword argument that is not in `keyword_names`."""
        for keyword in node.keywords:
            if keyword.arg not in keyword_names:
                raise self.error(node, f"the argument {keyword.arg}= has no form in a graph")

    def take(self, node: ast.AST, value: Value, selector: Any) -> Value:
        """Return the particles value[selector]: at positions, or those that fulfil a condition."""
        if not isinstance(selector, Value) or selector.counts is None:
            raise self.error(
                node, "only particles can be chosen, by positions or a condition for each of them"
            )
        if selector.dtype != bool:
            return self.make("gather", (value, selector), value.dtype, selector.counts)
        # particles that fulfil the condition move to the front; the new count excludes the others
        counts = self.make("count_nonzero", (selector,), np.int64)
        order = self.make("chosen_first", (selector,), np.int64, selector.counts)
        return self.make("gather", (value, order), value.dtype, counts)

    def head(self, node: ast.Subscript, value: Value) -> Value:
        """Return the first k particles, x[:, :k]."""
        text = ast.unparse(node.slice).strip("()").replace(" ", "")
        if not text.startswith(":,:") or not text[3:].isdigit():
            raise self.error(node, "of slices only x[:, :k] has a form in a graph")
        counts = self.make("minimum", (value.counts, int(text[3:])), np.int64)
        return self.make("positive", (value,), value.dtype, counts)

    def call_batch_gather(self, node: ast.Call) -> Value:
        return self.take(node, self.particles(node, node.args[0]), self.visit(node.args[1]))

    def call_batch_argsort(self, node: ast.Call) -> Value:
        value = self.particles(node, node.args[0])
        return self.make("argsort", (value, False), np.int64, value.counts)

    def call_argsort(self, node: ast.Call) -> Value:
        self.keywords(node, "axis", "ascending", "stable")
        keywords = {keyword.arg: self.sample(keyword.value) for keyword in node.keywords}
        other_axis = keywords.get("axis", -1) not in (1, -1)
        if len(node.args) > 1 or other_axis or keywords.get("stable", True) is not True:
            raise self.error(node, "write ak.argsort(x), with ascending=False for falling order")
        value = self.particles(node, node.args[0])
        falling = not keywords.get("ascending", True)
        return self.make("argsort", (value, falling), np.int64, value.counts)

    def call_sort(self, node: ast.Call) -> Value:
        order = self.call_argsort(node)
        return self.make("gather", (order.args[0], order), order.args[0].dtype, order.counts)

    def call_num(self, node: ast.Call) -> Value:
        if node.args[1:] or node.keywords:  # ak.num's own default is axis=1
            self.axis(node, ("axis",))
        return self.make("positive", (self.particles(node, node.args[0]).counts,), np.int64)

    def call_count(self, node: ast.Call) -> Value:
        self.axis(node, ("axis",))
        return self.call_num(node)

    def call_firsts(self, node: ast.Call) -> Value:
        value = self.particles(node, node.args[0])
        absent = self.make("equal", (value.counts, 0), bool)
        return self.make("first", (value,), value.dtype, None, absent)

    def call_fill_none(self, node: ast.Call) -> Value:
        self.keywords(node, "axis")
        value, other = self.visit(node.args[0]), self.sample(node.args[1])
        dtype, _ = self.type_of(node)
        if value.absent is None:
            return self.make("positive", (value,), dtype, value.counts)
        present = self.make(value.op, value.args, value.dtype, value.counts)
        return self.make("where", (value.absent, other, present), dtype, value.counts)

    def call_local_index(self, node: ast.Call) -> Value:
        if node.args[1:] or node.keywords:
            self.axis(node, ("axis",))
        value = self.particles(node, node.args[0])
        return self.make("local_index", (value,), np.int64, value.counts)

    def call_values_astype(self, node: ast.Call) -> Value:
        self.keywords(node)
        value = self.visit(node.args[0])
        return self.make("positive", (value,), self.type_of(node)[0], value.counts, value.absent)

    def call_full_like(self, node: ast.Call) -> Value:
        self.keywords(node)
        value, number = self.visit(node.args[0]), self.sample(node.args[1])
        return self.make("full_like", (value, number), self.type_of(node)[0], value.counts)

    # ------------------------------------------------------------------------------ the tiny jets

    def sample(self, node: ast.AST) -> Any:
        """Evaluate the expression below `node` on the tiny jets."""
        return Expression(ast.unparse(node), self.where).evaluate(self.samples)

    def type_of(self, node: ast.AST) -> tuple[np.dtype, bool]:
        """Return the type of an expression's numbers, and whether it has several values a jet."""
        result = self.sample(node)
        is_array = isinstance(result, ak.Array | np.ndarray)
        if not is_array or len(result) != len(COUNTS) or result.ndim > 2:
            kind = getattr(result, "type", type(result).__name__)
            raise self.error(node, f"it gives {kind} for {len(COUNTS)} jets")
        numbers = ak.to_numpy(ak.drop_none(ak.flatten(result, axis=None)))
        return numbers.dtype, result.ndim == 2

    def error(self, node: ast.AST | str, reason: str) -> InputError:
        """Return the error for an expression that a graph cannot compute."""
        text = node if isinstance(node, str) else ast.unparse(node)
        return InputError(
            f"{self.where}: '{text}' cannot become part of a model for raw jets: {reason}"
        )


def _dtype(argument: Any) -> np.dtype:
    return argument.dtype if isinstance(argument, Value) else np.asarray(argument).dtype
