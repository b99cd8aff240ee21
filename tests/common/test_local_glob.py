"""Globs on disk follow the rules of Python's glob."""

import os

import pytest

from common import storage


def names(pattern):
    return [storage.name(entry.uri) for entry in storage.glob(str(pattern))]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / 'run [1]\' "x"'
    place.mkdir()
    for name in ("a.root", "b [2].root", 'it\'s, "c".root', ".hidden.root", "d.txt"):
        (place / name).touch()
    return place


def test_names_with_brackets_blanks_and_quotes_match(folder, monkeypatch):
    monkeypatch.chdir(folder)
    present = ["a.root", "b [2].root", 'it\'s, "c".root']
    # what the working directory is called does not matter
    assert names("*.root") == names("./*.root") == present
    assert names(folder.parent / "run*/*.root") == present
    # an existing file is itself, although its name reads as a pattern
    assert names(folder / "b [2].root") == ["b [2].root"]
    assert names(folder.parent / "run [[]1[]]*" / "[ab]*") == ["a.root", "b [2].root"]


def test_links_are_followed_and_broken_links_are_ignored(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "b.root").touch()
    top = tmp_path / "top"
    top.mkdir()
    (top / "a.root").touch()
    (top / "linked").symlink_to(real)
    (top / "dangling.root").symlink_to("/nowhere/x.root")
    (top / "itself.root").symlink_to("itself.root")
    (top / "loop").symlink_to(top)
    assert names(top / "*.root") == ["a.root"]
    assert names(top / "linked/*.root") == ["b.root"]
    assert names(top / "l*d/*.root") == ["b.root"]
    assert names(top) == ["a.root", "b.root"]


def test_only_folders_that_match_are_listed(tmp_path, monkeypatch):
    for name in ("wanted", "other", "wanted/deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "wanted/a.root").touch()
    folders = []
    scandir, listdir = os.scandir, os.listdir
    monkeypatch.setattr(os, "scandir", lambda path: folders.append(str(path)) or scandir(path))
    monkeypatch.setattr(os, "listdir", lambda path: folders.append(str(path)) or listdir(path))
    assert names(tmp_path / "wanted/*.root") == ["a.root"]
    assert {os.path.abspath(path) for path in folders} == {str(tmp_path / "wanted")}


def test_a_home_folder_with_brackets_is_no_pattern(tmp_path, monkeypatch):
    home = tmp_path / "[me]"
    home.mkdir()
    (home / "a.root").touch()
    monkeypatch.setenv("HOME", str(home))
    assert names("~/*.root") == ["a.root"]
