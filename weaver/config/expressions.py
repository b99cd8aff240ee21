"""Parse, check and evaluate the expressions of a data config.

An expression is written like Python and means the same as in weaver-core: names are columns
(branches or new variables), `np`, `ak` and `math` (or `numpy`, `awkward`) give functions and
constants, `&`, `|`, `~` combine conditions. No text is passed to Python's eval(). It is parsed into
a syntax tree, and each node must be in the vocabulary (weaver/config/vocabulary.py). The error for
any other node shows the expression, its place in the file and the name in question.

>>> Expression("np.log(PF_pT / jetPt)", where="jec.yaml:new_variables:PF_logRelPt").names
('PF_pT', 'jetPt')
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from common.errors import InputError, nearest, unknown
from weaver.config import sizes
from weaver.config.helpers import HELPERS
from weaver.config.vocabulary import (
    ATTRIBUTES,
    AWKWARD_0,
    AWKWARD_0_METHODS,
    BINARY,
    COMPARE,
    COMPONENTS,
    METHODS,
    MODULES,
    MOST_ELEMENTS,
    UNARY,
    UNSUPPORTED_HELPERS,
    VECTOR_METHODS,
    VOCABULARY,
)

MOST_CHARACTERS = 200  # characters of an expression in an error
MOST_ARGUMENTS = 100  # limit of a function that takes any number of arguments
MOST_BITS = 512  # size of a power of integers: ((9 ** 60) ** 60) ** 60 would not end
MAX_EXPONENT = 64  # limit in a power of integers: 9 ** 9 ** 9 would not end

# Syntax that does not work on columns -> what to write instead.
_FORBIDDEN_SYNTAX: dict[type[ast.AST], str] = {
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
    """One parsed expression.

    Attributes: `text`; `where`, its place (file:section:name); `names`, the columns that it needs;
    `tree`, its syntax tree, an `ast.expr` of nodes in the vocabulary only.
    """

    def __init__(self, text: str, where: str = "") -> None:
        """Parse and check an expression; `where` names its place in errors.

        Raises InputError for text that does not parse, and for names outside the vocabulary.
        """
        self.text = str(text).strip()
        self.where = where
        try:
            self.tree: ast.expr = ast.parse(self.text, mode="eval").body
            self.names: tuple[str, ...] = tuple(dict.fromkeys(self._check(self.tree)))
        except SyntaxError as error:
            near = ""
            if error.offset and error.lineno == 1:
                near = f" near '{self.text[error.offset - 1 :][:20]}'"
            raise self._error(f"it does not parse{near} ({error.msg})") from None
        except (RecursionError, MemoryError, ValueError):
            raise self._error("it cannot be parsed: nested too deeply, or not text") from None

    def __repr__(self) -> str:
        """Show the text and the place."""
        return f"Expression({self.text!r}, where={self.where!r})"

    def canonical(self) -> str:
        """Return the text of the expression in a standard layout.

        It is the same for expressions that differ only in blanks and redundant parentheses.
        """
        return ast.unparse(self.tree)

    @functools.cached_property
    def is_elementwise(self) -> bool:
        """True if each element of the value depends only on the same element of the columns.

        Then the flat content of lists may be evaluated instead of the lists.
        """
        return _is_elementwise(self.tree)

    @functools.cached_property
    def is_random(self) -> bool:
        """True if it draws random numbers (weaver/config/helpers.py)."""
        return any(
            isinstance(node, ast.Name) and node.id.startswith("_batch_permute")
            for node in ast.walk(self.tree)
        )

    def evaluate(self, columns: Mapping[str, Any]) -> Any:
        """Evaluate the expression.

        columns: name -> numpy or awkward array, jets along the first axis. Division by zero and
        other invalid operations give inf and NaN without a warning. Raises InputError for a name
        that is not among `columns`, for operands that do not fit each other, and for results
        larger than MOST_ELEMENTS.
        """
        try:
            with np.errstate(all="ignore"):
                return self._value(self.tree, columns)
        except InputError:
            raise
        # numpy and awkward raise errors of many types about operands; the cause is the user's text
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise self._error(
                f"it cannot be evaluated: {reason[0] if reason else type(error).__name__}"
            ) from error

    # ----------------------------------------------------------------------------------- checking

    def _error(self, reason: str) -> InputError:
        text = (
            self.text if len(self.text) <= MOST_CHARACTERS else self.text[:MOST_CHARACTERS] + "..."
        )
        place = f"{self.where}: " if self.where else ""
        return InputError(f"{place}expression '{text}': {reason}")

    def _check(self, node: ast.AST) -> Iterator[str]:
        """Yield the column names below `node`. Raises InputError for nodes outside the vocabulary.

        The method `_check_x` checks nodes of type X; a type without such a method is an error.
        """
        for part in (node, *ast.iter_child_nodes(node)):
            if type(part) in _FORBIDDEN_SYNTAX:
                raise self._error(_FORBIDDEN_SYNTAX[type(part)])
        method = getattr(self, f"_check_{type(node).__name__.lower()}", None)
        if method is None:
            text = ast.unparse(node)[:MOST_CHARACTERS]
            raise self._error(f"'{text}' is not allowed in an expression")
        yield from method(node)

    def _check_children(self, node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.operator | ast.unaryop | ast.cmpop | ast.expr_context):
                yield from self._check(child)

    _check_binop = _check_unaryop = _check_subscript = _check_slice = _check_tuple = _check_list = (
        _check_children
    )

    def _check_constant(self, node: ast.Constant) -> Iterator[str]:
        if not isinstance(node.value, bool | int | float | str | None):
            raise self._error(f"the constant {node.value!r} is not allowed")
        return iter(())

    def _check_dict(self, node: ast.Dict) -> Iterator[str]:
        if None in node.keys:
            raise self._error("** is not allowed in a mapping")
        yield from self._check_children(node)

    def _check_compare(self, node: ast.Compare) -> Iterator[str]:
        if len(node.ops) > 1:
            raise self._error(
                "a chain of comparisons does not work on columns; write (a < b) & (b < c)"
            )
        if type(node.ops[0]) not in COMPARE:
            raise self._error("'is' does not work on columns; write == or !=")
        yield from self._check_children(node)

    def _check_name(self, node: ast.Name) -> Iterator[str]:
        if node.id in MODULES:
            raise self._error(f"'{node.id}' is not a column; write {node.id}.something")
        if node.id == "len" or node.id in HELPERS:
            raise self._error(f"'{node.id}' is a function; write {node.id}(...)")
        if node.id.startswith("_"):
            raise self._error(f"'{node.id}': names that begin with an underscore are no columns")
        yield node.id

    def _check_attribute(self, node: ast.Attribute) -> Iterator[str]:
        """Check `module.name` or `momentum.component`.

        A function without a call is fine where a type is meant, as in ak.values_astype(x,
        np.float32).
        """
        member = _member(node)
        if member is None:
            # a component, an attribute, or the field of a record; only the data decide whether it
            # exists
            if node.attr.startswith("_"):
                raise self._error(f"'.{node.attr}': no field begins with an underscore")
            yield from self._check(node.value)
            return
        prefix, name = member
        members = VOCABULARY[MODULES[prefix]]
        if name in members:
            return
        if MODULES[prefix] == "awkward" and name.startswith("JaggedArray"):
            function = name.partition(".")[2]
            instead = AWKWARD_0.get(function, f"ak.{function}(...)")
            raise self._error(
                f"'{prefix}.{name}' is of awkward 0, which no longer exists; write {instead}"
            )
        if MODULES[prefix] == "numpy" and name.startswith("random."):
            raise self._error(
                f"'{prefix}.{name}' would draw other numbers at each reading; take a number of the"
                " event instead, as in _hash(event, run) % 5"
            )
        if name in ("empty", "empty_like"):
            raise self._error(
                f"'{prefix}.{name}' holds arbitrary numbers; write np.zeros or np.zeros_like"
            )
        raise self._unknown_name_error(
            f"{prefix}.{name}", name, {f"{prefix}.{members}": members for members in members}
        )

    def _check_call(self, node: ast.Call) -> Iterator[str]:
        function = node.func
        self._check_keywords(function, {keyword.arg for keyword in node.keywords})
        if isinstance(function, ast.Name):
            if function.id in UNSUPPORTED_HELPERS:
                raise self._error(
                    f"'{function.id}' of weaver-core is not evaluated here: "
                    + UNSUPPORTED_HELPERS[function.id]
                )
            if function.id != "len" and function.id not in HELPERS:
                choices = {name: name for name in HELPERS}
                for prefix in ("np", "ak"):
                    choices |= {f"{prefix}.{name}": name for name in VOCABULARY[MODULES[prefix]]}
                raise self._unknown_name_error(function.id, function.id, choices)
        elif not isinstance(function, ast.Attribute):
            raise self._error("only a named function can be called")
        elif _member(function) is not None:
            yield from self._check(function)
            self._check_positional(function, len(node.args))
        elif function.attr in METHODS | VECTOR_METHODS:
            yield from self._check(function.value)
            # the array itself is numpy's first argument
            most_arguments = (
                _most_positional(function.attr) - 1 if hasattr(np, function.attr) else 1
            )
            if function.attr in METHODS and len(node.args) > most_arguments:
                raise self._error(
                    f"the method '.{function.attr}()' takes at most {most_arguments} arguments"
                    " here; give others by keyword"
                )
        elif function.attr in AWKWARD_0_METHODS:
            raise self._error(
                f"the method '.{function.attr}()' is of awkward 0, which no longer exists; write"
                f" {AWKWARD_0_METHODS[function.attr]}"
            )
        else:
            methods = ", ".join(sorted(METHODS | VECTOR_METHODS))
            raise self._error(f"method '.{function.attr}()' is not allowed; there are: {methods}")

        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            yield from self._check(argument)

    def _check_keywords(self, function: ast.expr, names: set[str | None]) -> None:
        """Reject keywords that would let a call write to a column or leave numbers undefined."""
        forbidden_words: set[str | None] = {None, "out"}
        member = _member(function) if isinstance(function, ast.Attribute) else None
        name = getattr(function, "attr", "")
        if isinstance(function, ast.Attribute) and (
            member is None or MODULES[member[0]] == "numpy"
        ):
            forbidden_words.add("where")
        if name.endswith("_like"):
            forbidden_words.add("shape")
        if name == "nan_to_num":
            forbidden_words.add("copy")
        for word in names & forbidden_words:
            raise self._error(f"{f'{word}=' if word else '**'} is not allowed in a call")

    def _check_positional(self, node: ast.Attribute, count: int) -> None:
        """Reject a positional argument that numpy would take as `out`, the array to write to."""
        prefix, name = _member(node) or ("", "")
        if MODULES[prefix] != "numpy":
            return
        most_arguments = _most_positional(name)
        if count > most_arguments:
            raise self._error(
                f"np.{name} takes at most {most_arguments} arguments here; give others by keyword"
            )

    def _unknown_name_error(self, name: str, bare: str, choices: Mapping[str, str]) -> InputError:
        """Return the error for an unknown name, with the nearest `choices` (full -> bare name)."""
        near = nearest(bare, choices.values())
        similar = [full for full, choice in choices.items() if choice in near]
        similar.sort(key=lambda full: (near.index(choices[full]), full))
        hint = f"; did you mean {' or '.join(map(repr, similar[:3]))}?" if similar else ""
        return self._error(f"unknown function or constant '{name}'{hint}")

    # --------------------------------------------------------------------------------- evaluation

    def _value(self, node: ast.AST, columns: Mapping[str, Any]) -> Any:
        """Evaluate `node`; the method `_value_x` evaluates nodes of type X."""
        return getattr(self, f"_value_{type(node).__name__.lower()}")(node, columns)

    def _value_constant(self, node: ast.Constant, columns: Mapping[str, Any]) -> Any:
        return node.value

    def _value_name(self, node: ast.Name, columns: Mapping[str, Any]) -> Any:
        if node.id not in columns:
            hint = "".join(f"; did you mean '{name}'?" for name in nearest(node.id, columns, 1))
            raise self._error(f"there is no column '{node.id}'{hint}")
        return columns[node.id]

    def _value_binop(self, node: ast.BinOp, columns: Mapping[str, Any]) -> Any:
        left = self._value(node.left, columns)
        right = self._value(node.right, columns)
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            raise self._error("operators work on columns and numbers, not on text or lists")
        can_grow = isinstance(node.op, ast.Pow | ast.LShift)
        are_integers = isinstance(left, int) and isinstance(right, int)
        if can_grow and are_integers and abs(right) > MAX_EXPONENT:
            raise self._error(f"the exponent {right} is too large for whole numbers; write a float")
        if can_grow and are_integers and left.bit_length() * max(abs(right), 1) > MOST_BITS:
            raise self._error("it makes too large a whole number; write a float")
        self._check_size(sizes.of_broadcast((left, right)), "it")
        return BINARY[type(node.op)].function(left, right)

    def _value_unaryop(self, node: ast.UnaryOp, columns: Mapping[str, Any]) -> Any:
        return UNARY[type(node.op)].function(self._value(node.operand, columns))

    def _value_compare(self, node: ast.Compare, columns: Mapping[str, Any]) -> Any:
        left = self._value(node.left, columns)
        right = self._value(node.comparators[0], columns)
        self._check_size(sizes.of_broadcast((left, right)), "it")
        return COMPARE[type(node.ops[0])].function(left, right)

    def _value_subscript(self, node: ast.Subscript, columns: Mapping[str, Any]) -> Any:
        value = self._value(node.value, columns)
        index = self._value(node.slice, columns)
        self._check_size(sizes.of_index(value, index), "it")
        return value[index]

    def _value_slice(self, node: ast.Slice, columns: Mapping[str, Any]) -> slice:
        parts = (node.lower, node.upper, node.step)
        return slice(*(None if part is None else self._value(part, columns) for part in parts))

    def _value_tuple(self, node: ast.Tuple, columns: Mapping[str, Any]) -> tuple:
        return tuple(self._value(item, columns) for item in node.elts)

    def _value_list(self, node: ast.List, columns: Mapping[str, Any]) -> list:
        return [self._value(item, columns) for item in node.elts]

    def _value_dict(self, node: ast.Dict, columns: Mapping[str, Any]) -> dict:
        keys = [self._value(key, columns) for key in node.keys if key is not None]
        values = [self._value(value, columns) for value in node.values]
        return dict(zip(keys, values, strict=True))

    def _value_attribute(self, node: ast.Attribute, columns: Mapping[str, Any]) -> Any:
        member = _member(node)
        if member is not None:
            return _function(*member)
        owner = self._value(node.value, columns)
        if isinstance(owner, np.ndarray | np.generic) and node.attr in ATTRIBUTES:
            return getattr(owner, node.attr)
        is_momentum = type(owner).__module__.startswith("vector.")
        if node.attr in getattr(owner, "fields", ()) and not is_momentum:
            return owner[node.attr]
        if is_momentum and node.attr in COMPONENTS:
            return getattr(owner, node.attr)
        if node.attr in AWKWARD_0_METHODS:
            raise self._error(
                f"'.{node.attr}' is of awkward 0, which no longer exists; write"
                f" {AWKWARD_0_METHODS[node.attr]}"
            )
        text = ast.unparse(node.value)
        fields = getattr(owner, "fields", ())
        if fields:
            raise self._error(f"'{text}': {unknown('field', node.attr, fields)}")
        if node.attr in COMPONENTS:
            return getattr(self._momentum(node, owner), node.attr)
        raise self._error(
            f"'{text}' has no field '.{node.attr}'; only records and four-momenta have fields"
        )

    def _momentum(self, node: ast.Attribute, owner: Any) -> Any:
        """Return `owner`, whose component or method `node` takes.

        Raises InputError if it is not a four-momentum.
        """
        if not type(owner).__module__.startswith("vector."):
            raise self._error(
                f"'.{node.attr}' is that of a four-momentum; make one with _p4_from_ptetaphim(pt,"
                " eta, phi, mass)"
            )
        return owner

    def _value_call(self, node: ast.Call, columns: Mapping[str, Any]) -> Any:
        arguments = [self._value(argument, columns) for argument in node.args]
        keywords = {str(word.arg): self._value(word.value, columns) for word in node.keywords}

        callee = node.func
        operands = arguments
        if isinstance(callee, ast.Name):
            namespace, name = "helper", callee.id
            function = len if name == "len" else HELPERS[name]
        elif (member := _member(callee)) is not None:
            namespace, name = MODULES[member[0]], member[1]
            function = _function(*member)
        else:
            assert isinstance(callee, ast.Attribute)  # checked before
            namespace, name = "method", callee.attr
            owner = self._value(callee.value, columns)
            function = self._method(callee, owner)
            operands = [owner, *arguments]
        self._check_size(sizes.of_call(namespace, name, operands, keywords), name)
        self._check_whole([*arguments, *keywords.values()])
        return function(*arguments, **keywords)

    def _check_whole(self, values: Iterable[Any]) -> None:
        """Reject arguments that hold integers beyond 64 bits, or the type object.

        numpy would put them into an array of Python objects, whose powers have no bounded size.
        """
        for value in values:
            if isinstance(value, list | tuple):
                self._check_whole(value)
            elif isinstance(value, int) and value.bit_length() > 64:
                raise self._error("a function gets too large a whole number; write a float")
            elif value is object or (isinstance(value, str) and value in ("O", "object")):
                raise self._error("arrays of Python's own objects are not allowed")

    def _check_size(self, size: float, what: str) -> None:
        """Reject an operation (`what`) whose result would have more than MOST_ELEMENTS elements."""
        if size > MOST_ELEMENTS:
            raise self._error(f"{what} would make {size:,.0f} numbers; at most {MOST_ELEMENTS:,}")

    def _method(self, node: ast.Attribute, owner: Any) -> Callable:
        """Look up the method that `node` names on its owner's value."""
        if node.attr in VECTOR_METHODS:
            return getattr(self._momentum(node, owner), node.attr)
        if not isinstance(owner, np.ndarray | np.generic):
            instead = [
                f"{prefix}.{node.attr}(...)"
                for prefix in ("ak", "np")
                if node.attr in VOCABULARY[MODULES[prefix]]
            ]
            if node.attr == "astype":
                instead = ['ak.values_astype(x, "int32")']
            advice = f"write {' or '.join(instead)}" if instead else "arrays of np.stack have it"
            raise self._error(f"a column has no method '{node.attr}'; {advice}")
        return getattr(owner, node.attr)


