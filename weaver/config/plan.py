"""What one decoding of files takes: columns to read, what to compute from them, what to keep."""

from __future__ import annotations

import ast
import dataclasses

from weaver.config.expressions import Expression

Functions = tuple[tuple[str, Expression], ...]
"""(name, expression) of computed columns, each after those it depends on."""


@dataclasses.dataclass(frozen=True)
class OrderKey:
    """One key of an `order_by`: the particles of a jet sorted by the values of an expression."""

    expression: Expression
    """Without the minus that asks for falling order."""
    falling: bool

    @classmethod
    def parse(cls, text: str, where: str) -> OrderKey:
        """Read one entry of `order_by`.

        Raises InputError for text that is no expression.
        """
        expression = Expression(text, where)
        tree = expression.tree
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return cls(Expression(ast.unparse(tree.operand), where), falling=True)
        return cls(expression, falling=False)

    @property
    def name(self) -> str:
        """The column that holds the values of the expression."""
        return f"_order_by_({self.expression.canonical()})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Columns to read in one decoding, what to compute from them in order, and what to keep."""

    branches: dict[str, str]
    """Column name -> branch name in the file (they differ by `branch_magic` only)."""
    selection: Expression | None
    selection_functions: Functions
    """New variables that the selection needs."""
    functions: Functions
    """All other new variables, labels and the weight, computed for selected jets."""
    kept: frozenset[str]
    """Columns that are still needed once the selection is applied."""
    labels: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    weight: str | None = None
    reweight: tuple[str, ...] = ()
    """Columns that the histograms and the weights of a reweighting are made of."""
    longest: int | None = None
    """The greatest length of an input; particles behind it are in no input.

    None where they count all the same (`order_by`).
    """

    def is_operand(self, name: str) -> bool:
        """Whether the selection or a new variable takes a column."""
        expressions = [function for _, function in (*self.selection_functions, *self.functions)]
        if self.selection is not None:
            expressions.append(self.selection)
        return any(name in expression.names for expression in expressions)
