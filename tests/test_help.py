"""`--help` of every command: each flag has a sentence, says what to give, and names its default."""

import argparse
import importlib
import re

import pytest

from common.project import ROOT

PROGRAM = re.compile(r'prog="python (?:-m )?([\w.]+?)(?:\.py)?"')
LEFT_OUT = {"tests", "benchmarks"}
WITHOUT_DEFAULT = (None, argparse.SUPPRESS, "", False, (), {}, [])
"""Defaults that mean: not set."""


def programs():
    """The commands of the project: every module that a parser names as its program."""
    names = set()
    rooms = [file.parent for file in ROOT.glob("*/__init__.py")]
    files = [file for room in rooms if room.name not in LEFT_OUT for file in room.rglob("*.py")]
    for file in [ROOT / "pipeline.py", *files]:
        names |= set(PROGRAM.findall(file.read_text()))
    steps = ("search", "export", "evaluate", "deploy")
    return sorted(names | {f"components.{step}" for step in steps})


PROGRAMS = programs()


def options_of(program, monkeypatch):
    """The options of a command, without --help and --version."""
    parsers = []

    def record(parser, file=None):
        parsers.append(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", record)
    with pytest.raises(SystemExit):
        importlib.import_module(program).main(["--help"])
    (parser,) = parsers
    return [action for action in parser._actions if action.dest not in ("help", "version")]


def test_the_commands_are_all_there():
    assert {"pipeline", "weaver.train", "serving.serve", "data.generate"} <= set(PROGRAMS)
    assert len(PROGRAMS) > 15


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_says_what_it_does_and_what_to_give(program, monkeypatch):
    assert (ROOT / f"{program.replace('.', '/')}.py").exists()
    for action in options_of(program, monkeypatch):
        name = "/".join(action.option_strings) or action.dest
        assert action.help, name
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            continue
        assert action.metavar or action.choices, f"{name} shows its own name for its value"
        is_text = action.default not in WITHOUT_DEFAULT
        if action.option_strings and not action.required and is_text:
            assert "default" in action.help or action.default == 0, name
