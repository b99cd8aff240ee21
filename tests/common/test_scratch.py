"""Temporary folders end with their process, also where it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from common import scratch
from common.project import ROOT

PREFIX = "jec-scratch-test-"


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def make_old(path):
    old = time.time() - 3600
    os.utime(path, (old, old))


@pytest.mark.faults
def test_folders_of_killed_commands_are_removed(temporary):
    """Folders of running commands, those without a lock yet, and targets of links stay."""
    for name in ("abandoned", "fresh", "half-removed"):
        folder = temporary / f"{PREFIX}{name}"
        folder.mkdir()
        (folder / "0.root").touch()
    (temporary / f"{PREFIX}abandoned" / scratch.LOCK).touch()
    make_old(temporary / f"{PREFIX}half-removed")
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / scratch.LOCK).touch()
    make_old(elsewhere)
    (temporary / f"{PREFIX}link").symlink_to(elsewhere)
    stay = {f"{PREFIX}fresh", f"{PREFIX}link", "elsewhere"}
    with scratch.folder(PREFIX) as living:
        make_old(living)
        with scratch.folder(PREFIX) as other:
            assert {path.name for path in temporary.iterdir()} == stay | {living.name, other.name}
    assert {path.name for path in temporary.iterdir()} == stay


@pytest.mark.faults
def test_the_folder_of_a_killed_process_is_removed_by_the_next(temporary):
    code = (
        "import time; from common import scratch\n"
        f"with scratch.folder({PREFIX!r}) as folder:\n"
        "    (folder / 'data').write_text('x'); print(folder, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        (path,) = [os.path.realpath(process.stdout.readline().strip())]
        scratch.remove_abandoned(PREFIX)
        assert os.path.exists(path)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    scratch.remove_abandoned(PREFIX)
    assert not os.path.exists(path)
