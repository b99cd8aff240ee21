"""The quantity that a network corrects, and whether its jets can have a residual correction.

Both follow from the data config alone; nothing here needs awkward or torch.
"""

from __future__ import annotations

import ast

from common.errors import InputError
from weaver.config.data_config import DataConfig
from weaver.config.expressions import Expression

ETA = "jetEta"
"""The variable that decides whether a jet is in the barrel or the endcap."""


def reference_expression(config: DataConfig) -> Expression:
    """Return the quantity that the network learns to correct.

    It is the denominator of the label log(true / reconstructed). Raises InputError for a label of
    another form.
    """
    name = config.label_names[0]
    expression = config.functions.get(name)
    if len(config.label_names) == 1 and config.label_type == "custom" and expression is not None:
        reference = denominator(expression)
        if reference is not None:
            return reference
    labels = []
    for name in config.label_names:
        if name in config.functions:
            labels.append(f"{name}: {config.functions[name].text}")
    raise InputError(
        f"{config.source}: labels: a model that takes raw jets answers with a corrected pT, for"
        " which the label must be one np.log(<true pT> / <reconstructed pT>); it is"
        f" {'; '.join(labels) or config.label_type}"
    )


def denominator(label: Expression) -> Expression | None:
    """Return the expression b of a label np.log(a / b); None for a label of another form."""
    match label.tree:
        case ast.Call(func=function, args=[ast.BinOp(op=ast.Div(), right=right)]):
            if ast.unparse(function) in ("np.log", "numpy.log"):
                return Expression(ast.unparse(right), label.where)
    return None


def eta_group(config: DataConfig) -> str | None:
    """Return the input group that holds jetEta as one value a jet; None without one."""
    for group, names in config.input_dicts.items():
        if ETA in names and config.preprocess_params[ETA]["length"] is None:
            return group
    return None


def no_residual_because(config: DataConfig) -> str:
    """Return why jets of this data config cannot have a residual correction.

    Empty where they can.
    """
    try:
        reference = reference_expression(config)
    except InputError:
        return "the label is not np.log(<true pT> / <reconstructed pT>)"
    for name in reference.names:
        if name not in config.observer_names:
            return f"{name}, which the label divides by, is not among the observers"
    if eta_group(config) is None:
        return f"{ETA} is not among the network's inputs with one value a jet"
    return ""
