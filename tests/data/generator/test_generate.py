from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import InterruptedRun
from data import jetntuple
from data.generator import blocks, generate, jet_columns
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def assert_equal(actual: jetntuple.Columns, expected: jetntuple.Columns) -> None:
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values, err_msg=name)


@pytest.fixture
def no_work(monkeypatch):
    """Fail the test if generation starts: invalid input must be refused before."""

    def refuse(*_, **__):
        raise AssertionError("work was started")

    monkeypatch.setattr(generate.workers, "blocks", refuse)


def test_jets_depend_on_the_seed_and_not_on_workers_or_files(columns, tmp_path):
    """The session's file is from two workers; this is from one, in two files, beside a killed run's
    file.
    """
    leftover = tmp_path / ".partial-jets_0007.root"
    leftover.write_bytes(b"half a file")
    jets = 2 * (jetntuple.length(columns) // 4)
    recipe = blocks.Recipe(seed=int(columns["event"][0] // blocks.EVENTS_PER_SEED))
    files = generate.generate(
        tmp_path, jets=jets, recipe=recipe, workers=1, jets_per_file=jets // 2
    )
    assert (
        [path.name for path in files]
        == ["jets_0000.root", "jets_0001.root"]
        == sorted(os.listdir(tmp_path))
    )
    parts = [jetntuple.read(path) for path in files]
    assert [jetntuple.length(part) for part in parts] == [jets // 2] * 2
    assert_equal(jetntuple.concatenate(parts), jetntuple.slice_jets(columns, 0, jets))


def test_a_block_does_not_depend_on_earlier_blocks(block_maker, block, columns):
    """Block 0 after block 3 in one process is block 0 of the file."""
    block_maker.reconstructed(3)
    again = block_maker.reconstructed(0)
    np.testing.assert_array_equal(again.candidates.pt, block.candidates.pt)
    selected_jets = jet_columns.select(again, blocks.jec.load())
    np.testing.assert_array_equal(
        selected_jets.pt.astype(np.float32), columns["jetPt"][: len(selected_jets.pt)]
    )


def test_another_seed_gives_other_jets(block_maker, columns):
    other = blocks.pythia_seed(block_maker.recipe.seed + 1, 0)
    assert other != blocks.pythia_seed(block_maker.recipe.seed, 0)
    assert (columns["event"] // blocks.EVENTS_PER_SEED == block_maker.recipe.seed).all()


def test_an_interrupted_run_leaves_no_file(tmp_path):
    output = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "data.generator.generate",
        "--jets",
        "1000000",
        "--output",
        str(output),
        "--workers",
        "1",
    ]
    small = ["--events-per-block", "5", "--jets-per-file", "5"]
    with subprocess.Popen(command + small, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: any(output.glob(".partial-jets_0001.root")), process=process, seconds=60)
        assert not list(output.glob("[!.]*"))
        (worker,) = generation_processes(process.pid)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert os.listdir(output) == []
    assert not os.path.exists(f"/proc/{worker}")


def generation_processes(parent: int) -> list[int]:
    """The worker processes of a run; multiprocessing's resource tracker is not one."""
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_sigterm_raises_only_inside_the_with_block():
    before = signal.getsignal(signal.SIGTERM)
    with generate.terminated_as_interrupt(), pytest.raises(InterruptedRun):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param(["--jets", "0"], "--jets is 0", id="no jets"),
        pytest.param(["--jets", "many"], "'many' is not a whole number", id="jets not a number"),
        pytest.param(
            ["--seed", "-1"], "--seed is -1; it must be between 0 and", id="negative seed"
        ),
        pytest.param(["--workers", "0"], "--workers is 0", id="no workers"),
        pytest.param(["--pileup", "1e4"], "--pileup is 10000", id="too much pile-up"),
        pytest.param(["--events-per-block", "0"], "--events-per-block is 0", id="empty blocks"),
        pytest.param(["--jets-per-file", "0"], "--jets-per-file is 0", id="empty files"),
        pytest.param(["--pile-up", "3"], "did you mean --pileup?", id="unknown flag"),
    ],
)
@pytest.mark.usefixtures("no_work")
def test_invalid_numbers_are_refused_with_exit_code_2(tmp_path, capsys, flags, message):
    assert exit_code(["--jets", "10", "--output", str(tmp_path / "out"), *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert not (tmp_path / "out").exists()


def exit_code(arguments: list[str]) -> int:
    try:
        return generate.main(arguments)
    except SystemExit as exit_error:  # argparse's own errors
        return exit_error.code


@pytest.mark.usefixtures("no_work")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert exit_code(["--jets", "10", "--output", str(tmp_path / "file" / "out")]) == 2
    message = capsys.readouterr().err
    assert "--output" in message
    assert "cannot write" in message
    assert f"{tmp_path}/file" in message


@pytest.mark.usefixtures("no_work")
def test_a_folder_with_root_files_is_refused(tmp_path, capsys):
    (tmp_path / "mine.root").write_bytes(b"root")
    assert exit_code(["--jets", "10", "--output", str(tmp_path)]) == 2
    assert "already holds ROOT files (mine.root)" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["mine.root"]


@pytest.mark.usefixtures("no_work")
def test_missing_packages_are_reported_with_the_command_to_install(tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pythia8mc" else real(name)
    )
    assert exit_code(["--jets", "10", "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "Pythia 8 not found" in errors
    assert "pip install '.[generate]'" in errors


def test_help_is_quick_and_has_an_example():
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "data.generate", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python -m data.generate --jets 100000" in process.stdout
    assert time.monotonic() - start < 5
