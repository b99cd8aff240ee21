"""What kfp kept for a run that was killed goes with the next one."""

import os
import socket
import subprocess
import sys

import pytest

from components.local_run import STALE_SECONDS, remove_workspaces


@pytest.mark.faults
def test_workspaces_of_ended_processes_are_removed(tmp_path):
    ended_process = subprocess.Popen([sys.executable, "-c", ""])
    ended_process.wait()
    host = socket.gethostname()
    names = {
        f"{host}.{ended_process.pid}.ab12": False,
        f"{host}.{os.getpid()}.ab12": True,
        f"other-{host}.{ended_process.pid}.ab12": True,
        "jec-2026-11-29-10-00-00": True,
        "jec-2026-11-20-10-00-00": False,
        "pipeline-77.yaml": False,
    }
    old = os.stat(tmp_path).st_mtime - STALE_SECONDS - 1
    for name in names:
        path = tmp_path / name
        if name.endswith(".yaml"):
            path.write_text("")
        else:
            path.mkdir()
            (path / "output.json").write_text("{}")
        if "11-20" in name or name.endswith(".yaml"):
            os.utime(path, (old, old))
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"{host}.{ended_process.pid}.link").symlink_to(elsewhere)
    remove_workspaces(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name in names if names[name]}
    assert elsewhere.exists()


def test_without_workspaces_there_is_nothing_to_remove(tmp_path):
    remove_workspaces(tmp_path / ".kfp")
    assert not (tmp_path / ".kfp").exists()
