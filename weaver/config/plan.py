"""Plans for decoding files: columns to read, what to compute from them, columns to keep."""

from __future__ import annotations

import ast
import dataclasses

from weaver.config.expressions import Expression

Functions = tuple[tuple[str, Expression], ...]
"""(name, expression) of computed columns, each after those it depends on."""


@dataclasses.dataclass(frozen=True)
class OrderKey:
    """One key of an `order_by`: sorts the particles of a jet by the values of an expression."""

    expression: Expression
    """Without the leading minus, which means falling order."""
    falling: bool

    @classmethod
    def parse(cls, text: str, where: str) -> OrderKey:
        """Parse one entry of `order_by`; `where` names it in errors.

        Raises InputError for text that is not an expression.
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
    """What to read, compute (in order) and keep when files are decoded."""

    branches: dict[str, str]
    """Column name -> branch name in the file (they differ by `branch_magic` only)."""
    selection: Expression | None
    selection_functions: Functions
    """New variables that the selection needs."""
    functions: Functions
    """All other new variables, labels and the weight, computed for selected jets."""
    columns_after_selection: frozenset[str]
    """Columns that are still needed after the selection."""
    labels: tuple[str, ...] = ()
    observers: tuple[str, ...] = ()
    weight: str | None = None
    reweight: tuple[str, ...] = ()
    """Columns from which the histograms and weights of a reweighting are computed."""
    longest: int | None = None
    """The greatest length of an input, in particles; inputs contain no particle beyond it.

    None with `order_by`, where any particle may come to the front.
    """

    def is_operand(self, name: str) -> bool:
        """Return whether the selection or a new variable uses a column."""
        expressions = [function for _, function in (*self.selection_functions, *self.functions)]
        if self.selection is not None:
            expressions.append(self.selection)
        return any(name in expression.names for expression in expressions)
