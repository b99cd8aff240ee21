"""Benchmarks: runs in turn, ratios within a round, results that can be made in parts."""

from __future__ import annotations

import json

import pytest

from benchmarks import feeding, measure, training
from weaver.fit.allocator import ENVIRONMENT


def test_contenders_run_in_turn():
    calls = []
    runs = measure.alternate(
        {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"},
        3,
        report=lambda line: None,
    )
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert runs == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_a_ratio_pairs_what_ran_in_the_same_round():
    assert measure.ratio([2, 30, 8], [1, 10, 2]) == measure.Spread(least=2, median=3, most=4)
    assert measure.Spread.of([1, 3, 2]).text(".1f", "x") == "2.0x (1.0 - 3.0)"
    with pytest.raises(ValueError, match="zip"):
        measure.ratio([1], [1, 2])


def test_a_part_measured_later_joins_the_others_of_that_day(tmp_path):
    for name, value in (("one", 1), ("two", 2), ("one", 3)):
        report = measure.Report("speed", "Speed", tmp_path)
        report.section(
            name,
            columns=["what", "jets/s"],
            rows=[["ours", value]],
            runs={"ours": [value]},
            notes=["as measured"],
        )
        readable = report.save()
    content = json.loads(readable.with_suffix(".json").read_text())
    assert {
        name: section["data"]["runs"]["ours"] for name, section in content["sections"].items()
    } == {"one": [3], "two": [2]}
    assert "| ours | 3      |" in readable.read_text()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"processor": "AMD EPYC", "cores": 2}, "amd-epyc-2c"),
        (
            {"processor": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 8},
            "intel-xeon-platinum-8481c",
        ),
        ({"processor": "x", "cores": 1, "gpu": "NVIDIA H200"}, "nvidia-h200"),
    ],
)
def test_a_machine_has_a_short_name(content, name):
    assert measure.kind(content).startswith(name)


def test_both_sides_get_the_same_allocator():
    assert measure.with_allocator(2, base={"A": "1"}) == {
        "A": "1",
        **ENVIRONMENT,
        "OMP_NUM_THREADS": "2",
    }
    assert measure.without_allocator({"A": "1", **ENVIRONMENT}) == {"A": "1"}


@pytest.mark.parametrize("benchmark", [feeding, training])
def test_a_missing_peer_is_one_error(benchmark, capsys):
    assert benchmark.main(["--peer-python", "nowhere/python"]) == 2
    assert "no weaver-core to compare with at nowhere/python; make peer" in capsys.readouterr().err


def test_a_gpu_benchmark_without_a_gpu_says_that_nothing_was_measured(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert training.main(["--device", "cuda"]) == 0
    assert "nothing was measured" in capsys.readouterr().err
