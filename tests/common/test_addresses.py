"""The parser of addresses: one form for each scheme, and errors for similar forms."""

import importlib
import os

import pytest

from common import storage
from common.cli import local_path
from common.config import RunConfig
from common.errors import InputError, JecError
from common.project import ROOT
from common.storage import addresses
from common.storage.patterns import parse


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
def test_addresses_have_a_scheme_and_an_absolute_form(uri, scheme, absolute):
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
        ("s3:bucket/x", ["s3://bucket/path"]),
        ("s3//bucket/x", ["s3://bucket/path"]),
        ("gs:bucket", ["'gs:'"]),
        ("https:server/x", ["https://server/path"]),
        ("file:x", ["file:///path"]),
    ],
)
@pytest.mark.parametrize(
    "use", [storage.absolute, storage.glob, storage.read_bytes, storage.exists, storage.open_source]
)
def test_an_unknown_scheme_is_refused_with_the_known_ones(uri, facts, use):
    with pytest.raises(InputError) as error:
        use(uri)
    for fact in [uri, *facts, "s3://", "root://", "https://", "http://", "file://", "xrootd>=6"]:
        assert fact in str(error.value)


def test_writing_to_an_unknown_scheme_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for uri in ("gs:/x/y", "s3:bucket/y", "root:server//y", "s3//bucket/y", " s3://bucket/y"):
        with pytest.raises(InputError):
            storage.write_text(uri, "1")
    assert os.listdir(tmp_path) == []


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    home = tmp_path / "home [1]"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    storage.write_text("~/a.root", "1")
    assert storage.exists("~/a.root")
    assert storage.read_text("~/a.root") == "1"
    assert [entry.uri for entry in storage.glob("~/*.root")] == [str(home / "a.root")]
    assert local_path("~/x") == home / "x"
    assert os.listdir(tmp_path) == ["home [1]"]


PRESIGNED = [
    "https://localhost:1/a.root?file=a&X-Amz-Signature=secret&X-Amz-Date=1",
    "https://localhost:1/a,b.root?x-amz%2Dsignature=secret",
    "https://localhost:1/a.root?X-Goog-Signature=secret",
    "https://localhost:1/a.root?sv=1&sig=secret",
    "http://localhost:1/a.root?Expires=1&Signature=secret&Key-Pair-Id=1",
    "https://localhost:1/a.root?apikey=secret",
]


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@localhost:1/a.root",
        "https://localhost:1/a.root?access_token=secret",
        "s3://me:secret@bucket/x",
        "gs://me:secret@bucket/x",
        "root://localhost//x?authz=Bearer%20secret",
        *PRESIGNED,
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        storage.glob,
        storage.read_bytes,
        storage.exists,
        storage.open_source,
        parse,
        lambda uri: storage.write_text(uri, "1"),
    ],
)
def test_an_address_with_a_password_is_refused_and_not_shown(uri, use):
    with pytest.raises(InputError, match="a signature or a password") as error:
        use(uri)
    assert "secret" not in str(error.value)


def test_a_query_without_a_secret_is_accepted():
    for uri in ("https://server/a.root?author=me&signed=1", "http://server/a?sort=token"):
        assert storage.absolute(uri) == uri


def test_errors_hide_the_signature_of_an_address():
    uri = "http://localhost:1/x.root?file=a&X-Amz-Signature=secret1&X-Amz-Security-Token=secret2"
    text = str(JecError(f"no answer from {uri}"))
    assert "localhost:1/x.root?file=a" in text
    assert "secret" not in text


@pytest.mark.parametrize("uri", PRESIGNED)
@pytest.mark.parametrize(
    "field",
    [
        *("data_config", "network_config", "search_space", "s3_bucket", "baseline"),
        *("data_train", "data_val", "data_test"),
    ],
)
def test_a_run_refuses_presigned_addresses(field, uri):
    values = {field: uri}
    if field.startswith("data_") and field != "data_config":
        values[field] = f"/data/a.root,{uri} qcd:root://server//b.root"
    with pytest.raises(InputError) as error:
        RunConfig(**values)
    text = str(error.value)
    assert f"--{field.replace('_', '-')}" in text
    assert "localhost:1" in text
    assert "AWS_ACCESS_KEY_ID" in text
    assert "secret" not in text.replace("AWS_SECRET_ACCESS_KEY", "")


@pytest.mark.parametrize(
    "command",
    [
        ["weaver.prepare", "--data-config", "{config}", "--output", "{folder}", "--data", "{uri}"],
        ["weaver.train", "-c", "{config}", "-n", "{config}", "-m", "{folder}/m", "-i", "{uri}"],
        ["weaver.train", "-c", "{uri}", "-n", "{config}", "-m", "{folder}/m", "-i", "a.root"],
        [
            *("weaver.train", "--predict", "-c", "{config}", "-n", "{config}", "-m", "{folder}/m"),
            *("--predict-output", "{folder}/out.root", "-t", "x:{uri}"),
        ],
        ["pipeline", "--s3-bucket", "{folder}", "--data-train", "{uri}"],
    ],
    ids=["prepare", "train", "train config", "predict", "pipeline"],
)
def test_no_program_stores_or_prints_a_presigned_address(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    program, *words = command
    values = {
        "config": str(ROOT / "data" / "jec_pfn_open.yaml"),
        "folder": str(tmp_path / "runs"),
        "uri": PRESIGNED[0].replace("secret", "FACE"),
    }
    argv = [word.format(**values) for word in words]
    main = importlib.import_module(program).main
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code
    output = "".join(capfd.readouterr())
    assert code == 2
    assert "signature" in output
    assert "FACE" not in output
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "uri", ["root://server//x?authz=Bearer%20secret", "root://me:secret@server//x"]
)
def test_a_secret_in_an_address_is_refused_and_not_shown(uri):
    with pytest.raises(InputError, match="BEARER_TOKEN") as error:
        storage.absolute(uri)
    assert "secret" not in str(error.value)


def test_the_disk_of_another_host_is_refused():
    with pytest.raises(InputError, match="elsewhere"):
        storage.absolute("file://elsewhere/x")
