"""Jets made of formulas: a falling pT spectrum, a resolution that improves with pT, two flavours
that respond differently.
"""

import numpy as np
import pytest

from common.measurements import GateSettings
from physics import uncertainty
from physics.gate import judge
from physics.metrics import record_of, sample_of


def make_jets(number: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Observers of `number` jets: response normal about 1 (uds 1.01, g 0.99) with sigma 0.2 at 30
    GeV down to 0.05 at 2 TeV.
    """
    rng = np.random.default_rng(seed)
    gen_pt = 30 * np.exp(rng.exponential(1.2, number))
    parton = rng.choice([1, -2, 3, 21], number)
    sigma = np.clip(0.2 * (gen_pt / 30) ** -0.33, 0.05, None)
    center = np.where(parton == 21, 0.99, 1.01)
    return {
        "genJetPt": gen_pt,
        "genJetEta": rng.uniform(-2.5, 2.5, number),
        "jetPt": gen_pt * np.clip(center + sigma * rng.normal(size=number), 0.1, None),
        "partonFlav": parton,
        "hadronFlav": np.zeros(number, dtype=np.int32),
    }


def target_of(jets: dict[str, np.ndarray]) -> np.ndarray:
    """The output of a perfect model."""
    return np.log(jets["genJetPt"] / jets["jetPt"])


def measure_and_judge(
    jets: dict[str, np.ndarray], output: np.ndarray, *, replicates: int = 50, **settings
) -> tuple[dict, list[str]]:
    """The record of a model's answers with the gate's checks, and the reasons to refuse the model.

    `settings` replace those of the default gate.
    """
    sample = sample_of(jets, output, replicates=replicates, seed=1)
    values_of_settings = {"min_improvement": 0.0, "max_closure": 0.01, "seed": 1} | settings
    gate, reasons = judge(sample, GateSettings(**values_of_settings))
    return {**record_of(sample), "gate": gate}, reasons


@pytest.fixture(scope="session")
def jets() -> dict[str, np.ndarray]:
    return make_jets(6000)


@pytest.fixture(scope="session")
def good_output(jets) -> np.ndarray:
    """A model that knows a tenth of each jet's error and closes."""
    return 0.1 * target_of(jets)


@pytest.fixture(scope="session")
def good_metrics(jets, good_output) -> dict:
    return measure_and_judge(jets, good_output, replicates=100)[0]


def quantiles_of(jets: dict[str, np.ndarray], output: np.ndarray) -> np.ndarray:
    """The output of a quantile network with these medians and a width that falls with pT: median,
    q16, q84, (N, 3).
    """
    half = 0.18 * (jets["jetPt"] / 30) ** -0.33
    return np.stack([output, output - half, output + half], axis=1)


@pytest.fixture(scope="session")
def widths(jets, good_output) -> dict:
    return uncertainty.measure(
        jets, quantiles_of(jets, good_output), ["median", "q16", "q84"], replicates=20
    )
