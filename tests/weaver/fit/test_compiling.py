"""torch.compile whose disk is full, or that a signal ends: the trial goes on later."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from common.errors import FULL_DISK
from tests.disks import small_disk
from tests.waiting import wait_until
from tests.weaver.trials import command, finish, history, start
from weaver.fit import compiler_cache
from weaver.train import main

pytestmark = pytest.mark.faults


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_of_compiler():
    raise RuntimeError("C++ compile error\n\n/tmp/cc.s: fatal error: No space left on device")


def signal_to_compiler():
    """Ctrl-C goes to the compilers as well, perhaps before it reaches the training."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        raise RuntimeError("C++ compile error\n\ng++: fatal error: Terminated signal")


def signal_in_long_compilation():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
    raise AssertionError("it was not interrupted")


@pytest.fixture
def compiler(monkeypatch):
    """The compiler `of_test`, which changes nothing; its next calls are to what the list holds."""
    torch._dynamo.reset()
    calls = []

    def compile_graph(graph, inputs):
        if calls:
            calls.pop()()
        return graph.forward

    registry = torch._dynamo.backends.registry
    monkeypatch.setitem(registry._BACKENDS, "of_test", None)
    monkeypatch.setitem(registry._COMPILER_FNS, "of_test", compile_graph)
    yield calls
    torch._dynamo.reset()


def words(prepared, folder, backend="of_test"):
    of_compiler = ["--compile", f"--compiler-option=backend:{backend}"]
    return [*command(prepared, folder, num_epochs=1), *of_compiler]


@pytest.mark.parametrize("fault", [full_disk, full_disk_of_compiler])
def test_a_full_disk_under_the_compiler_may_pass(fault, compiler, prepared, tmp_path, capsys):
    compiler.append(fault)
    assert main(words(prepared, tmp_path)) == FULL_DISK
    assert "disk is full" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "failed").exists()
    assert main(words(prepared, tmp_path)) == 0
    assert len(history(tmp_path)) == 1


def test_a_full_disk_under_the_compiler_of_the_rate_finder(compiler, prepared, tmp_path):
    compiler.append(full_disk)
    assert main([*words(prepared, tmp_path), "--lr-finder=1e-6,1e-1,12"]) == FULL_DISK


@pytest.mark.parametrize("fault", [signal_to_compiler, signal_in_long_compilation])
def test_a_signal_ends_a_compilation(fault, compiler, prepared, tmp_path, capsys):
    compiler.append(fault)
    assert main(words(prepared, tmp_path)) == 143
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped: ")
    assert not (tmp_path / "failed").exists()
    assert main(words(prepared, tmp_path)) == 0


# ---------------------------------------------------------------------------- the real compiler


@pytest.fixture
def no_cache(monkeypatch):
    """Unset the variables that torch sets by itself in a process that compiles, such as this.

    What the CPU can do is not tried, which takes as long as the rest.
    """
    monkeypatch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
    for name in compiler_cache.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def disk(tmp_path):
    """A disk for temporary files, smaller than what a compilation writes."""
    with small_disk(tmp_path / "disk", "size=64k") as folder:
        yield folder


def left_on(disk: Path) -> list[str]:
    return [str(path.relative_to(disk)) for path in disk.rglob("*")]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_a_compilation_that_fills_the_disk(place, no_cache, disk, prepared, tmp_path):
    process = start(words(prepared, tmp_path / "trial", "inductor"), **{place: str(disk)})
    lines = finish(process, 150).splitlines()
    assert process.returncode == FULL_DISK, lines
    assert lines[-1].startswith("error: ")
    assert f" in {disk}" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    if place == "TMPDIR":
        assert "TMPDIR" in lines[-1]
        assert left_on(disk) == []
    # the same training goes on, here without a compiler
    assert main(words(prepared, tmp_path / "trial", "eager")) == 0
    assert len(history(tmp_path / "trial")) == 1


def compiles(disk: Path) -> bool:
    return any(disk.glob(f"{compiler_cache.COMPILED}*/{compiler_cache.TEMPORARY}/*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_compilation_that_is_ended(number, no_cache, prepared, tmp_path):
    """The signal goes to all processes of the trial, as on a cluster or from a terminal."""
    disk = tmp_path / "disk"
    disk.mkdir()
    process = start(words(prepared, tmp_path / "trial", "inductor"), session=True, TMPDIR=str(disk))
    wait_until(lambda: compiles(disk), process=process, seconds=100)
    os.killpg(process.pid, number)
    text = finish(process, 60)
    if number == signal.SIGKILL:
        assert {path.name.rpartition("-")[0] for path in disk.iterdir()} == {"jec-compiled"}
    else:
        assert process.returncode == 128 + number, text
        assert "Traceback" not in text
        assert left_on(disk) == []
    assert not (tmp_path / "trial" / "failed").exists()

    # the next one with a compiler removes what was left, and goes on
    process = start(words(prepared, tmp_path / "trial", "eager"), TMPDIR=str(disk))
    text = finish(process)
    assert process.returncode == 0, text
    assert left_on(disk) == []
    assert len(history(tmp_path / "trial")) == 1
