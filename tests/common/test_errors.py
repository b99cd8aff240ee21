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


def test_the_text_of_an_error_holds_no_character_that_steers_a_terminal():
    text = str(errors.InputError("a\x1b[2Jb\rc\x85d\u2028e\nf"))
    assert text == r"a\x1b[2Jb\rc\x85d\u2028e" + "\nf"


def test_an_unknown_name_may_be_any_value_of_a_file():
    for value in (3, -1.5, None, [1], {"a": 1}):
        assert f"'{value}'" in errors.unknown("type", value, ["int", "double"])
    assert r"'in\nt'; did you mean 'int'" in errors.unknown("type", "in\nt", ["int", "double"])
    assert len(errors.unknown("type", "x" * 10**6, ["int", "double"])) < 300
