"""The metrics file against the rules of Katib's collector."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from weaver.fit.metrics_log import lines, now, plain, write

# the default filter of format TEXT
KATIB = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")


def record(**metrics: float) -> dict:
    return {"time": now(), "metrics": metrics}


def collector_metrics(text: str) -> list[tuple[str, float]]:
    """The metrics that Katib reads from a file: per line a time, then every match of its filter."""
    result = []
    for line in text.splitlines():
        time, _, rest = line.partition(" ")
        datetime.fromisoformat(time.replace("Z", "+00:00"))
        result += [(name, float(value)) for name, value, *_ in KATIB.findall(rest)]
    return result


@pytest.mark.parametrize(
    "value", [0.08768123, 5e-5, 1.23456789e-9, 888.0, 123456789.0, -7.5e-5, 0.0, 1e22, 0.1 + 0.2]
)
def test_katib_s_filter_reads_every_number(value):
    text = lines([record(AvgLoss=value)])
    assert "e" not in text.partition("=")[2]
    assert collector_metrics(text) == [("AvgLoss", pytest.approx(value, rel=1e-7))]


def test_numbers_are_plain_decimals():
    assert [plain(x) for x in (5e-5, 0.1 + 0.2, 2.0, 1e-12)] == [
        "0.00005",
        "0.3",
        "2",
        "0.000000000001",
    ]


def test_values_that_are_not_finite_are_left_out():
    text = lines([record(AvgLoss=0.1, AvgMSE=float("nan"), AvgMAE=float("inf"))])
    assert collector_metrics(text) == [("AvgLoss", 0.1)]


def test_time_is_utc_with_a_z():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())


def test_new_lines_are_appended_and_none_is_repeated(tmp_path):
    path, history = tmp_path / "katib" / "metrics.log", [record(AvgLoss=0.3, learning_rate=1e-3)]
    write(path, history)
    inode, first = path.stat().st_ino, path.read_text()
    history.append(record(AvgLoss=0.2, learning_rate=1e-4))
    for _ in range(2):
        write(path, history)
    assert path.read_text() == lines(history)
    assert path.read_text().startswith(first)
    assert path.stat().st_ino == inode  # a collector that follows the file still reads it
    assert [value for name, value in collector_metrics(path.read_text()) if name == "AvgLoss"] == [
        0.3,
        0.2,
    ]


def test_a_file_with_other_lines_is_rewritten(tmp_path):
    path = tmp_path / "metrics.log"
    path.write_text("2020-01-01T00:00:00Z AvgLoss=0.001\n")
    history = [record(AvgLoss=0.3)]
    write(path, history)
    assert path.read_text() == lines(history)
