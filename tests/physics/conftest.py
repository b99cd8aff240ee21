"""Jets made of formulas: a falling pT spectrum, a resolution that improves with pT, two flavours that respond differently."""

import numpy as np
import pytest

from physics.metrics import measure


def make_jets(number: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Observers of `number` jets: response normal about 1 (uds 1.01, g 0.99) with sigma 0.2 at 30 GeV down to 0.05 at 2 TeV."""
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
    """What a perfect model would answer."""
    return np.log(jets["genJetPt"] / jets["jetPt"])


@pytest.fixture(scope="session")
def jets() -> dict[str, np.ndarray]:
    return make_jets(6000)


@pytest.fixture(scope="session")
def good_output(jets) -> np.ndarray:
    """A model that knows a tenth of each jet's error and closes."""
    return 0.1 * target_of(jets)


@pytest.fixture(scope="session")
def good_metrics(jets, good_output) -> dict:
    return measure(jets, good_output, replicates=100, seed=1)


@pytest.fixture(scope="session")
def run_documents(good_metrics) -> dict:
    """What a run folder holds beside the jets, as the other steps write it: keyword arguments of physics.report.Documents."""
    names = {"run": "runs/pfn-0a1b2c3d", "run_id": "pfn-0a1b2c3d", "model": "pfn", "trial": "pfn-0a1b2c3d-b"}
    verdict = {"passed": True, "reasons": [], "config": {"min_improvement": 0.0, "max_closure": 0.02, "seed": 1}}
    trials = [
        _trial("a", {"fc-dim": "50", "start-lr": "0.0003", "optimizer": "adam"}, 0.0912),
        _trial("b", {"fc-dim": "200", "start-lr": "0.0011", "optimizer": "ranger"}, 0.0877),
        _trial("c", {"fc-dim": "100", "start-lr": "0.0049", "optimizer": "ranger"}, None, "loss is not finite in <epoch 2>"),
    ]
    return {
        "metrics": verdict | names | good_metrics,
        "run": {"run_id": "pfn-0a1b2c3d", "config": {"num_epochs": 3}, "versions": {"torch": "2.13.0"}, "data": {"test": {"jets": 6000}}},
        "search": {
            "objective": {"name": "AvgLoss", "type": "minimize"}, "algorithm": "random", "seed": 1,
            "optimal": "pfn-0a1b2c3d-b", "trials": trials,
        },
        "history": [
            {"epoch": epoch, "train_loss": 0.09, "val_loss": 0.089 - 0.001 * epoch, "jets_per_second": 4000.0, "seconds": 5.0}
            for epoch in range(3)
        ],
        "options": {"network_options": {"fc_dim": 200}, "num_parameters": 12345},
        "export": {"max_difference": 3.2e-7, "batch_sizes": [1, 2, 17, 1000]},
    }  # fmt: skip


def _trial(letter: str, parameters: dict[str, str], loss: float | None, reason: str = "") -> dict:
    metrics = {} if loss is None else {"AvgLoss": {"min": loss, "max": 2 * loss, "latest": loss}}
    status = "Failed" if loss is None else "Succeeded"
    return {"name": f"pfn-0a1b2c3d-{letter}", "status": status, "parameters": parameters, "metrics": metrics, "reason": reason}
