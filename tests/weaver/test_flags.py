"""Each flag that weaver.train accepts changes the result, as in weaver-core 0.5.3 where both have
it, or a line says why it has no effect.

weaver-core's results of the same commands are in tests/weaver/peer/commands.json (`make parity`).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
import torch

from tests.weaver.peer.commands import STORED, Command, differences, facts, write_files
from tests.weaver.peer.flag_cases import OF_WEAVER_CORE, OWN, REFUSED, Case, Run
from weaver import train
from weaver.feed import dataset, loader
from weaver.fit import options
from weaver.fit.options import WEAVER_ONLY_FLAGS, TrainOptions

QUIET = "--tensorboard-log-dir=none"


class Runs:
    """Runs each command once, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: dict[Command, Run] = {}

    def run(self, command: Command) -> Run:
        if command not in self.results:
            place = self.folder / str(len(self.results))
            place.mkdir()
            write_files(place)
            with pytest.MonkeyPatch.context() as patch:
                self.results[command] = _run(command, place, patch)
        return self.results[command]


def _run(command: Command, place: Path, patch: pytest.MonkeyPatch) -> Run:
    """Run the lines of a command in a folder and record their calls of the watched functions."""
    patch.chdir(place)
    # every command writes the same jets, so all of them could share one cache
    patch.setenv("JEC_CACHE", str(place / "cache"))
    patch.setenv("LOCAL_RANK", "")
    patch.delenv("LOCAL_RANK")
    calls: dict[str, list] = {}

    def watch(where, name: str, key: str, substitute=None) -> None:
        original = getattr(where, name)

        def replacement(*args, **kwargs):
            calls.setdefault(key, []).append(kwargs)
            return (substitute or original)(*args, **kwargs)

        patch.setattr(where, name, replacement)

    watch(loader, "Resident", "Resident")
    watch(torch, "compile", "compile", lambda model, **_: model)
    watch(torch, "use_deterministic_algorithms", "deterministic", lambda *_: None)
    watch(dataset, "local_copy", "local_copy")
    parsed: list[TrainOptions] = []
    patch.setattr(train, "parse", lambda words: parsed.append(options.parse(words)) or parsed[-1])

    messages, stdout = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(stdout):
        own = () if "--tensorboard" in command.words else (QUIET,)
        for words in command.lines(*own):
            code = code or train.main(words)
    if "LOCAL_RANK" in os.environ:
        calls["LOCAL_RANK"] = [{"value": os.environ["LOCAL_RANK"]}]
    return Run(
        folder=place,
        code=code,
        facts=facts(place),
        messages=messages.getvalue(),
        stdout=stdout.getvalue(),
        calls=calls,
        options=parsed[-1] if parsed else None,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("flags"))


@pytest.mark.parametrize("case", [*OF_WEAVER_CORE, *OWN], ids=lambda case: case.name)
def test_each_accepted_flag_changes_the_result_or_warns_of_no_effect(runs, case: Case):
    plain, flagged = runs.run(case.command_without), runs.run(case.command)
    assert (plain.code, flagged.code) == (0, 0), plain.messages + flagged.messages
    if case.says:
        assert flagged.facts == plain.facts
        lines = [line for line in flagged.messages.splitlines() if case.says in line]
        assert any("has no effect: " in line for line in lines)
        return
    look = case.look or (lambda run: run.facts)
    assert look(flagged) != look(plain)


@pytest.mark.parametrize(
    "case", [case for case in OF_WEAVER_CORE if case.is_of_peer], ids=lambda case: case.name
)
def test_the_result_is_that_of_weaver_core(runs, case: Case):
    peer = json.loads(STORED.read_text())[case.name]
    assert differences(runs.run(case.command).facts, peer, case.leave_out) == []


@pytest.mark.parametrize("flag", REFUSED)
def test_unsupported_flags_of_weaver_core_are_refused(flag, capsys):
    words = [f"--{flag}", *(["x"] if WEAVER_ONLY_FLAGS[flag].takes_value else [])]
    with pytest.raises(SystemExit) as exit_error:
        options.parse([*Command().lines()[0], *words])
    assert exit_error.value.code == 2
    assert f"--{flag} of weaver-core is not an option here: " in capsys.readouterr().err


def test_every_flag_has_a_case():
    """The flags come from the parser, so that a new flag without a case fails."""
    flags = set()
    for action in options.parser()._actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        flags.add(next((name.removeprefix("--") for name in names if "_" not in name), "?"))
    cases = {case.flag for case in (*OF_WEAVER_CORE, *OWN)}
    assert flags - {"help"} == cases | set(REFUSED)
