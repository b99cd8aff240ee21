"""A secret in each place where one may be given: refused or used, and never shown or stored."""

import importlib
import os
from pathlib import Path

import pytest

from common import storage
from common.errors import InputError, JecError, without_secrets
from common.storage.addresses import check_url, scheme_of
from components.step import use_endpoint

pytestmark = pytest.mark.faults

CANARY = "canary-7f3a"
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", "S3_ENDPOINT")
LOGINS = (f"user:{CANARY}", CANARY, f":{CANARY}", f"{CANARY}:x", f"a:b:{CANARY}")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder; the variables of endpoints are not set."""
    monkeypatch.chdir(tmp_path)
    for name in ("KFP_ENDPOINT", *ENDPOINTS):
        monkeypatch.delenv(name, raising=False)
        # set and deleted, so that what a command exports is taken back
        monkeypatch.setenv(name, "")
    return tmp_path


def run(program, *words):
    """The exit code of `python -m PROGRAM WORDS` in this process."""
    try:
        return importlib.import_module(program).main(list(words))
    except SystemExit as error:
        return error.code


def assert_nowhere(place, capsys):
    output = capsys.readouterr()
    assert CANARY not in output.out + output.err
    for path in place.rglob("*"):
        assert CANARY not in str(path)
        assert not path.is_file() or CANARY.encode() not in path.read_bytes()


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize(
    "words",
    [
        ["--s3-endpoint", "http://{}@minio:9000", "--compile-to", "p.yaml"],
        ["--s3-endpoint", "https://{}@minio", "--render", "objects"],
        ["--s3-endpoint", "https://{}@minio", "--runner", "local", "--output", "runs"],
        ["--s3-endpoint", "https://{}@minio", "--check", "--runner", "local"],
        ["--s3-endpoint", "https://{}@minio", "--status", "latest"],
        ["--s3-endpoint", "https://{}@minio", "--down", "latest"],
        ["--host", "https://{}@kubeflow/pipeline", "--runner", "kubeflow"],
        ["--host", "https://{}@kubeflow/pipeline", "--compile-to", "p.yaml"],
        ["--host", "https://{}@kubeflow/pipeline", "--status", "latest"],
        ["--data-train", "https://{}@server/a.root", "--compile-to", "p.yaml"],
        ["--data-config", "https://{}@server/d.yaml", "--compile-to", "p.yaml"],
        ["--baseline", "https://{}@server/run", "--compile-to", "p.yaml"],
    ],
    ids=" ".join,
)
def test_an_address_with_a_login_is_refused_and_not_shown(words, login, place, capsys):
    assert run("pipeline", *(word.format(login) for word in words)) == 2
    assert_nowhere(place, capsys)


@pytest.mark.parametrize("login", LOGINS)
@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("AWS_ENDPOINT_URL", ["--compile-to", "p.yaml"]),
        ("AWS_ENDPOINT_URL_S3", ["--render", "objects"]),
        ("AWS_ENDPOINT_URL", ["--runner", "local", "--output", "runs"]),
        ("AWS_ENDPOINT_URL", ["--runner", "kubeflow", "--s3-bucket", "s3://b/x"]),
        ("KFP_ENDPOINT", ["--runner", "kubeflow", "--s3-bucket", "s3://b/x"]),
        ("KFP_ENDPOINT", ["--status", "latest", "--s3-bucket", "s3://b/x"]),
    ],
    ids=str,
)
def test_a_variable_with_a_login_is_refused_and_not_shown(
    variable, words, login, place, capsys, monkeypatch
):
    monkeypatch.setenv(variable, f"http://{login}@host:9000")
    assert run("pipeline", *words) == 2
    output = capsys.readouterr()
    assert variable in output.err
    assert CANARY not in output.out + output.err
    assert_nowhere(place, capsys)


@pytest.mark.parametrize("variable", ENDPOINTS)
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("pipeline", ["--compile-to", "p.yaml"]),
        ("serving.serve", ["s3://b/run"]),
        ("serving.calibrate", ["a.root", "--model", "s3://b/run", "--output", "out"]),
        ("components.evaluate", ["--run", "s3://b/run", "--trial", "t"]),
    ],
    ids=str,
)
def test_each_command_refuses_an_endpoint_with_a_login(
    program, words, variable, place, capsys, monkeypatch
):
    storage.forget_client()
    (place / "a.root").write_text("")
    monkeypatch.setenv(variable, f"http://user:{CANARY}@host:9000")
    assert run(program, *words) == 2
    output = capsys.readouterr()
    assert variable in output.err
    assert CANARY not in output.out + output.err
    assert_nowhere(place, capsys)


@pytest.mark.parametrize(
    "text",
    [
        f"s3_endpoint: https://user:{CANARY}@minio",
        f"data_train: https://user:{CANARY}@server/a.root",
        f"num_epochs: {CANARY}",
        f"num_epochs: [{CANARY}",
        f"token: {CANARY}: x",
        f"x: !{CANARY[:6]} y\nz: '{CANARY}",
        f"token: {CANARY}",
    ],
)
def test_a_file_of_flags_with_a_secret_is_refused_and_not_shown(text, place, capsys):
    (place.parent / f"{place.name}.yaml").write_text(text)
    words = ["--config", str(place.parent / f"{place.name}.yaml"), "--compile-to", "p.yaml"]
    assert run("pipeline", *words) == 2
    assert_nowhere(place, capsys)


@pytest.mark.parametrize("key", ["token", "X-Amz-Signature", "access_key", "authz"])
def test_an_endpoint_with_a_token_in_its_query_is_refused(key):
    with pytest.raises(InputError) as refusal:
        check_url(f"https://minio/?{key}={CANARY}")
    assert CANARY not in str(refusal.value)


def test_an_explicit_endpoint_replaces_that_of_the_environment(place, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://other:9000")
    use_endpoint("https://minio:9000")
    assert os.environ["AWS_ENDPOINT_URL"] == "https://minio:9000"


@pytest.mark.parametrize("login", LOGINS)
def test_no_error_shows_a_login(login):
    text = f"cannot reach https://{login}@host/x and s3://{login}@bucket/y?token={CANARY}"
    assert CANARY not in str(JecError(text))
    assert without_secrets("https://host/a@b") == "https://host/a@b"


def test_a_users_name_without_a_password_stays_allowed_for_xrootd():
    assert scheme_of("root://user@server//file.root") == "root"


def test_no_source_file_runs_a_line_of_shell():
    root = Path(__file__).resolve().parents[2]
    rooms = [path.parent for path in root.glob("*/__init__.py") if path.parent.name != "tests"]
    files = [root / "pipeline.py", *(file for room in rooms for file in room.rglob("*.py"))]
    assert len(files) > 200
    for file in files:
        text = file.read_text()
        for call in ("shell=True", "os.system(", "os.popen(", "create_subprocess_shell"):
            assert call not in text, f"{file} has {call}"