def _member(node: ast.AST) -> tuple[str, str] | None:
    """Split `np.linalg.norm` into the module's prefix and the name in it: ("np", "linalg.norm").

    None for a node that is not a member of a module.
    """
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    if names and isinstance(node, ast.Name) and node.id in MODULES:
        return node.id, ".".join(names)
    return None


def _function(prefix: str, name: str) -> Any:
    """Look up a function, constant or type of a module."""
    owner: Any = _module(MODULES[prefix])
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


@functools.cache
def _most_positional(name: str) -> int:
    """Return the number of positional arguments that a function of numpy takes before `out`.

    `out` would let an expression write to a column.
    """
    if name == "nan_to_num":  # its second argument, copy, would let it write to its column
        return 1
    function = _function("np", name)
    if isinstance(function, np.ufunc):
        return function.nin
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions in C have no signature
        return 3 if name != "dot" else 2
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters.values()):
        return MOST_ARGUMENTS
    for last in ("out", "shape") if name.endswith("_like") else ("out",):
        if last in parameters:
            return list(parameters).index(last)
    return len(parameters)


@functools.cache
def _module(name: str) -> ModuleType:
    # awkward takes a second to import, and only some expressions use it
    return math if name == "math" else np if name == "numpy" else importlib.import_module(name)


# Operators that call a ufunc on arrays, whatever the types of the operands.
_UFUNC_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.BitXor)


def _is_elementwise(node: ast.expr) -> bool:
    match node:
        case ast.Name():
            return True
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float)
        case ast.BinOp(left=left, op=op, right=right):
            return (
                isinstance(op, _UFUNC_OPERATORS)
                and _is_elementwise(left)
                and _is_elementwise(right)
            )
        case ast.UnaryOp(operand=operand):
            return _is_elementwise(operand)
        case ast.Compare(left=left, comparators=[right]):
            return _is_elementwise(left) and _is_elementwise(right)
        case ast.Attribute(value=ast.Name(id="np" | "numpy" | "math"), attr=name):
            return isinstance(getattr(math, name, None), float)  # pi and the like, the same in both
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id=prefix), attr=name), args=arguments, keywords=[]
        ):
            module = MODULES.get(prefix)
            if module == "awkward":
                is_fill = name in ("ones_like", "zeros_like")
                elementwise = is_fill and isinstance(arguments[0], ast.Name)
            else:
                is_ufunc = module == "numpy" and isinstance(getattr(np, name, None), np.ufunc)
                elementwise = is_ufunc and all(map(_is_elementwise, arguments))
            return elementwise
    return False
