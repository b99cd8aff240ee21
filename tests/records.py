"""Whole records of a run, for tests that need one."""

from common.records import ExportRecord, MemoryRecord, ParityRecord


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
