"""The exception tree at the top of common/errors.py is complete."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from common import errors

ROOT = Path(__file__).resolve().parents[2]


def exception_classes() -> set[str]:
    """Names of all exception classes that the project defines."""
    bases: dict[str, set[str]] = {}
    for room in ROOT.glob("*/__init__.py"):
        if room.parent.name in ("tests", "benchmarks"):
            continue
        for path in room.parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    names = {ast.unparse(base).split(".")[-1] for base in node.bases}
                    bases[node.name] = names
    exceptions: set[str] = {"Exception", "RuntimeError", "ValueError", "KeyError", "OSError"}
    while True:
        more = {name for name, parents in bases.items() if parents & exceptions} - exceptions
        if not more:
            return exceptions & set(bases)
        exceptions |= more


def test_the_tree_names_every_exception_class():
    defined = exception_classes()
    assert {"JecError", "NoCluster", "UnsupportedFile"} <= defined
    assert defined <= set(re.findall(r"\w+", errors.__doc__))
