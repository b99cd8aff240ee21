"""What this process may use of its machine."""

from __future__ import annotations

import pytest

from common import machine


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        pytest.param("0::/\n", {"memory.max": "max\n"}, None, id="v2 without a limit"),
        pytest.param("0::/\n", {"memory.max": "4000\n"}, 4000, id="v2 in a container"),
        pytest.param(
            "0::/kubepods/pod1\n",
            {"kubepods/memory.max": "9000\n", "kubepods/pod1/memory.max": "5000\n"},
            5000,
            id="v2 seen from the host: the least of all above",
        ),
        pytest.param(
            "9:name=systemd:/x\n4:cpu,memory:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "600\n"},
            600,
            id="v1",
        ),
        pytest.param(
            "4:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"},
            None,
            id="v1 without a limit",
        ),
        pytest.param("4:memory:/of/host\n", {}, None, id="no such file"),
    ],
)
def test_the_limit_of_memory(tmp_path, monkeypatch, groups, files, limit):
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    assert machine.memory_limit() == limit


def test_no_linux(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    assert machine.memory_limit() is None
