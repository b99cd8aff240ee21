"""The floors of coverage: `make test-all` fails below them, for lines and for branches."""

from __future__ import annotations

import json

import pytest

from tests import coverage_floors


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Write a report of one room with 100 lines and 100 branches; gives its path."""
    monkeypatch.setattr(coverage_floors, "ROOT", tmp_path)
    monkeypatch.setattr(coverage_floors, "ROOM_FLOORS", {})
    (tmp_path / "physics").mkdir()
    (tmp_path / "physics" / "__init__.py").touch()

    def write(lines: int, branches: int):
        summary = {
            "covered_lines": lines,
            "num_statements": 100,
            "covered_branches": branches,
            "num_branches": 100,
        }
        path = tmp_path / "coverage.json"
        path.write_text(json.dumps({"files": {"physics/response.py": {"summary": summary}}}))
        return path

    return write


@pytest.mark.parametrize(
    ("lines", "branches", "code", "kinds"),
    [
        pytest.param(95, 88, 0, [], id="at the floors"),
        pytest.param(94, 88, 1, ["lines"], id="lines"),
        pytest.param(95, 87, 1, ["branches"], id="branches"),
    ],
)
def test_below_a_floor_it_fails_and_names_the_room(report, capsys, lines, branches, code, kinds):
    assert coverage_floors.main([str(report(lines, branches))]) == code
    problems = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(":")[0] for line in problems] == ["all", "physics"] * len(kinds)
    assert all(kind in line for kind in kinds for line in problems)


def test_a_room_that_no_test_imports_counts_as_not_covered(report, tmp_path):
    (tmp_path / "weaver").mkdir()
    (tmp_path / "weaver" / "__init__.py").touch()
    shares = coverage_floors.shares(json.loads(report(100, 100).read_text()))
    assert shares["weaver"] == (0, 0)
    assert shares["physics"] == (100, 100)
