"""Tensors, labels, observers, weights and derived numbers equal those that weaver-core 0.5.3 made
of the same files and configs.

Its arrays are stored (tests/weaver/peer/arrays, written by `make parity WRITE=1`); the files are
generated anew, the same everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.weaver.peer.parity import ARRAYS, CASES, compare, ours

# numpy's log and exp differ by a unit in the last place between kinds of CPU; standardising
# enlarges it
LAST_BITS = 8 * 2**-24


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equal_to_weaver_core(case, tmp_path):
    peer, made = dict(np.load(case.stored)), ours(case, tmp_path)
    # Equal to the bit wherever this CPU computes functions like that on which weaver-core ran.
    same_bits = np.array_equal(peer["math_bits"], made["math_bits"])
    rows = compare(made, peer)
    assert {name for name, _ in rows} == set(peer) - {"math_bits"}
    for name, gap in rows:
        assert gap <= (
            0
            if same_bits
            else LAST_BITS * max(np.nanmax(np.abs(_finite(peer[name])), initial=0), 1)
        ), name


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values.astype("f8")


def test_the_cases_reach_what_they_are_for():
    """Every role of every case has jets; weights vary, and the histograms of classes differ."""
    peers = {case.name: dict(np.load(case.stored)) for case in CASES}
    for arrays in peers.values():
        assert {name.split()[0] for name in arrays} == {"train", "val", "test", "math_bits"}
        assert all(len(values) > 10 for name, values in arrays.items() if " input " in name)
    for name in ("ak8_mass_decorrelated", "ak4_flavour", "ak8_mass_regression"):
        weights = peers[name]["train weight"]
        assert np.count_nonzero(weights) > len(weights) // 2
        assert len(np.unique(weights)) >= 10
        hists = [hist for key, hist in peers[name].items() if key.startswith("train histogram")]
        assert len(hists) > 1
        assert not np.array_equal(hists[0], hists[1])
    assert sum(path.stat().st_size for path in ARRAYS.glob("*.npz")) < 1_000_000
