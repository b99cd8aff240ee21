"""The sentence for a file that does not exist says what does."""

import pytest

from common import card
from common.config_file import Flags
from common.errors import InputError
from common.storage import nearby, read_bytes


@pytest.fixture
def folder(tmp_path):
    for name in ("jets.yaml", "other.txt"):
        (tmp_path / name).touch()
    return tmp_path


def test_the_most_similar_name_is_suggested(folder):
    text = nearby.missing_file(folder / "jet.yaml")
    assert f"{folder}/jet.yaml" in text
    assert "jets.yaml" in text
    assert "other.txt" not in text


def test_without_a_similar_name_the_folder_is_listed(folder):
    text = nearby.missing_file(folder / "xq")
    assert "jets.yaml" in text
    assert "other.txt" in text


def test_a_missing_folder_is_told_from_a_missing_file(folder):
    text = nearby.missing_file(folder / "nothing" / "deeper" / "a.yaml")
    assert f"only {folder} exists" in text


def test_an_empty_folder_and_an_address_have_a_sentence(tmp_path):
    assert f"{tmp_path} has no files" in nearby.missing_file(tmp_path / "a")
    assert "s3://bucket/a.yaml; correct the address" in nearby.missing_file("s3://bucket/a.yaml")


@pytest.mark.parametrize(
    "read", [read_bytes, card.read, lambda path: Flags.read(None, path, "--config")]
)
def test_each_reader_of_files_suggests_the_name(folder, read):
    with pytest.raises(InputError, match=r"jets\.yaml"):
        read(str(folder / "jet.yaml"))
