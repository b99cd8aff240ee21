"""The program by which a served model prepares raw jets, made of a data config's expressions.

    program = raw_program(data_config, columns)      # InputError for what has no form in a graph

Each expression (weaver/config/expressions.py) becomes operations on padded columns: a variable of
jets is (N,), one of particles (N, P) with the number of real particles (N,). The result of an
operation (its type, one value a jet or several) is found by evaluating the very expression on three
tiny jets, so that the program follows the rules of numpy and awkward. Nothing here needs torch:
`check_raw` can refuse a data config that cannot be served with raw jets before any training.
weaver/onnx/raw_model.py makes the graph of it.
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

# particles of the tiny jets: neither equal nor the number of jets, so that a wrong axis shows in
# the shape
COUNTS = (2, 1, 4)

ELEMENTWISE = vocabulary.operations("elementwise")
"""Functions of single values -> operation.

Names are those of numpy, awkward and weaver-core's helpers.
"""

REDUCTIONS = vocabulary.operations("reduction")
"""Functions from particles to one value a jet -> operation; they need axis=1."""

OTHER = frozenset(vocabulary.operations("particles"))
"""Functions of a jet's particles; the compiler has a method `call_<name>` for each."""

_BINARY = {kind: known.operation for kind, known in vocabulary.BINARY.items() if known.operation}
_UNARY = {kind: known.operation for kind, known in vocabulary.UNARY.items()}
_COMPARE = {kind: known.operation for kind, known in vocabulary.COMPARE.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A branch as the files hold it."""

    dtype: np.dtype
    particles: bool
    """Several values a jet."""
    counter: str = ""
    """Of particles: the name of the input that says how many of a jet's places are real."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """The result of one operation. Equal operations on equal values are one object."""

    op: str
    args: tuple
    """Values, and the plain numbers and words of the operation."""
    dtype: np.dtype
    counts: Value | None = None
    """Of particles: how many a jet has. None for one value a jet."""
    absent: Value | None = None
    """Jets for which there is no value (the largest of no particles)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawProgram:
    """All that comes before the network, and what its answer means."""

    inputs: dict[str, Column]
    """Branch -> what it is, in the order of the data config's use. Counters are not among them."""
    groups: dict[str, list[Value]]
    """Input group of the network -> its variables, before standardisation and the cut to the
    length.
    """
    orders: dict[str, list[tuple[Value, bool]]]
    """Group -> its sort keys, the first one first, and whether each falls."""
    reference: Value
    """The quantity that the network's answer corrects: jetPt (GeV) in log(genJetPt / jetPt), one
    value a jet."""
    reference_text: str
    eta: Value | None = None
    """jetEta, where the network takes it as one value a jet."""

    @property
    def counters(self) -> list[str]:
        """Names of the counters, each once, in the order of the inputs."""
        counters = [column.counter for column in self.inputs.values() if column.particles]
        return list(dict.fromkeys(counters))


def raw_program(config: DataConfig, columns: Mapping[str, Column]) -> RawProgram:
    """Make the program of a data config for files with these columns (branch name -> Column).

    Raises InputError, with the expression and its place, for what has no form in a graph.
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
    """Raise InputError unless a model that takes raw jets can be made of this data config."""
    raw_program(config, columns)


def input_columns(config: DataConfig) -> list[str]:
    """Names of the network's input variables, and of the keys that sort particles."""
    names: list[str] = []
    for variables in config.input_dicts.values():
        names += variables
    for keys in config.order_by.values():
        names += [key.name for key in keys]
    return names


def raw_branches(config: DataConfig) -> dict[str, str]:
    """What such a model reads of the files: column name -> branch name.

    Raises InputError for a label that it cannot invert.
    """
    # a served model answers to every jet
    unselected = dataclasses.replace(config, selections={"train": None, "test": None})
    names = [*input_columns(config), *reference_expression(config).names]
    return unselected.plan_for(names).branches


class _Compiler:
    """Turns expressions into Values.

    For each column it keeps the Value and the column of the three tiny jets.
    """

    def __init__(self, config: DataConfig, columns: Mapping[str, Column]) -> None:
        self.config = config
        self.columns = columns
        self.branches = raw_branches(config)
        self.inputs: dict[str, Column] = {}
        self.values: dict[str, Value] = {}
        self.samples: dict[str, ak.Array] = {}
        self.made: dict[tuple, Value] = {}
        # of the expression that is being compiled, for messages
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
        """An input variable of the network."""
        value = self.column(name)
        self.where = f"{self.config.source}:inputs:{group}:{name}"
        if value.absent is not None:
            raise self.refusal(name, "it has no value for jets without particles; use ak.fill_none")
        return value

    def reference(self, expression: Expression) -> Value:
        """The quantity that the label divides by."""
        value = self.expression(expression)
        if not isinstance(value, Value) or value.counts is not None or value.absent is not None:
            raise self.refusal(
                expression.text, "what the label divides by is not one number for each jet"
            )
        return value

    def column(self, name: str) -> Value:
        """A branch or a new variable, compiled when it is first used."""
        if name not in self.values:
            function = self.config.functions.get(name)
            value = self.branch(name) if function is None else self.expression(function)
            # an expression without columns: the same number for every jet
            if not isinstance(value, Value):
                raise self.refusal(name, "it is the same for all jets")
            if function is not None:
                self.samples[name] = self.sample(function.tree)
            self.values[name] = value
        return self.values[name]

    def branch(self, name: str) -> Value:
        """A column of the files; it becomes an input of the model."""
        if name == TRAINING_FLAG or name not in self.branches:
            raise self.refusal(
                name, "it comes from no branch, so that a served model cannot know it"
            )
        branch = self.branches[name]
        if branch not in self.columns:
            raise InputError(f"{self.config.source}: {unknown('branch', branch, self.columns)}")
        column = self.inputs[branch] = self.columns[branch]
        ones = np.ones(sum(COUNTS) if column.particles else len(COUNTS), column.dtype)
        self.samples[name] = ak.unflatten(ones, COUNTS) if column.particles else ak.Array(ones)
        counts = None
        # all columns of a counter share one Value, which looks at the first of them for the places
        # there are
        if column.particles:
            same = [name for name, other in self.inputs.items() if other.counter == column.counter]
            counts = self.make("counter", (column.counter, same[0]), np.int64)
        return self.make("column", (branch,), column.dtype, counts)

    def make(
        self, op: str, args: tuple, dtype, counts: Value | None = None, absent: Value | None = None
    ) -> Value:
        """The Value of an operation, the same object for equal operations."""
        # with the types of numbers, since 1, 1.0 and True are equal
        operands = [id(a) if isinstance(a, Value) else (type(a), a) for a in args]
        key = (op, *operands, np.dtype(dtype), id(counts), id(absent))
        return self.made.setdefault(key, Value(op, args, np.dtype(dtype), counts, absent))

    # -------------------------------------------------------------------------------- expressions

    def expression(self, expression: Expression) -> Any:
        """The Value of an expression, or a number if it names no column."""
        for name in expression.names:
            self.column(name)
        before, self.where = self.where, expression.where
        try:
            return self.visit(expression.tree)
        finally:
            self.where = before

    def visit(self, node: ast.AST) -> Any:
        """The Value of a part of an expression, or a number if it names no column."""
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - set(MODULES)
        if not names & set(self.samples):
            return self.sample(node)
        if type(node) not in self.visitors:
            raise self.refusal(node, f"{type(node).__name__} has no form in a graph")
        return self.visitors[type(node)](node)

    def binary(self, node: ast.BinOp) -> Value:
        if type(node.op) not in _BINARY:
            raise self.refusal(node, "shifting bits has no form in a graph")
        return self.elementwise(node, _BINARY[type(node.op)], [node.left, node.right])

    def unary(self, node: ast.UnaryOp) -> Value:
        return self.elementwise(node, _UNARY[type(node.op)], [node.operand])

    def comparison(self, node: ast.Compare) -> Value:
        return self.elementwise(node, _COMPARE[type(node.ops[0])], [node.left, node.comparators[0]])

    def subscript(self, node: ast.Subscript) -> Value:
        """Particles by x[positions], x[condition] or x[:, :k]."""
        particles = self.particles(node, node.value)
        if isinstance(node.slice, ast.Tuple):
            return self.head(node, particles)
        return self.take(node, particles, self.visit(node.slice))

    def call(self, node: ast.Call) -> Value:
        module, name = self.called(node)
        if name in REDUCTIONS and module != "math":
            return self.reduce(node, REDUCTIONS[name])
        if name in ELEMENTWISE and (module or name.startswith("_")):
            self.keywords(node)
            return self.elementwise(node, ELEMENTWISE[name], node.args)
        if name in OTHER:
            return getattr(self, f"call_{name.strip('_')}")(node)
        raise self.refusal(
            node, unknown("function in a graph", name, {*ELEMENTWISE, *REDUCTIONS, *OTHER})
        )

    def called(self, node: ast.Call) -> tuple[str, str]:
        """Module (empty for a helper) and name of the function."""
        match node.func:
            case ast.Name(id=name):
                return "", name
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in MODULES:
                return MODULES[module], name
            case ast.Attribute(attr=name):
                raise self.refusal(node, f"the method .{name}() has no form in a graph")
        # Expression itself refuses anything else, such as f()(x)
        raise self.refusal(node, "only functions by their names have a form in a graph")

    def elementwise(self, node: ast.AST, op: str, parts: Sequence[ast.AST]) -> Value:
        """An operation on single values, those of jets or of particles."""
        args = tuple(self.visit(part) for part in parts)
        dtype, particles = self.type_of(node)
        given = [a for a in args if isinstance(a, Value)]
        if dtype.kind == "b" or all(_dtype(a).kind == "b" for a in args):
            op = vocabulary.ON_BOOLEANS.get(op, op)
        if op.startswith("bitwise") or op == "invert":
            raise self.refusal(node, "bits of whole numbers have no form in a graph")
        of_particles = [a.counts for a in given if a.counts is not None]
        counts = of_particles[0] if particles and of_particles else None
        return self.make(op, args, dtype, counts, self.any_absent(given))

    def any_absent(self, values: Sequence[Value]) -> Value | None:
        """Jets for which one of the values is absent; None where none ever is."""
        absent: Value | None = None
        for other in dict.fromkeys(value.absent for value in values):
            if absent is None:
                absent = other
            elif other is not None:
                absent = self.make("logical_or", (absent, other), bool)
        return absent

    # ------------------------------------------------------------------------- particles of a jet

    def particles(self, node: ast.AST, part: ast.AST) -> Value:
        """A part of an expression that must be a list of particles."""
        value = self.visit(part)
        if not isinstance(value, Value) or value.counts is None:
            raise self.refusal(node, f"'{ast.unparse(part)}' is not a list of particles")
        return value

    def reduce(self, node: ast.Call, op: str) -> Value:
        """One value a jet of its particles."""
        self.axis(node, ("axis", "mask_identity", "keepdims"))
        value = self.particles(node, node.args[0])
        dtype, particles = self.type_of(node)
        if particles:
            raise self.refusal(
                node, "write axis=1, for the particles of each jet, without keepdims"
            )
        # awkward's type has a question mark where the largest of no particles is None
        empty = "?" in str(ak.type(self.sample(node)))
        absent = self.make("equal", (value.counts, 0), bool) if empty else None
        return self.make(op, (value,), dtype, None, absent)

    def axis(self, node: ast.Call, known: tuple[str, ...]) -> None:
        """Refuse a function over another axis than the particles of each jet."""
        self.keywords(node, *known)
        given = [k.value for k in node.keywords if k.arg == "axis"] + node.args[1:2]
        if not given or self.sample(given[0]) not in (1, -1):
            raise self.refusal(
                node, "it would mix jets; write axis=1, for the particles of each jet"
            )

    def keywords(self, node: ast.Call, *known: str) -> None:
        """Refuse a keyword argument that is not among the known ones."""
        for keyword in node.keywords:
            if keyword.arg not in known:
                raise self.refusal(node, f"the argument {keyword.arg}= has no form in a graph")

    def take(self, node: ast.AST, value: Value, chosen: Any) -> Value:
        """The particles value[chosen]: at these positions, or those that fulfil a condition."""
        if not isinstance(chosen, Value) or chosen.counts is None:
            raise self.refusal(
                node, "only particles can be chosen, by positions or a condition for each of them"
            )
        if chosen.dtype != bool:
            return self.make("gather", (value, chosen), value.dtype, chosen.counts)
        # those that fulfil it come first, in their order, and the others no longer count
        counts = self.make("count_nonzero", (chosen,), np.int64)
        order = self.make("chosen_first", (chosen,), np.int64, chosen.counts)
        return self.make("gather", (value, order), value.dtype, counts)

    def head(self, node: ast.Subscript, value: Value) -> Value:
        """The first k particles, x[:, :k]."""
        text = ast.unparse(node.slice).strip("()").replace(" ", "")
        if not text.startswith(":,:") or not text[3:].isdigit():
            raise self.refusal(node, "of slices only x[:, :k] has a form in a graph")
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
            raise self.refusal(node, "write ak.argsort(x), with ascending=False for falling order")
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
        """The type of the numbers, and whether there are several a jet."""
        result = self.sample(node)
        is_array = isinstance(result, ak.Array | np.ndarray)
        if not is_array or len(result) != len(COUNTS) or result.ndim > 2:
            kind = getattr(result, "type", type(result).__name__)
            raise self.refusal(node, f"it gives {kind} for {len(COUNTS)} jets")
        numbers = ak.to_numpy(ak.drop_none(ak.flatten(result, axis=None)))
        return numbers.dtype, result.ndim == 2

    def refusal(self, node: ast.AST | str, reason: str) -> InputError:
        """The error for an expression that has no form in a graph."""
        text = node if isinstance(node, str) else ast.unparse(node)
        return InputError(
            f"{self.where}: '{text}' cannot become part of a model that takes raw jets: {reason}"
        )


def _dtype(argument: Any) -> np.dtype:
    return argument.dtype if isinstance(argument, Value) else np.asarray(argument).dtype
