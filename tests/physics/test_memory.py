"""Memory of the measurements for each jet: what remains in memory, and the most at a time."""

import tracemalloc

import numpy as np
import pytest

from physics import uncertainty
from physics.metrics import Sample, sample_of
from physics.residual_effect import residual_effect
from tests.physics.jets import make_jets, target_of

NUMBER = 100_000


@pytest.fixture(scope="module")
def jets() -> dict[str, np.ndarray]:
    """Jets with every column that makes groups, in single precision as in prepared data."""
    jets = make_jets(NUMBER)
    rng = np.random.default_rng(2)
    for name in ("rhoAll", "PV_npvsGood", "jetMult", "QG_mult"):
        jets[name] = rng.integers(1, 60, NUMBER)
    jets["jetPhi"] = rng.uniform(-3, 3, NUMBER)
    jets["jetRawPt"] = 0.9 * jets["jetPt"]
    jets["eventWeight"] = rng.uniform(0.5, 1, NUMBER)
    single = {name: values.astype(np.float32) for name, values in jets.items()}
    single["genJetPt"][::1000] = 0  # not measured
    return single


def traced(function) -> tuple[float, float, object]:
    """Bytes for each jet that remain and at most, and the result."""
    tracemalloc.start()
    result = function()
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return now / NUMBER, most / NUMBER, result


@pytest.fixture(scope="module")
def traced_sample(jets) -> tuple[float, float, Sample]:
    output = (0.1 * target_of({name: np.maximum(jets[name], 1) for name in jets})).astype("f4")
    return traced(
        lambda: sample_of(
            jets, output, trees=output, baseline=output, pileup=jets["rhoAll"], replicates=1
        )
    )


def test_a_sample_of_jets(traced_sample):
    remaining, most, sample = traced_sample
    assert sample.left_out == {"no generator jet (genJetPt is 0)": NUMBER / 1000}
    # 40 of five responses, 30 of 240 masks, and 10 of the quantiles, whatever the number of jets
    assert remaining < 90
    # 56 of the sorted jets of one calibration, and 20 of a draw
    assert most < 175


def test_the_residual_effect(traced_sample):
    sample = traced_sample[2]
    _, most, effect = traced(lambda: residual_effect(sample, np.zeros(NUMBER)))
    assert effect is not None
    assert most < 80


def test_the_quantiles_of_a_network(jets):
    rng = np.random.default_rng(3)
    answers = np.sort(rng.normal(0, 0.1, (NUMBER, 3)), axis=1).astype(np.float32)
    names = ["q16", "median", "q84"]
    _, most, record = traced(lambda: uncertainty.measure(jets, answers, names, replicates=1))
    assert record is not None
    assert most < 130
