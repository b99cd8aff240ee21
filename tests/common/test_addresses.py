"""The parser of addresses: one form for each scheme, and errors for whatever looks like another."""

import os

import pytest

from common import storage
from common.errors import InputError
from common.storage import addresses


@pytest.mark.parametrize(
    ("uri", "scheme", "absolute"),
    [
        ("/data/a.root", "", "/data/a.root"),
        ("/data/x:y/a.root", "", "/data/x:y/a.root"),
        ("file:///data/a%20b.root", "", "/data/a b.root"),
        ("file://localhost/data", "", "/data"),
        ("s3://bucket/x/", "s3", "s3://bucket/x"),
        ("root://server//eos/x", "root", "root://server//eos/x"),
        ("root://server/eos/x/", "root", "root://server//eos/x"),
        ("roots://me@server:1094//eos/x", "roots", "roots://me@server:1094//eos/x"),
        ("https://server:8443/a?b=c", "https", "https://server:8443/a?b=c"),
        ("http://server/a", "http", "http://server/a"),
    ],
)
def test_schemes(uri, scheme, absolute):
    assert addresses.scheme_of(uri) == scheme
    assert storage.absolute(uri) == absolute
    assert storage.absolute(absolute) == absolute


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b.root") == str(tmp_path / "b.root")
    # an existing path is a path, whatever it looks like
    os.makedirs("gs:/x")
    assert storage.absolute("gs:/x") == str(tmp_path / "gs:/x")


@pytest.mark.parametrize(
    ("uri", "facts"),
    [
        ("gs:/x", ["'gs:'"]),
        ("gs://bucket/x", ["'gs:'"]),
        ("s3:/x", ["s3://bucket/path"]),
        ("root:/eos/x", ["root://server//path"]),
        ("rot://server//x", ["'rot:'", "did you mean root://"]),
        ("S3://bucket/x", ["'S3:'", "did you mean s3://"]),
        ("htps://server/x", ["did you mean http"]),
    ],
)
@pytest.mark.parametrize(
    "use", [storage.absolute, storage.glob, storage.read_bytes, storage.exists, storage.open_source]
)
def test_an_unknown_scheme_lists_those_that_work(uri, facts, use):
    with pytest.raises(InputError) as caught:
        use(uri)
    for fact in [uri, *facts, "s3://", "root://", "https://", "http://", "file://", "[xrootd]"]:
        assert fact in str(caught.value)


def test_writing_to_an_unknown_scheme_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        storage.write_text("gs:/x/y", "1")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "uri", ["root://server//x?authz=Bearer%20secret", "root://me:secret@server//x"]
)
def test_a_secret_in_an_address_is_refused_and_not_shown(uri):
    with pytest.raises(InputError, match="BEARER_TOKEN") as caught:
        storage.absolute(uri)
    assert "secret" not in str(caught.value)


def test_the_disk_of_another_host_is_refused():
    with pytest.raises(InputError, match="elsewhere"):
        storage.absolute("file://elsewhere/x")
