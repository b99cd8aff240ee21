"""The trial of a large data set: its memory limit, by either version of control groups."""

from __future__ import annotations

import sys

import pytest
import uproot

from benchmarks import large
from common.errors import JecError
from weaver.config.data_config import DataConfig


@pytest.mark.parametrize("version", [1, 2])
def test_the_counters_of_both_versions_of_control_groups_are_read(tmp_path, monkeypatch, version):
    monkeypatch.setattr(large, "CGROUPS", tmp_path)
    if version == 2:
        (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
        files = {
            "memory.stat": "anon 300\nfile 50\n",
            "memory.peak": "400\n",
            "memory.events": "oom 1\noom_kill 1\n",
        }
    else:
        (tmp_path / "memory").mkdir()
        files = {
            "memory.stat": "cache 50\nrss 300\n",
            "memory.max_usage_in_bytes": "400\n",
            "memory.oom_control": "under_oom 0\noom_kill 1\n",
        }
    group = large.MemoryGroup(1000)
    for name, text in files.items():
        (group.path / name).write_text(text)
    limit = "memory.max" if version == 2 else "memory.limit_in_bytes"
    assert (group.path / limit).read_text() == "1000\n"
    assert (group.anonymous(), group.peak(), group.kills()) == (300, 400, 1)
    assert group.command(["/bin/true"])[0] == sys.executable


def test_a_memory_limit_without_the_right_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(large, "CGROUPS", tmp_path / "none")
    with pytest.raises(JecError, match="root"):
        large.MemoryGroup(1000)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(large.Rows(), id="few digits"),
        pytest.param(large.Rows(variables=40, particles=20, full_digits=True), id="wide"),
    ],
)
def test_generated_jets_have_the_sizes_of_their_kind(tmp_path, kind):
    large.write_config(tmp_path / "data.yaml", kind)
    shapes = DataConfig.load(str(tmp_path / "data.yaml")).input_shapes
    assert tuple(shapes["pf_features"])[1:] == (kind.variables, kind.particles)
    large.write_file(tmp_path / "jets.root", 200, 1, kind)
    share = (tmp_path / "jets.root").stat().st_size / (200 * kind.particles * 5 * 4)
    assert (share > 0.8) == kind.full_digits
    with uproot.open(tmp_path / "jets.root") as file:
        counts = file["AK4jets/jetTree/nPF"].array(library="np")
    assert kind.particles * 0.95 < counts.mean() < kind.particles * 1.05
