"""Fail where less of the project is covered by tests than the floors below ask.

    python -m tests.coverage_floors .coverage.json

The file is coverage's JSON report of all tests (`make test-all`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Share(NamedTuple):
    """Covered per cent."""

    lines: float
    branches: float


ROOT = Path(__file__).resolve().parents[1]
NOT_MEASURED = ("tests", "benchmarks")
CLIENTS = "clients/python/"  # where the package jec_client stands; it is linked at the root
FLOOR = Share(lines=95, branches=88)
# Rooms below the floor, as measured and rounded down; none may fall further. In data, the generator
# kills its worker processes once their work is done, so what they cover is not counted.
ROOM_FLOORS: Mapping[str, Share] = {
    "common": Share(lines=94, branches=85),
    "data": Share(lines=90, branches=85),
    "operations": Share(lines=92, branches=84),
    "pipeline": Share(lines=92, branches=80),
}


def shares(report: Mapping) -> dict[str, Share]:
    """The covered share of every room, and of all of them together as 'all'."""
    # Coverage leaves out a room that no test imports.
    counts = {path.parent.name: [0, 0, 0, 0] for path in ROOT.glob("*/__init__.py")}
    for name in NOT_MEASURED:
        counts.pop(name, None)
    counts["all"] = [0, 0, 0, 0]
    for path, file in report["files"].items():
        summary = file["summary"]
        for room in (path.removeprefix(CLIENTS).split("/")[0].removesuffix(".py"), "all"):
            total = counts.setdefault(room, [0, 0, 0, 0])
            total[0] += summary["covered_lines"]
            total[1] += summary["num_statements"]
            total[2] += summary["covered_branches"]
            total[3] += summary["num_branches"]
    return {
        room: Share(
            lines=100 * lines / all_lines if all_lines else 0.0,
            branches=100 * branches / all_branches if all_branches else 0.0,
        )
        for room, (lines, all_lines, branches, all_branches) in counts.items()
    }


def below_floor(shares_by_room: Mapping[str, Share]) -> list[str]:
    """One line for each share that is below its floor."""
    problems = []
    for room, share in sorted(shares_by_room.items()):
        floor = ROOM_FLOORS.get(room, FLOOR)
        for kind, value, least in zip(Share._fields, share, floor, strict=True):
            if value < least:
                problems.append(f"{room}: {value:.2f} % of {kind} are covered, not {least:g} %")
    return problems


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="coverage's JSON report of all tests")
    shares_by_room = shares(json.loads(parser.parse_args(argv).report.read_text()))
    for room, share in sorted(shares_by_room.items()):
        print(f"{room:12} {share.lines:5.1f} % of lines {share.branches:5.1f} % of branches")
    problems = below_floor(shares_by_room)
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
