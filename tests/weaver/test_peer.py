"""Tensors, labels, observers, weights and derived numbers equal those of weaver-core 0.5.3 for the
same files and configs.

Its arrays are stored (tests/weaver/peer/arrays, written by `make parity WRITE=1`); the files are
generated anew, the same everywhere.
"""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from tests.weaver.fit.test_options import WEAVER_CORE
from tests.weaver.peer.exchange import exchange
from tests.weaver.peer.parity import ARRAYS, CASES, PEER_PYTHON, compare, ours
from weaver.fit.options import WEAVER_ONLY_FLAGS, TrainOptions

with_weaver_core = pytest.mark.skipif(
    not PEER_PYTHON.exists(), reason="weaver-core is not installed; type: make peer"
)

# numpy's log and exp differ by a unit in the last place between kinds of CPU; standardising
# enlarges it
LAST_BITS = 8 * 2**-24


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_arrays_equal_those_of_weaver_core(case, tmp_path):
    peer, result = dict(np.load(case.array_file)), ours(case, tmp_path)
    # Equal to the bit wherever this CPU computes functions like that on which weaver-core ran.
    same_bits = np.array_equal(peer["math_bits"], result["math_bits"])
    rows = compare(result, peer)
    assert {name for name, _ in rows} == set(peer) - {"math_bits"}
    for name, gap in rows:
        assert gap <= (
            0
            if same_bits
            else LAST_BITS * max(np.nanmax(np.abs(_finite(peer[name])), initial=0), 1)
        ), name


@with_weaver_core
@pytest.mark.slow
def test_both_programs_load_the_weights_of_the_other(tmp_path, monkeypatch):
    """--model-prefix and --load-model-weights, run in weaver-core's own environment."""
    monkeypatch.setenv("JEC_CACHE", str(tmp_path / "cache"))
    differences = exchange(tmp_path, str(PEER_PYTHON))
    assert len(differences) == 4
    assert max(differences.values()) < 1e-6


@with_weaver_core
@pytest.mark.slow
def test_the_list_of_weaver_core_s_flags_matches_its_parser():
    """test_options.py and test_flags.py check that each is accepted or refused and has a case."""
    code = "from weaver.train import parser; print(*sorted(parser._option_string_actions))"
    process = subprocess.run(
        [str(PEER_PYTHON), "-c", code], cwd="/", capture_output=True, text=True, check=True
    )
    names = {word.removeprefix("--") for word in process.stdout.split() if word.startswith("--")}
    flags = {name for name in names if name.removeprefix("no-") not in names or name[:3] != "no-"}
    assert flags - {"help"} == {flag.rpartition(":")[2] for flag in WEAVER_CORE.split()}
    assert flags - {"help"} - set(TrainOptions.names()) == set(WEAVER_ONLY_FLAGS)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values.astype("f8")


def test_every_case_has_jets_weights_and_distinct_histograms():
    """Every role of every case has jets; weights vary, and the histograms of classes differ."""
    peers = {case.name: dict(np.load(case.array_file)) for case in CASES}
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
