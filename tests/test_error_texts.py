"""Every error that the product raises for bad input names what is wrong and what to do.

Read from the code, so that no error is left out: the text of each `InputError` (or subclass) and
`require` must hold the value, file, flag or field that is refused, and say what to type, what
exists or what is accepted. Texts that another error makes are judged where that one is made.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"tests", "benchmarks", "jec_client"}  # the last is a link to a part of clients/
ROOMS = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in LEFT_OUT]
ERRORS = {"InputError", "DamagedFile", "DamagedCheckpoint", "AuthError", "NoCluster", "require"}
FACT = re.compile(
    r"\{|--[a-z]|\*\.root|it is empty|'|[A-Z]{2,}_[A-Z]|\w+=|\bspec\.|\b(?:pip|apt-get) install\b|`"
)
NEXT_STEP = re.compile(
    r"\b(?:give|write|type|use|see|pass|set|leave|make|put|repeat|start|install|take|takes|took"
    r"|choose|run|renew|get|ask|try|remove|add|move|correct|read|compare|delete|name|names|wants"
    r"|needs?|must|has to|to be|known|unknown|expected|exists?|holds?|there (?:is|are)"
    r"|at (?:least|most)|only|one of|below|above|between|instead|serve|update|flatten|prepare|build"
    r"|raise|replace|export|was not written|has not ended|keeps)\b"
    r"|--[a-z]|\{unknown|\{remedy\}|\{REMEDY\}|\{_folder_contents|\{nearby|cure\}"
)
PASSED_ON = re.compile(r"[\w ]*(\{[^{}]*\})?: (\{[^{}]*\}: )?\{error\}")
"""The text of one of our own errors, behind the name of its file or flag."""
WORDED_BY_CALLERS = {
    "weaver/config/document.py": "{self.source}: {place}",
    "weaver/config/expressions.py": "{place}expression",
    "weaver/onnx/raw_program.py": "{self.where}: '{text}' cannot",
}
"""Functions that put the file's name before the reason that their callers give: file -> text."""

MADE_ELSEWHERE = re.compile(r"(\{where\})?\{[^{}]*(\{[^{}]*\}[^{}]*)*\}( \(in \{where\}\))?")
"""A text that is another error's, or that a function puts together."""


def text_of(node: ast.expr) -> str:
    """The text of an expression, with the code of its placeholders in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    inner = node.value if isinstance(node, ast.FormattedValue) else node
    return "{" + ast.unparse(inner) + "}"


def errors() -> list[tuple[str, str]]:
    """Place and text of every error for bad input that is written where it is raised."""
    names = []
    sources = [ROOT / "pipeline.py", *(ROOT / "clients").rglob("*.py")]
    for room in ROOMS:
        sources += room.rglob("*.py")
    for path in sorted(sources):
        relative = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            arguments = node.args[1:] if name == "require" else node.args
            if name not in ERRORS or not arguments:
                continue
            text = " ".join(text_of(arguments[0]).split())
            if not MADE_ELSEWHERE.fullmatch(text):
                names.append((f"{relative}:{node.lineno}", text))
    return names


def test_every_error_names_a_fact_and_a_next_step():
    texts = errors()
    assert len(texts) > 500
    without_fact = [(place, text) for place, text in texts if not FACT.search(text)]
    assert without_fact == []
    without_step = [
        (place, text)
        for place, text in texts
        if not NEXT_STEP.search(text)
        and not PASSED_ON.fullmatch(text)
        and not text.startswith(WORDED_BY_CALLERS.get(place.split(":")[0], "no file"))
    ]
    assert without_step == []


def test_the_rule_refuses_texts_without_facts():
    assert not FACT.search("bad input")
    assert not NEXT_STEP.search("{path} went wrong")
    assert not NEXT_STEP.search("{path} is not JSON: {error}")
    assert not PASSED_ON.fullmatch("{path} is not JSON: {error}")
