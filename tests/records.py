"""Whole records of a run, for tests that need one."""

from common.measurements import (
    Calibrated,
    Closure,
    Distribution,
    Flavour,
    GateSettings,
    Inference,
    Interval,
)
from common.records import (
    ExportRecord,
    GoldenAnswers,
    MemoryRecord,
    MetricsRecord,
    ParityRecord,
    ServiceRecord,
)


def export_record(name: str, **values) -> ExportRecord:
    """export.json of a model without a raw form; `values` replace fields."""
    parity = ParityRecord(
        num_jets=1000,
        num_answers=5000,
        share_close=1.0,
        max_difference=3.2e-7,
        worst="golden jet 43",
        levels=[0, 1, -1, 2],
        batch_sizes=[1, 2, 17, 1000],
    )
    memory = MemoryRecord(
        sizes=[16, 64, 256],
        growth=[832_000, 3_328_000, 13_312_000],
        bytes_per_jet=52_000,
        budget=2**30,
    )
    fields = {
        "model": name,
        "sha256": "00ff",
        "size_bytes": 1_500_000,
        "max_batch_size": 512,
        "memory": memory,
        "inputs": {"x": [1]},
        "outputs": ["output"],
        "parity": parity,
        "trial": f"{name}-0",
        "opset": 17,
    }
    return ExportRecord(**{**fields, **values})


def metrics_record(**values) -> MetricsRecord:
    """metrics.json of a model that passed, without any tables; `values` replace fields."""
    fields = {
        "passed": True,
        "reasons": [],
        "run": "runs/pfn-0a1b2c3d",
        "run_id": "pfn-0a1b2c3d",
        "model": "pfn",
        "trial": "pfn-0a1b2c3d-000",
        "baseline": None,
        "config": GateSettings(min_improvement=0.0, max_closure=0.01, seed=1),
        "gain": Interval(value=3.0, low=2.0, high=4.0),
        "gain_half_width": Interval(value=3.1, low=2.1, high=4.1),
        "gain_over_baseline": None,
        "resolution": None,
        "closure": Closure(from_gev=60.0, worst=None, bins=[]),
        "flavour": Flavour(from_gev=60.0, regions={}, bins=[]),
        "bins": [],
        "curves": [],
        "weighted": None,
        "core": [],
        "residuals": {},
        "eta": [],
        "distribution": Distribution(edges=[0.5, 1.5], counts={}),
        "num_jets": 1000,
        "num_measured": 1000,
        "num_without_answer": 0,
        "num_far": Calibrated(model=0, standard=0),
        "interval": 0.95,
        "replicates": 500,
        "inference": Inference(
            jets_per_second=12345.6,
            batch_size=1000,
            threads=2,
            provider="CPU",
            processor="Some CPU",
        ),
    }
    return MetricsRecord(**{**fields, **values})


def service_record(name: str, **values) -> ServiceRecord:
    """service.json of a service that gave the golden answers; `values` replace fields."""
    golden = GoldenAnswers(
        max_difference={"1": 0.0, "100": 0.0}, tolerance=1e-5, answer={}, seconds=0.1
    )
    fields = {
        "name": name,
        "url": "http://x",
        "kind": "kserve",
        "details": {},
        "golden": golden,
        "others": {},
    }
    return ServiceRecord(**{**fields, **values})
