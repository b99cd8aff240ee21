"""A few hundred generated jets, made once and shared by the tests."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

from data import jetntuple
from data.generator import blocks, generate

SEED, JETS = 7, 500  # test_generate.py makes the same again in other ways


@pytest.fixture(scope="session")
def generated(tmp_path_factory, worker_id) -> Path:
    """A file of JETS jets with SEED, made by two workers, shared by all test processes."""
    session = tmp_path_factory.getbasetemp()
    folder = (session if worker_id == "master" else session.parent) / "generated"
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_name("generated.unfinished")
            generate.generate(unfinished, jets=JETS, recipe=blocks.Recipe(seed=SEED), workers=2)
            unfinished.rename(folder)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="session")
def columns(generated) -> jetntuple.Columns:
    return jetntuple.read(generated)


@pytest.fixture(scope="session")
def block_maker() -> blocks.BlockMaker:
    return blocks.BlockMaker(blocks.Recipe(seed=SEED))


@pytest.fixture(scope="session")
def block(block_maker):
    """One reconstructed block of events."""
    return block_maker.reconstructed(0)
