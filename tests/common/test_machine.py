"""The memory of the machine that this process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from common import machine
from common.project import ROOT
from weaver.fit.allocator import ENVIRONMENT as ALLOCATOR


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
def test_the_memory_limit_comes_from_the_control_groups(
    tmp_path, monkeypatch, groups, files, limit
):
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    assert machine.memory_limit() == limit


def test_without_linux_there_is_no_memory_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    monkeypatch.setattr(machine, "OWN_STATUS", tmp_path / "none")
    assert machine.memory_limit() is None
    assert machine.memory_room() is None


@pytest.mark.parametrize(
    ("groups", "files", "room"),
    [
        pytest.param("0::/\n", {"memory.max": "max\n"}, None, id="v2 without a limit"),
        pytest.param(
            "0::/\n",
            {"memory.max": "4000\n", "memory.stat": "anon 1000\nfile 2500\nshmem 200\n"},
            2800,
            id="v2: the page cache counts as free",
        ),
        pytest.param(
            "0::/pods/one\n",
            {
                "pods/memory.max": "9000\n",
                "pods/memory.stat": "anon 8500\nshmem 0\n",
                "pods/one/memory.max": "5000\n",
                "pods/one/memory.stat": "anon 100\nshmem 0\n",
            },
            500,
            id="v2: other processes fill the group above",
        ),
        pytest.param(
            "4:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "600\n",
                "memory/a/memory.stat": "rss 10\ntotal_rss 150\ntotal_shmem 50\n",
            },
            400,
            id="v1 with the groups below",
        ),
        pytest.param(
            "0::/\n",
            {"memory.max": "400\n", "memory.stat": "anon 500\nshmem 0\n"},
            0,
            id="nothing left",
        ),
    ],
)
def test_free_memory_is_the_limit_of_the_group_minus_its_use(
    tmp_path, monkeypatch, groups, files, room
):
    (tmp_path / "own").write_text(groups)
    for name, text in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(machine, "OWN_STATUS", tmp_path / "none")
    assert machine.memory_room() == room


@pytest.mark.parametrize(
    ("kind", "limit", "room"),
    [("RLIMIT_AS", 9000, 9000 - 2048), ("RLIMIT_DATA", 9000, 9000 - 4096)],
)
def test_free_memory_is_the_limit_of_the_process_minus_its_use(
    tmp_path, monkeypatch, kind, limit, room
):
    (tmp_path / "status").write_text("Name:\tpython\nVmSize:\t    2 kB\nVmData:\t    4 kB\n")
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "none")
    monkeypatch.setattr(machine, "OWN_STATUS", tmp_path / "status")
    unlimited = machine.resource.RLIM_INFINITY
    limits = {getattr(machine.resource, kind): limit}
    monkeypatch.setattr(
        machine.resource,
        "getrlimit",
        lambda kind_of_limit: (limits.get(kind_of_limit, unlimited), unlimited),
    )
    assert machine.memory_room() == room


RETURN_MEMORY = """
import re
from pathlib import Path
from common.machine import return_freed_memory

def anonymous() -> int:
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

arrays = [bytearray(2**20) for _ in range(64)]
for number in range(0, 64, 2):
    arrays[number] = None
kept = anonymous()
return_freed_memory()
print(kept - anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_between_arrays_returns_to_the_system():
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", RETURN_MEMORY],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    # every second of 64 arrays of 1024 kB
    assert int(ended.stdout) > 30 * 1024
