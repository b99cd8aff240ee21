"""The user's file for the model card: names and values, or text."""

from __future__ import annotations

import pytest

from common import card
from common.config import NONE
from common.errors import InputError


@pytest.mark.parametrize(
    ("name", "text", "facts", "notes"),
    [
        (
            "card.yaml",
            "era: 2018\nJEC version: V5\nsamples: [a, b]\n",
            {"era": "2018", "JEC version": "V5", "samples": "a, b"},
            "",
        ),
        ("card.json", '{"campaign": "UL"}', {"campaign": "UL"}, ""),
        ("card.md", "# AK4 of 2018\n", {}, "# AK4 of 2018\n"),
    ],
)
def test_a_run_stores_a_copy_of_the_file(tmp_path, name, text, facts, notes):
    path = tmp_path / name
    path.write_text(text)
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "card.yml").write_text("era: another\n")  # of an earlier export
    assert card.read(str(path)) == (facts, notes)
    card.copy_to(str(path), str(folder))
    assert card.read_copy(str(folder)) == (facts, notes)
    card.copy_to(NONE, str(folder))
    assert card.read_copy(str(folder)) == (facts, notes)


def test_a_run_without_the_file_has_no_facts(tmp_path):
    assert card.read_copy(str(tmp_path)) == ({}, "")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("card.txt", "x", "ends in .yaml, .yml, .json, .md"),
        (
            "card.yaml",
            "- a\n- b\n",
            "expected names with values, such as 'era: 2018', found a list",
        ),
        ("card.yaml", "a: {b: 1}\n", "'a' is nested"),
        ("card.yaml", "a: [\n", "neither YAML nor JSON"),
        ("card.yaml", "a: 1\nb: 2001-99-99\n", "line 2: a value cannot be read"),
        ("card.yaml", 'a: 1\nb: "\\UFFFFFFFF"\n', "line 2: a value cannot be read"),
        ("card.yaml", None, "there is no file .*card.yaml"),
    ],
)
def test_an_invalid_file_is_refused(tmp_path, name, text, words):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        card.read(str(path))
