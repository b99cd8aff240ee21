"""Patterns of data files: samples' names, trees, blanks, and addresses of any scheme."""

import pytest

from common.config import RunConfig
from common.errors import InputError
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
def test_parts(text, patterns):
    assert parse(text) == [
        Pattern(**dict(zip(("text", "sample", "tree"), parts, strict=False))) for parts in patterns
    ]


def test_existing_files_are_what_they_are_called(tmp_path):
    for name in ("a b.root", "a,b 2.root", "x.root:y", "s:z.root"):
        (tmp_path / name).touch()
    for name in ("a b.root", "a,b 2.root", "x.root:y", "s:z.root", "a*b*.root", "a ?.root"):
        assert parse(str(tmp_path / name)) == [Pattern(text=str(tmp_path / name))]


@pytest.mark.parametrize("text", ["gs:/x", "s3:/x", "a.root gs://b/x.root", "q:root:/eos/x"])
def test_misspelt_schemes(text):
    with pytest.raises(InputError, match="root://server//path"):
        parse(text)
    with pytest.raises(InputError, match="root://server//path"):
        RunConfig(data_train=text)


@pytest.mark.parametrize(
    "name", ["data_config", "network_config", "search_space", "s3_bucket", "baseline"]
)
def test_a_run_is_refused_for_misspelt_addresses(name):
    with pytest.raises(InputError, match="'gs:'"):
        RunConfig(**{name: "gs:/x"})


def test_web_servers_are_no_place_for_runs():
    with pytest.raises(InputError, match="read only"):
        RunConfig(s3_bucket="https://server/x")
