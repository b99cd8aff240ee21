"""Jets made of formulas: a falling pT spectrum, a resolution that improves with pT, two flavours
that respond differently.
"""

import numpy as np
import pytest

from physics import uncertainty
from physics.metrics import measure

INFERENCE = {
    "jets_per_second": 12345.6,
    "batch_size": 1000,
    "threads": 2,
    "provider": "CPU",
    "processor": "Some CPU",
}
EXPORT = {
    "model": "pfn",
    "sha256": "abc",
    "size_bytes": 1_500_000,
    "max_batch_size": 2048,
    "memory": {"bytes_per_jet": 52_000},
    "parity": {
        "max_difference": 3.2e-7,
        "share_close": 1.0,
        "num_jets": 1000,
        "batch_sizes": [1, 2, 17, 1000],
    },
    "raw": None,
    "raw_reason": "there is no form of <x> in a graph",
}
SERVICE = {
    "name": "pfn",
    "url": "http://pfn.physics.example",
    "kind": "kserve",
    "model_sha256": "abc",
    "others": {},
    "golden": {"max_difference": {"1": 0.0, "100": 6.1e-8}, "tolerance": 1e-5},
    "round_trips": {"1": {"median_ms": 1.91, "min_ms": 1.8, "max_ms": 2.5, "repeats": 10}},
}


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


def quantiles_of(jets: dict[str, np.ndarray], output: np.ndarray) -> np.ndarray:
    """What a quantile network with these medians and a width that falls with pT would answer:
    median, q16, q84, (N, 3).
    """
    half = 0.18 * (jets["jetPt"] / 30) ** -0.33
    return np.stack([output, output - half, output + half], axis=1)


@pytest.fixture(scope="session")
def widths(jets, good_output) -> dict:
    return uncertainty.measure(
        jets, quantiles_of(jets, good_output), ["median", "q16", "q84"], replicates=20
    )


@pytest.fixture(scope="session")
def run_documents(good_metrics, widths) -> dict:
    """What a run folder holds beside the jets, as the other steps write it: keyword arguments of
    reporting.report.Documents.
    """
    names = {
        "run": "runs/pfn-0a1b2c3d",
        "run_id": "pfn-0a1b2c3d",
        "model": "pfn",
        "trial": "pfn-0a1b2c3d-b",
    }
    verdict = {
        "passed": True,
        "reasons": [],
        "config": {"min_improvement": 0.0, "max_closure": 0.02, "seed": 1},
    }
    trials = [
        _trial("a", {"fc-dim": "50", "start-lr": "0.0003", "optimizer": "adam"}, 0.0912),
        _trial("b", {"fc-dim": "200", "start-lr": "0.0011", "optimizer": "ranger"}, 0.0877),
        _trial(
            "c",
            {"fc-dim": "100", "start-lr": "0.0049", "optimizer": "ranger"},
            None,
            "loss is not finite in <epoch 2>",
        ),
    ]
    return {
        "metrics": verdict | names | good_metrics | {"uncertainty": widths, "inference": INFERENCE},
        "run": {
            "run_id": "pfn-0a1b2c3d",
            "config": {"num_epochs": 3, "data_test": "sample"},
            "versions": {"torch": "2.13.0"},
            "data": {"test": {"jets": 6000, "read": 6100, "files": 2, "fingerprint": "00ff"}},
        },
        "search": {
            "objective": {"name": "AvgLoss", "type": "minimize"},
            "algorithm": "random",
            "seed": 1,
            "optimal": "pfn-0a1b2c3d-b",
            "trials": trials,
        },
        "history": [
            {
                "epoch": epoch,
                "train_loss": 0.09,
                "val_loss": 0.089 - 0.001 * epoch,
                "jets_per_second": 4000.0,
                "seconds": 5.0,
            }
            for epoch in range(3)
        ],
        "options": {"network_options": {"fc_dim": 200}, "num_parameters": 12345},
        "export": EXPORT,
        "service": SERVICE,
    }


def _trial(letter: str, parameters: dict[str, str], loss: float | None, reason: str = "") -> dict:
    metrics = {} if loss is None else {"AvgLoss": {"min": loss, "max": 2 * loss, "latest": loss}}
    status = "Failed" if loss is None else "Succeeded"
    return {
        "name": f"pfn-0a1b2c3d-{letter}",
        "status": status,
        "parameters": parameters,
        "metrics": metrics,
        "reason": reason,
    }
