"""Patterns of data files: samples' names, trees, blanks, and addresses of any scheme."""

import importlib
import os

import pytest

from common.config import RunConfig
from common.errors import InputError
from common.project import ROOT
from common.storage.patterns import Pattern, parse


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("a/*.root, b.root c.root", [("a/*.root",), ("b.root",), ("c.root",)]),
        ("ttbar:/data/*.root", [("/data/*.root", "ttbar")]),
        ("s3://b/x.root,root://s//y/*.root", [("s3://b/x.root",), ("root://s//y/*.root",)]),
        ("qcd:root://s:1094//y/*.root", [("root://s:1094//y/*.root", "qcd")]),
        ("a.root:events", [("a.root", "", "events")]),
        ("qcd:/d/*.root:dir/events", [("/d/*.root", "qcd", "dir/events")]),
        ("root://my.root:1094//a.root:t", [("root://my.root:1094//a.root", "", "t")]),
        ("root://my.root:1094//a.root", [("root://my.root:1094//a.root",)]),
        ("https://server:8443/a.root:t;1", [("https://server:8443/a.root", "", "t;1")]),
    ],
)
def test_patterns_are_split_into_sample_path_and_tree(text, patterns):
    assert parse(text) == [
        Pattern(**dict(zip(("text", "sample", "tree"), parts, strict=False))) for parts in patterns
    ]


def test_names_of_existing_files_are_not_parsed(tmp_path):
    for name in ("a b.root", "a,b 2.root", "x.root:y", "s:z.root"):
        (tmp_path / name).touch()
    for name in ("a b.root", "a,b 2.root", "x.root:y", "s:z.root", "a*b*.root", "a ?.root"):
        assert parse(str(tmp_path / name)) == [Pattern(text=str(tmp_path / name))]


@pytest.mark.parametrize("text", ["gs:/x", "s3:/x", "a.root gs://b/x.root", "q:root:/eos/x"])
def test_misspelt_schemes_are_refused(text):
    with pytest.raises(InputError, match="root://server//path"):
        parse(text)
    with pytest.raises(InputError, match=r"--data-val: .*root://server//path"):
        RunConfig(data_val=text)


@pytest.mark.parametrize(
    "name", ["data_config", "network_config", "search_space", "s3_bucket", "baseline"]
)
def test_a_run_refuses_misspelt_addresses(name):
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}: .*'gs:'"):
        RunConfig(**{name: "gs:/x"})


def test_runs_cannot_be_stored_on_a_web_server():
    with pytest.raises(InputError, match="read only"):
        RunConfig(s3_bucket="https://server/x")


COMMANDS = {
    "pipeline": ["pipeline", "--output", "gs:/x"],
    "generate": ["data.generate", "--jets", "10", "--output", "s3://bucket/x"],
    "from_nanoaod": ["data.from_nanoaod", "gs:/x.root", "--output", "x"],
    "from_nanoaod output": ["data.from_nanoaod", "x.root", "--output", "root://s//x"],
    "validate": ["data.validate", "gs:/x.root"],
    "sample": ["data.sample", "--storage", "gs:/x"],
    "prepare": ["weaver.prepare", "--data-config=gs:/x", "--data=x", "--output=x"],
    "prepare output": ["weaver.prepare", "--data-config=DATA", "--data=x", "--output=gs:/x"],
    "evaluate": ["evaluating.evaluate", "--run", "gs:/x", "--name", "x"],
    "export": ["exporting.export", "--run", "gs:/x", "--name", "x", "--trial", "x"],
    "train": ["weaver.train", "-c", "x", "-n", "x", "--model-prefix", "gs:/x", "--data-train", "x"],
    "train log": ["weaver.train", "-c", "x", "-n", "x", "--log-file", "s3://b/x"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_creates_a_folder_named_like_an_address(name, tmp_path, monkeypatch, capsys):
    module, *words = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    words = [word.replace("DATA", str(ROOT / "data" / "jec_pfn_open.yaml")) for word in words]
    main = importlib.import_module(module).main
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == 2
    messages = capsys.readouterr().err
    assert "error" in messages
    assert not [path for path in os.listdir(tmp_path) if ":" in path]
