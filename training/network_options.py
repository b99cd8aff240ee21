"""Which options a network file takes, read from its text: the steps that check a search space have no torch to import it with."""

from __future__ import annotations

import ast

from common.errors import InputError, unknown
from training.search_space import Parameter
from weaver.options import TRAIN_FLAGS


def option_names(source: str, where: str) -> set[str] | None:
    """The keyword arguments of `get_model(data_config, ...)`; None if it takes any, or is imported from elsewhere.

    Raises InputError for a text that is no Python, or without get_model or get_loss.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise InputError(f"{where}, line {error.lineno}: {error.msg}") from None
    defined = {name for node in tree.body for name in _names(node)}
    for needed in ("get_model", "get_loss"):
        if needed not in defined:
            raise InputError(f"{where} defines no {needed}(data_config, **options); a network file in Weaver's form has it")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "get_model":
            arguments = node.args
            return None if arguments.kwarg else {a.arg for a in [*arguments.args[1:], *arguments.kwonlyargs]}
    return None


def check_options(space: list[Parameter], network_config: str, source: str) -> None:
    """Refuse a search-space parameter that is neither a flag of weaver.train nor an option of the network (InputError)."""
    options = option_names(source, network_config)
    if options is None:
        return
    for parameter in space:
        if parameter.name.replace("_", "-") not in TRAIN_FLAGS and parameter.name.replace("-", "_") not in options:
            known = [*TRAIN_FLAGS, *(name.replace("_", "-") for name in options)]
            raise InputError(f"search space: {unknown('parameter', parameter.name, known)} ({network_config} has no such option)")


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []
