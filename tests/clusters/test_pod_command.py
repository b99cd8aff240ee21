"""The shell line of a pod, run by a real dash: alone, and as Katib's webhook wraps it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusters.pod_command import program_of, shell_command
from tests.clusters.katib_wrap import COMPLETED, EARLY_STOPPED, expand_references, wrap_command
from training.search_space import FORBIDDEN

PROGRAM = """
import json, os, signal, sys, time
folder, behaviour, *rest = sys.argv[1:]
def write(name, value):
    with open(os.path.join(folder, "new"), "w") as file:
        json.dump(value, file)
    os.replace(os.path.join(folder, "new"), os.path.join(folder, name))
terms = []
if behaviour == "checkpoint":
    signal.signal(signal.SIGTERM, lambda number, frame: terms.append(number))
write("program.json", {"args": rest, "pid": os.getpid(), "parent": os.getppid()})
if behaviour.isdigit():
    sys.exit(int(behaviour))
if behaviour == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
end = time.monotonic() + 20
while not terms and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
write("terms.json", terms)
sys.exit(143)
"""
HOSTILE = [
    "(0.16, 0.5, 0.84)",
    "two words",
    "a&b;c|d>e",
    "$HOME",
    "$(id)",
    "$(HOME)",
    "$$ `id` $",
    'with "double" quotes',
    "a 'single' quote",
    "back\\slash\nand a new line",
    "*",
    "",
]
ENV = {"PATH": os.environ["PATH"], "HOME": "/root"}


def container(folder: Path, *words: str) -> dict:
    return shell_command([sys.executable, "-c", PROGRAM, str(folder), *words])


def command_of(folder: Path, wrap: str, *words: str) -> list[str]:
    """What the kubelet starts: as it is, wrapped, or wrapped with early stopping. By dash."""
    fields = container(folder, *words)
    command = [*fields["command"], *fields["args"]]
    if wrap != "alone":
        command = wrap_command(fields, str(folder), early_stopping=wrap == "early stopping")
    command = expand_references(command, ENV)
    assert command[:2] == ["sh", "-c"]
    return [shutil.which("dash") or "sh", *command[1:]]


def start_shell(folder: Path, wrap: str, *words: str) -> tuple[subprocess.Popen, dict]:
    """The shell, and what its program has written once it runs."""
    shell = subprocess.Popen(command_of(folder, wrap, *words), env=ENV)
    end = time.monotonic() + 20
    while not (folder / "program.json").exists():
        assert time.monotonic() < end, "the program did not start"
        time.sleep(0.01)
    return shell, json.loads((folder / "program.json").read_text())


@pytest.fixture(params=["alone", "wrapped", "early stopping"])
def wrap(request: pytest.FixtureRequest) -> str:
    return request.param


def test_hostile_values_reach_the_program_unchanged(tmp_path, wrap):
    subprocess.run(command_of(tmp_path, wrap, "0", *HOSTILE), env=ENV, check=True, timeout=30)
    assert json.loads((tmp_path / "program.json").read_text())["args"] == HOSTILE


@pytest.mark.parametrize("value", [value for value in HOSTILE if not FORBIDDEN.search(value)])
def test_a_value_that_katib_inserts_reaches_the_program_unchanged(tmp_path, wrap, value):
    """Those that the search space takes."""
    command = command_of(tmp_path, wrap, "0", "--network-option=a:${trialParameters.a}")
    command = [word.replace("${trialParameters.a}", value) for word in command]
    subprocess.run(command, env=ENV, check=True, timeout=30)
    args = json.loads((tmp_path / "program.json").read_text())["args"]
    assert args == [f"--network-option=a:{value}"]


def test_the_local_backend_recovers_the_program_from_the_shell_line(tmp_path):
    words = ["python", "-m", "weaver.train", *HOSTILE, "--lr=${trialParameters.lr}"]
    assert program_of(shell_command(words)) == words
    assert program_of({"command": ["python"], "args": ["-c", "1"]}) == ["python", "-c", "1"]


@pytest.mark.parametrize(("behaviour", "code"), [("0", 0), ("2", 2), ("killed", 137)])
def test_the_shell_ends_with_the_programs_exit_code(tmp_path, wrap, behaviour, code):
    shell, _ = start_shell(tmp_path, wrap, behaviour)
    # With early stopping Katib's own line ends with 1 where the program failed.
    expected = min(code, 1) if wrap == "early stopping" else code
    assert shell.wait(30) == expected
    marks = [mark.read_text().strip() for mark in tmp_path.glob("*.pid")]
    completed = [COMPLETED] if wrap != "alone" and code == 0 else []
    assert marks == completed


@pytest.mark.parametrize("behaviour", ["checkpoint", "wait"])
def test_sigterm_reaches_the_program_once_and_the_shell_waits_for_it(tmp_path, wrap, behaviour):
    """As the kubelet stops a container. The trial is not marked as completed."""
    shell, _ = start_shell(tmp_path, wrap, behaviour)
    shell.send_signal(signal.SIGTERM)
    code = shell.wait(30)
    assert code == (1 if wrap == "early stopping" else 143)
    if behaviour == "checkpoint":
        assert json.loads((tmp_path / "terms.json").read_text()) == [signal.SIGTERM]
    assert not list(tmp_path.glob("*.pid"))


def test_katibs_collector_finds_one_child_and_its_trial_completes(tmp_path):
    """As the collector stops a trial early: it writes its mark, then ends the shell's only child.

    From katib v0.19.0 cmd/metricscollector/v1beta1/file-metricscollector/main.go:265-297.
    """
    shell, program = start_shell(tmp_path, "early stopping", "checkpoint")
    children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
    assert children == [str(program["pid"])]
    assert program["parent"] == shell.pid
    mark = tmp_path / f"{shell.pid}.pid"
    mark.write_text(EARLY_STOPPED)
    os.kill(program["pid"], signal.SIGTERM)
    assert shell.wait(30) == 0
    assert json.loads((tmp_path / "terms.json").read_text()) == [signal.SIGTERM]
    assert mark.read_text().strip() == COMPLETED
