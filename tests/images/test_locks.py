"""The images' locks follow from requirements.lock."""

from __future__ import annotations

import re
import tomllib

import pytest

from common.errors import InputError
from images import locks
from tests.images.dockerfile import IMAGES, NAMES

TORCH = ("torch-cuda.lock", "torch-cpu.lock")


@pytest.fixture(scope="module")
def common():
    return locks.read_lock(locks.MAIN)


@pytest.mark.parametrize("image", NAMES)
def test_each_lock_follows_from_the_common_lock(image):
    assert locks.main(["--check"]) == 0
    assert (IMAGES / f"{image}.lock").read_text() == locks.derive(image)


@pytest.mark.parametrize("file", [*(f"{image}.lock" for image in NAMES), "torch-cuda.lock"])
def test_pins_and_hashes_are_the_common_ones(file, common):
    lock = locks.read_lock(IMAGES / file)
    assert lock
    for name, lines in lock.items():
        assert name not in common or lines.split()[0] == common[name].split()[0]
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", lines), (
            f"{name} is not pinned by hashes"
        )


def test_torch_is_the_version_of_the_project():
    extras = tomllib.loads((IMAGES.parent / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (torch_requirement,) = [name for name in extras["train"] if name.startswith("torch==")]
    for file in TORCH:
        assert locks.read_lock(IMAGES / file)["torch"].split()[0].split("+")[0] == torch_requirement


def test_a_lock_includes_all_dependencies_of_a_package(common):
    names = locks.closure(["moto"])
    assert {"moto", "boto3", "botocore", "responses"} <= names
    assert names <= set(common)


def test_a_package_that_is_not_locked_is_named(monkeypatch, tmp_path):
    (tmp_path / "steps.in").write_text("numpy\npip  # every environment has it, no lock does\n")
    monkeypatch.setattr(locks, "HERE", tmp_path)
    with pytest.raises(
        InputError, match=r"images/steps\.in needs pip, which requirements\.lock does not have"
    ):
        locks.derive("steps")


def test_a_stale_lock_is_an_error(monkeypatch, tmp_path, capsys):
    for image in NAMES:
        (tmp_path / f"{image}.in").write_text("numpy\n")
        (tmp_path / f"{image}.lock").write_text("numpy==1.0\n")
    monkeypatch.setattr(locks, "HERE", tmp_path)
    assert locks.main(["--check"]) == 1
    assert "images/weaver.lock is out of date; type: make lock" in capsys.readouterr().err
    assert locks.main([]) == 0
    assert locks.main(["--check"]) == 0
