"""A few hundred generated jets, made once and shared by the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from data import jetntuple
from data.generator import blocks, generate

SEED, JETS = 7, 500  # test_generate.py makes the same again in other ways


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> Path:
    """A file of JETS jets with SEED, made by two workers."""
    folder = tmp_path_factory.mktemp("generated")
    (path,) = generate.generate(folder, jets=JETS, recipe=blocks.Recipe(seed=SEED), workers=2)
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
