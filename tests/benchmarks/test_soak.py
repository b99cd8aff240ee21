"""The soak test: it detects growth; a steady or scattering quantity does not count as growing."""

from __future__ import annotations

import argparse

import numpy as np
import pytest

from benchmarks import soak

rng = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("values", "grows"),
    [
        pytest.param([9.0] * 30, False, id="constant"),
        pytest.param(300 + rng.normal(0, 2, 30), False, id="scatter"),
        pytest.param(300 + 0.5 * np.arange(30) + rng.normal(0, 2, 30), True, id="leak in noise"),
        pytest.param(10 + np.arange(30), True, id="one descriptor a search"),
        pytest.param(300 - 0.5 * np.arange(30), False, id="falling"),
        pytest.param(300 + 0.01 * np.arange(30), False, id="0.1 per cent"),
        pytest.param([0.0] * 29 + [1.0], False, id="one thing once"),
    ],
)
def test_growth_differs_from_scatter(values, grows):
    assert soak.Line.through(values).grows is grows


def test_the_slope_has_the_error_of_the_scatter():
    line = soak.Line.through([1, 3, 2, 4])
    # by hand: x = -1.5 ... 1.5, sum of squares 5, slope 4 / 5, rest 1.8 of 2 degrees of freedom
    assert line.slope == pytest.approx(0.8)
    assert line.error == pytest.approx((1.8 / 2 / 5) ** 0.5)
    with pytest.raises(ValueError, match="3 values"):
        soak.Line.through([1, 2])


def test_growing_quantities_are_listed_in_results_and_return_value(tmp_path):
    counts = []
    for number in range(12):
        row = [300.0, 700.0, 0.0, 3.0, 20.0 + number, 0.0, 2.0, 0.1, 1.0, 0.5]
        counts.append(row)
    arguments = argparse.Namespace(results=tmp_path, jets=1000)
    assert soak.write(counts, arguments) == ["descriptors"]
    (table,) = tmp_path.glob("soak-*.md")
    (row,) = [line for line in table.read_text().splitlines() if line.startswith("| descriptors ")]
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["25", "31", "+1.0000 ± 0.0000", "yes"]
    (plot,) = tmp_path.glob("soak-*.svg")
    assert "prefers-color-scheme:dark" in plot.read_text()
    assert plot.name in table.read_text()
